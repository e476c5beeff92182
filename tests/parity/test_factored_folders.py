"""Compressed models in transformers: folders with factors and their modeling file."""

import re

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import mpojax as mj
from mpojax import io, models, mpo
from tests.parity import families as encoders
from tests.parity import language_families as families
from tests.parity import reference
from tests.parity.test_decoder_families import CASES as DECODER_CASES
from tests.parity.test_t5 import SIZES as SIZES_OF_T5

transformers, torch = reference.transformers, reference.torch
# Matrix path (regular expression) -> how it is decomposed.
LAYERS = r"layers/\d+/(attention|feed_forward)/.+"


@pytest.fixture(autouse=True)
def _code_of_folders_in(tmp_path, monkeypatch):
    """transformers copies the code of a folder before it imports it."""
    for module in (transformers.dynamic_module_utils, transformers.utils.hub):
        if hasattr(module, "HF_MODULES_CACHE"):
            monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def low_rank(rows, columns):
    return mpo.MPOShape.low_rank(rows, columns, min(rows, columns) // 2)


def pivoted(rows, columns):
    return mpo.MPOShape.low_rank(rows, columns, min(rows, columns) // 2, pivoted=True)


def chain(rows, columns):
    return mpo.MPOShape.balanced(rows, columns, 3).with_bonds(4)


def compressed(model, shape_of, matrices=LAYERS):
    """The model with random factors of moderate size for the matrices that the pattern matches."""
    sizes = model.config.matrix_sizes()
    shapes = {p: shape_of(*size) for p, size in sizes.items() if re.fullmatch(matrices, p)}
    rng = np.random.default_rng(0)
    arrays = dict(models.to_arrays(model))
    for name, shape in models.array_shapes(model.config, shapes).items():
        if name in arrays:
            continue
        path, _, k = name.partition("/cores/")
        if int(k) == shapes[path].num_cores:
            arrays[name] = rng.permutation(shape[0]).astype(np.int32)
        else:
            arrays[name] = rng.standard_normal(shape).astype(np.float32) * 0.2
    dense = {models.dense_name(path) for path in shapes}
    arrays = {name: array for name, array in arrays.items() if name not in dense}
    return models.from_arrays(model.config, shapes, arrays)


def loaded(folder, kind="AutoModelForCausalLM", **more):
    auto = getattr(transformers, kind)
    return reference.quietly(auto.from_pretrained, folder, trust_remote_code=True, **more).eval()


def assert_close(found, expected):
    """Equal up to rounding."""
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def assert_same_counts(theirs, ours):
    counted = sum(p.numel() for p in theirs.parameters())
    counted += sum(b.numel() for name, b in theirs.named_buffers() if name.endswith(".order"))
    assert counted == sum(models.count_parameters(ours).values())


DECODERS = {
    "llama": ("LlamaForCausalLM", families.SIZES_OF_LLAMA),
    "llama tied": ("LlamaForCausalLM", {**families.SIZES_OF_LLAMA, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", families.SIZES_OF_LLAMA),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}),
}


@pytest.mark.parametrize(
    ("name", "shape_of"),
    [("llama", low_rank), ("llama tied", pivoted), ("gpt2", pivoted), ("qwen2", chain)],
)
def test_logits_and_generated_tokens_of_decoders(tmp_path, name, shape_of):
    kind, settings = DECODERS[name]
    theirs = families.model(kind, seed=1, **settings)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    ours = compressed(dense, shape_of)
    mj.save(ours, tmp_path / "small", format="huggingface_mpo")
    again = loaded(tmp_path / "small")
    assert_same_counts(again, ours)
    ids = families.token_ids((3, 9))
    expected = families.ours(ours, ids)
    for rows in (3, 30):  # few: through the cores; many: by the rebuilt matrix
        given = np.tile(ids, (rows // 3, 1))
        found = families.logits(again, input_ids=given)[:3]
        assert_close(found, expected)
    if shape_of is low_rank:
        tokens = mj.generate(ours, ids, max_new_tokens=6).ids
        made = reference.quietly(
            again.generate, torch.tensor(ids), max_new_tokens=6, do_sample=False
        ).numpy()[:, 9:]
        found = np.asarray(tokens)[:, : made.shape[1]]
        np.testing.assert_array_equal(found, np.where(made == 2, found, made))


@pytest.mark.parametrize(
    ("name", "shape_of"), [("llama tied", low_rank), ("llama", chain), ("gpt2", chain)]
)
def test_embeddings_and_heads(tmp_path, name, shape_of):
    kind, settings = DECODERS[name]
    theirs = families.model(kind, seed=2, **settings)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    ours = compressed(dense, shape_of, rf"{LAYERS}|embeddings/word|head")
    mj.save(ours, tmp_path / "small", format="huggingface_mpo")
    again = loaded(tmp_path / "small")
    assert_same_counts(again, ours)
    ids = families.token_ids((2, 9))
    expected = families.ours(ours, ids)
    assert_close(families.logits(again, input_ids=ids), expected)
    reference.quietly(again.save_pretrained, tmp_path / "resaved")
    resaved = loaded(tmp_path / "resaved")
    np.testing.assert_array_equal(
        families.logits(resaved, input_ids=ids), families.logits(again, input_ids=ids)
    )


@pytest.mark.parametrize(
    ("name", "kind", "shape_of"),
    [
        ("bert", "Model", low_rank),
        ("bert", "ForSequenceClassification", chain),
        ("albert", "ForSequenceClassification", low_rank),
        ("distilbert", "ForQuestionAnswering", chain),
        *(
            (name, "Model", low_rank)
            for name in ("roberta", "electra", "mpnet", "deberta", "modernbert", "mobilebert")
        ),
    ],
)
def test_encoders(tmp_path, name, kind, shape_of):
    auto = f"AutoModel{kind.removeprefix('Model')}"
    family = encoders.FAMILIES[name]
    dense = io.load_pretrained(families.saved(family.model(kind, 1), tmp_path / "theirs"))
    ours = compressed(dense, shape_of, rf"{LAYERS}|pooler|head|embeddings/(word|projection)")
    mj.save(ours, tmp_path / "small", format="huggingface_mpo")
    again = loaded(tmp_path / "small", auto)
    assert_same_counts(again, ours)
    inputs = family.inputs()
    outputs = reference.outputs(again, *inputs)
    if kind == "Model":
        real = inputs[1] == 1
        expected = np.asarray(families.run(ours, *inputs))[real]
        assert_close(outputs.last_hidden_state.numpy()[real], expected)
    elif kind == "ForSequenceClassification":
        assert_close(outputs.logits.numpy(), np.asarray(families.run(ours, *inputs)))
    else:
        real = inputs[1] == 1
        spans = np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], -1)
        assert_close(spans[real], np.asarray(families.run(ours, *inputs))[real])


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("pythia", "CausalLM"),  # whose output map transformers renames
        *((name, "CausalLM") for name in ("gemma2", "gemma3", "phi3", "olmo2", "smollm3", "opt")),
        ("qwen3", "SequenceClassification"),  # which holds a bare model of the Auto class
        ("pythia", "SequenceClassification"),
    ],
)
def test_other_decoders_and_their_heads(tmp_path, name, head):
    kind, settings = DECODER_CASES[name]
    settings = settings if head == "CausalLM" else {**settings, "pad_token_id": 0, "num_labels": 3}
    theirs = families.model(kind.replace("CausalLM", head), seed=1, **settings)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    ours = compressed(dense, low_rank)
    mj.save(ours, tmp_path / "small", format="huggingface_mpo")
    again = loaded(tmp_path / "small", f"AutoModelFor{head}")
    ids, mask = families.token_ids((3, 9)), np.ones((3, 9), int)
    found = reference.outputs(again, ids, mask).logits.numpy()
    assert_close(found, families.ours(ours, ids, mask))


def test_the_encoder_of_t5_alone(tmp_path):
    theirs = families.model("T5EncoderModel", 1, 0.1, **SIZES_OF_T5)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    ours = compressed(dense, low_rank, r"encoder/layers/\d+/(attention|feed_forward)/.+")
    mj.save(ours, tmp_path / "small", format="huggingface_mpo")
    again = loaded(tmp_path / "small", "AutoModel")
    ids, mask = families.token_ids((3, 9)), np.ones((3, 9), int)
    found = reference.outputs(again, ids, mask).last_hidden_state.numpy()
    assert ours.shapes
    assert_close(found, np.asarray(families.run(ours, ids, mask)))


def test_factors_in_8_bits(tmp_path):
    """The same error as in a folder of ours; files become smaller."""
    theirs = families.model("LlamaForCausalLM", seed=1, **families.SIZES_OF_LLAMA)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    ours = compressed(dense, low_rank)
    for name, format in (("own", "mpojax"), ("hf", "huggingface_mpo")):
        mj.save(ours, tmp_path / name, format=format, dtype="int8")
    again, rounded = loaded(tmp_path / "hf"), mj.load(tmp_path / "own")
    assert_same_counts(again, ours)
    ids = families.token_ids((2, 9))
    expected = families.ours(rounded, ids)
    assert_close(families.logits(again, input_ids=ids), expected)
    error = np.abs(expected - families.ours(ours, ids)).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.05
    reference.quietly(again.save_pretrained, tmp_path / "resaved")  # as float32 again
    assert_close(families.logits(loaded(tmp_path / "resaved"), input_ids=ids), expected)


def test_never_loaded_without_its_code(tmp_path):
    """Stock classes would fill what they do not find with random numbers."""
    theirs = families.model("LlamaForCausalLM", seed=1, **families.SIZES_OF_LLAMA)
    dense = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    mj.save(compressed(dense, low_rank), tmp_path / "small", format="huggingface_mpo")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "small", trust_remote_code=False
        )
    with pytest.raises(ValueError, match="holds a compressed model for transformers"):
        mj.load(tmp_path / "small")
    mj.save(dense, tmp_path / "small", format="huggingface")
    assert not (tmp_path / "small" / "modeling_mpo.py").exists()
