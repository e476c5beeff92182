"""Folders of peft, against the package itself."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy

from mpojax import compression, io, models
from mpojax.io.peft import adapter_config as peft_config
from tests.io.test_adapter_kinds import IDS, MODELS, TEXTS, add, moved, outputs

pytestmark = pytest.mark.usefixtures("as_users_compile")

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
    io.export_huggingface(plain, tmp_path / "base")
    io.save_peft(tuned, tmp_path / "adapter")
    expected = ours(name, tuned)
    assert np.max(np.abs(expected - ours(name, plain))) > 1e-3
    found = theirs(name, tmp_path / "base", tmp_path / "adapter")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    again = io.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(ours(name, again), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_we_compute(tmp_path):
    plain = base("bert")
    io.export_huggingface(plain, tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["query", "value"],
        rank_pattern={"layer.0.attention.self.query": 2},
        alpha_pattern={"value": 3},
        init_lora_weights=False,
    )
    torch.manual_seed(0)  # of the updates
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(input_ids=torch.tensor(np.asarray(TEXTS))).last_hidden_state.numpy()
    loaded = io.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(np.asarray(loaded(TEXTS)), expected, rtol=0, atol=1e-5)
    ranks = {p: s.rank for p, s in models.adapter_settings(loaded.config).items()}
    assert ranks["layers/0/attention/query"] == 2
    assert ranks["layers/1/attention/query"] == 4


def test_what_has_no_counterpart(tmp_path):
    gpt2 = models.build(MODELS["gpt2"], rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="is a part of a larger matrix in transformers"):
        io.save_peft(add(gpt2, (".*/query", {"rank": 2})), tmp_path)
    with pytest.raises(ValueError, match="holds plain low-rank adapters"):
        io.save_peft(add(base("bert"), (".*/query", {"kind": "rescale"})), tmp_path)
    for more in ({}, {"offset_seed": 7}):  # a part of the base, too
        offset = add(base("bert"), (".*/query", {"rank": 2, "start": "offset", **more}))
        with pytest.raises(ValueError, match="holds plain low-rank adapters"):
            io.save_peft(offset, tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter of peft"):
        io.load_peft(base("bert"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', whose base is not"),
        ({"alora_invocation_tokens": [5, 7]}, r"alora_invocation_tokens=\[5, 7\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"use_rslorra": True}, "use_rslorra=True, which is not known, did you mean 'use_rslora'"),
        ({"of_next_year": {"size": 3}}, "of_next_year={'size': 3}, which is not known"),
        ({"r": "3"}, "r='3' must be an integer from 1"),
        ({"r": 10**12}, "r=1000000000000 must be an integer"),
        ({"r": 5}, r"the rank in adapter_config.json they must be \(16, 5\)"),
        ({"rank_pattern": {"(a+)+b": 3}}, "rank_pattern takes too many steps"),
        ({"rank_pattern": {"x" * 10**6: 3}}, "rank_pattern has 1,000,010 characters; 1,000 are"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern is no regular expression \(.*\(\(\)"),
        ({"target_modules": ["query"]}, "an update of .*, which target_modules"),
        ({"layers_to_transform": [0, 1]}, "layer.2.* leave out: peft would not use it"),
    ],
)
def test_settings_that_are_not_supported(tmp_path, changes, message):
    io.save_peft(moved(add(base("bert"), RULE)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        io.load_peft(base("bert"), tmp_path)


def test_settings_that_change_nothing(tmp_path):
    """What peft writes at its defaults, and what a newer one may leave empty."""
    tuned = moved(add(base("bert"), RULE))
    io.save_peft(tuned, tmp_path)
    path = tmp_path / "adapter_config.json"
    defaults = peft.LoraConfig(task_type="FEATURE_EXTRACTION", lora_dropout=0.1).to_dict()
    content = {n: v for n, v in defaults.items() if v is not None} | json.loads(path.read_text())
    path.write_text(json.dumps(content | {"of_next_year": None, "bias": "none", "revision": "x"}))
    loaded = io.load_peft(base("bert"), tmp_path)
    np.testing.assert_array_equal(ours("bert", loaded), ours("bert", tuned))
    known = peft_config.known()
    assert set(defaults) <= set(known), set(defaults) - set(known)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_head", [True, False])
def test_a_classifier_with_its_saved_head(tmp_path, with_head):
    """SEQ_CLS saves the classifier; a base without a head gets it."""
    plain = base("classifier")
    io.export_huggingface(plain, tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        layers_to_transform=[0, 2],
        layers_pattern="layer",
        init_lora_weights=False,
    )
    torch.manual_seed(0)  # of the updates
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        expected = wrapped(input_ids=torch.tensor(np.asarray(TEXTS))).logits.numpy()
    wrapped.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["modules_to_save"]
    if not with_head:
        arrays = {p: a for p, a in models.to_arrays(plain).items() if not p.startswith("head/")}
        plain = models.from_arrays(dataclasses.replace(plain.config, num_labels=None), {}, arrays)
    loaded = io.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(np.asarray(loaded(TEXTS)), expected, rtol=0, atol=1e-5)
    layers = {path.split("/")[1] for path in models.adapter_settings(loaded.config)}
    assert layers == {"0", "2"}


def test_a_saved_head_that_does_not_fit(tmp_path):
    io.save_peft(moved(add(base("classifier"), RULE)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    head = {"base_model.model.classifier.weight": np.zeros((5, 16), np.float32)}
    safetensors_numpy.save_file(safetensors_numpy.load_file(path) | head, path)
    with pytest.raises(ValueError, match=r"classifier.weight is \(16, 5\), must be \(16, 2\)"):
        io.load_peft(base("classifier"), tmp_path)
    with pytest.raises(ValueError, match="has no pooler to put it on"):
        io.load_peft(base("bert"), tmp_path)


_NEOX = {"positions": "rotary", "rotary_fraction": 0.5, "parallel_residual": True}
JOINT = {
    "gpt2": ("gpt2", {}, ["c_attn", "c_fc"]),
    "gpt_neox": ("gpt2", {**_NEOX, "activation": "gelu", "tied": False}, ["query_key_value"]),
    "phi3": ("llama", {"rotary_scaling": None}, ["qkv_proj", "gate_up_proj"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", JOINT)
def test_joint_matrices(tmp_path, name):
    """One down map for queries, keys and values; written back as it came."""
    like, changes, targets = JOINT[name]
    source = json.dumps({"model_type": name})
    config = dataclasses.replace(MODELS[like], **changes, source_config=source)
    plain = models.build(config, rngs=nnx.Rngs(1))
    io.export_huggingface(plain, tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.model_type == name
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False, use_rslora=True)
    torch.manual_seed(0)  # of the updates
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(input_ids=torch.tensor(np.asarray(IDS))).logits.numpy()
    loaded = io.load_peft(plain, tmp_path / "adapter")
    np.testing.assert_allclose(outputs(loaded), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs(compression.merge(loaded)), expected, rtol=0, atol=1e-4)
    io.save_peft(loaded, tmp_path / "again")
    one, other = (
        safetensors_numpy.load_file(tmp_path / folder / "adapter_model.safetensors")
        for folder in ("adapter", "again")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(outputs(io.load_peft(plain, tmp_path / "again")), outputs(loaded))


def test_pickled_weights_get_advice(tmp_path):
    io.save_peft(moved(add(base("bert"), RULE)), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"never unpickles.*weights_only=True"):
        io.load_peft(base("bert"), tmp_path)


def test_another_model(tmp_path):
    io.save_peft(moved(add(base("llama"), RULE)), tmp_path)
    with pytest.raises(ValueError, match="has tensors that do not fit the model"):
        io.load_peft(base("bert"), tmp_path)
