"""Folders of peft, against the package itself."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from mpojax import interop, models
from tests.interop.test_adapter_kinds import IDS, MODELS, TEXTS, add, moved, outputs

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RULE = (r"(.*/)?layers/\d+/.*/(query|value|up)", {"rank": 3, "scale": 0.7})
# transformers knows these with a pooler alone.
BERT = dataclasses.replace(MODELS["bert"], num_labels=None, pooling="none")
CONFIGS = {
    "bert": BERT,
    "classifier": dataclasses.replace(MODELS["bert"], pooling="pooler"),
    "llama": MODELS["llama"],
    "t5": MODELS["t5"],
}
CLASSES = {
    "bert": "AutoModel",
    "classifier": "AutoModelForSequenceClassification",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}


def base(name):
    return models.build(CONFIGS[name], rngs=nnx.Rngs(1))


def theirs(name, folder, adapter):
    plain = getattr(transformers, CLASSES[name]).from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(plain, adapter).eval()
    with torch.no_grad():
        if name == "t5":
            ids = torch.tensor(np.asarray(IDS))
            return model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits.numpy()
        if name == "llama":
            return model(input_ids=torch.tensor(np.asarray(IDS))).logits.numpy()
        output = model(
            input_ids=torch.tensor(np.asarray(TEXTS)),
            attention_mask=torch.ones(TEXTS.shape, dtype=torch.long),
        )
        return (output.logits if name == "classifier" else output.last_hidden_state).numpy()


def ours(name, model):
    return np.asarray(model(TEXTS)) if name in ("bert", "classifier") else outputs(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_peft_computes(tmp_path, name):
    plain = base(name)
    tuned = moved(add(plain, RULE))
    interop.export_huggingface(plain, tmp_path / "base")
    interop.save_peft(tuned, tmp_path / "adapter")
    expected = ours(name, tuned)
    assert np.max(np.abs(expected - ours(name, plain))) > 1e-3
    found = theirs(name, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    again = interop.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(ours(name, again), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_we_compute(tmp_path):
    plain = base("bert")
    interop.export_huggingface(plain, tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["query", "value"],
        rank_pattern={"layer.0.attention.self.query": 2},
        alpha_pattern={"value": 3},
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(input_ids=torch.tensor(np.asarray(TEXTS))).last_hidden_state.numpy()
    loaded = interop.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(np.asarray(loaded(TEXTS)), expected, rtol=0, atol=1e-5)
    ranks = {p: s.rank for p, s in models.adapter_settings(loaded.config).items()}
    assert ranks["layers/0/attention/query"] == 2
    assert ranks["layers/1/attention/query"] == 4


def test_what_has_no_counterpart(tmp_path):
    gpt2 = models.build(MODELS["gpt2"], rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="is a part of a larger matrix in transformers"):
        interop.save_peft(add(gpt2, (".*/query", {"rank": 2})), tmp_path)
    with pytest.raises(ValueError, match="holds plain low-rank adapters"):
        interop.save_peft(add(base("bert"), (".*/query", {"kind": "rescale"})), tmp_path)
    for more in ({}, {"offset_seed": 7}):  # a part of the base, too
        offset = add(base("bert"), (".*/query", {"rank": 2, "start": "offset", **more}))
        with pytest.raises(ValueError, match="holds plain low-rank adapters"):
            interop.save_peft(offset, tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter of peft"):
        interop.load_peft(base("bert"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', whose base is not"),
    ],
)
def test_settings_that_are_not_supported(tmp_path, changes, message):
    interop.save_peft(moved(add(base("bert"), RULE)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        interop.load_peft(base("bert"), tmp_path)


def test_another_model(tmp_path):
    interop.save_peft(moved(add(base("llama"), RULE)), tmp_path)
    with pytest.raises(ValueError, match="has tensors that do not fit the model"):
        interop.load_peft(base("bert"), tmp_path)
