"""T5 against transformers, both ways: versions 1.0 and 1.1, padding, tied and untied outputs."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import io, models
from tests.parity import language_families as families
from tests.parity import reference

SIZES = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_heads": 4, "num_layers": 2}
# The scale keeps rounding of float32 below the tolerance; scores of T5 are not divided.
CASES = {
    "1.0": ({}, 0.2),
    "1.0 of other depth": ({"num_decoder_layers": 3, "feed_forward_proj": "gelu_new"}, 0.2),
    "1.1 tied, not scaled": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        0.1,
    ),
    "1.1 with silu": ({"feed_forward_proj": "gated-silu"}, 0.1),
    "near distances": (
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 5},
        0.2,
    ),
}


def _inputs(seed: int = 0):
    """Source padded on the right, and a target."""
    ids, targets = families.token_ids((3, 9), seed), families.token_ids((3, 7), seed + 1)
    mask = np.ones((3, 9), int)
    mask[1, 5:], mask[2, 1:] = 0, 0
    targets[:, 0] = 0
    return np.where(mask == 1, ids, 0), mask, targets


def _logits(theirs, inputs):
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return families.logits(theirs, **dict(zip(names, inputs, strict=True)))


def _untied(seed: int):
    """As 1.1 is published. transformers 5 ties what it makes itself."""
    settings = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    theirs = families.model("T5ForConditionalGeneration", seed, 0.1, **SIZES, **settings)
    weight = theirs.shared.weight.detach().flip(0) + 0.1
    theirs.lm_head.weight = reference.torch.nn.Parameter(weight)
    return theirs


@pytest.mark.parametrize(("settings", "scale"), CASES.values(), ids=CASES)
def test_logits(tmp_path, settings, scale):
    theirs = families.model("T5ForConditionalGeneration", 1, scale, **SIZES, **settings)
    ours, again = families.both_ways(theirs, tmp_path)
    assert isinstance(ours, models.EncoderDecoder)
    assert ours.config.tied
    assert ours.config.scale_logits == settings.get("tie_word_embeddings", True)
    inputs = _inputs()
    expected = _logits(theirs, inputs)
    families.assert_same_logits(families.ours(ours, *inputs), expected)
    np.testing.assert_array_equal(_logits(again, inputs), expected)
    assert again.config.scale_decoder_outputs == theirs.config.scale_decoder_outputs
    assert again.config.feed_forward_proj == theirs.config.feed_forward_proj
    assert again.config.dense_act_fn == theirs.config.dense_act_fn
    assert set(again.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize("version", [4, 5])
def test_an_output_map_of_its_own(tmp_path, version):
    """Version 4 of transformers writes tie_word_embeddings=false; version 5 the scaling alone."""
    theirs = _untied(seed=2)
    inputs = _inputs(1)
    expected = _logits(theirs, inputs)
    folder = families.saved(theirs, tmp_path / "theirs")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert content["scale_decoder_outputs"] is False
    content["tie_word_embeddings"] = version == 5
    if version == 4:
        del content["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    ours = io.load_pretrained(folder)
    assert not ours.config.tied
    families.assert_same_logits(families.ours(ours, *inputs), expected)
    io.export_huggingface(ours, tmp_path / "ours")
    again = reference.load(tmp_path / "ours", reference.transformers.AutoModelForSeq2SeqLM)
    np.testing.assert_array_equal(_logits(again, inputs), expected)
    assert not io.load_pretrained(tmp_path / "ours").config.tied


def test_a_model_without_an_output_map(tmp_path):
    """T5Model and old files with copies of the table; logits come from the table."""
    theirs = families.model("T5ForConditionalGeneration", 3, **SIZES)
    ours = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    tensors = io.read_weights(tmp_path / "theirs" / "model.safetensors")
    table = tensors["shared.weight"]
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors[name] = table
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[unused] = np.ones((32, 4), np.float32)
    content = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**content, "architectures": ["T5Model"]})
    io.write_folder(tmp_path / "old", tensors, {"format": "pt"}, {"config.json": text})
    again = io.load_pretrained(tmp_path / "old")
    for name, array in models.to_arrays(ours).items():
        np.testing.assert_array_equal(models.to_arrays(again)[name], array)


def test_half_precision_files_load_as_float32(tmp_path):
    theirs = families.model("T5ForConditionalGeneration", 4, **SIZES).to(reference.torch.bfloat16)
    ours = io.load_pretrained(families.saved(theirs, tmp_path))
    inputs = _inputs(2)
    expected = _logits(theirs.float(), inputs)
    families.assert_same_logits(families.ours(ours, *inputs), expected)


@pytest.mark.parametrize("name", ["MT5", "UMT5"])
def test_many_languages(tmp_path, name):
    """umT5 has a table of distances in every layer; mT5 never scales its logits."""
    theirs = families.model(f"{name}ForConditionalGeneration", 1, 0.1, **SIZES)
    ours, again = families.both_ways(theirs, tmp_path)
    inputs = _inputs()
    expected = _logits(theirs, inputs)
    families.assert_same_logits(families.ours(ours, *inputs), expected)
    np.testing.assert_array_equal(_logits(again, inputs), expected)
    assert ours.config.relative_per_layer == (name == "UMT5")
    # With a cache, one token after the other.
    found = models.generate(ours, inputs[0], inputs[1], max_new_tokens=5).ids
    targets = np.concatenate([np.zeros((3, 1), int), found], axis=1)[:, :5]
    steps = families.ours(ours, inputs[0], inputs[1], targets)
    np.testing.assert_array_equal(np.argmax(steps, -1)[:, 0], found[:, 0])


@pytest.mark.parametrize("name", ["T5", "MT5", "UMT5"])
def test_the_encoder_alone(tmp_path, name):
    theirs = families.model(f"{name}EncoderModel", 1, 0.1, **SIZES)
    ids, mask, _ = _inputs()
    ours = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    assert type(ours) is models.SourceEncoder
    expected = reference.outputs(theirs, ids, mask).last_hidden_state.numpy()
    found = families.ours(ours, ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)
    io.export_huggingface(ours, tmp_path / "ours")
    again = reference.load(tmp_path / "ours", type(theirs))
    np.testing.assert_array_equal(reference.outputs(again, ids, mask).last_hidden_state, expected)
    io.save_pretrained(ours, tmp_path / "own")
    assert io.load_pretrained(tmp_path / "own").config == ours.config
