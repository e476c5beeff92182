"""GPT-2 against transformers, both ways: logits, padding, output maps of their own."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import io, models
from tests import marks
from tests.parity import language_families as families
from tests.parity import reference

SIZES = {"n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 32}


SETTINGS = {
    "usual": {},
    "untied": {"n_inner": 40, "activation_function": "relu", "tie_word_embeddings": False},
    "upcast": {"reorder_and_upcast_attn": True, "activation_function": "gelu"},
}


@pytest.mark.parametrize(
    ("padding", "name"),
    # Padding does not meet what the settings change.
    marks.slow_but(
        {("left", "usual"), ("none", "untied"), ("none", "upcast")},
        [(padding, name) for padding in ("none", "left") for name in SETTINGS],
    ),
)
def test_logits(tmp_path, padding, name):
    settings = SETTINGS[name]
    theirs = families.model("GPT2LMHeadModel", seed=1, **SIZES, **settings)
    ours, again = families.both_ways(theirs, tmp_path)
    assert isinstance(ours, models.LanguageModel)
    assert ours.config.tied == settings.get("tie_word_embeddings", True)
    ids = families.token_ids((3, 9))
    mask = np.ones((3, 9), int)
    if padding == "left":
        mask[1, :4], mask[2, :8] = 0, 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    expected = families.logits(theirs, **inputs)
    given = None if padding == "none" else mask
    families.assert_same_logits(families.ours(ours, ids, given), expected, mask == 1)
    np.testing.assert_array_equal(families.logits(again, **inputs), expected)
    assert set(again.state_dict()) == set(theirs.state_dict())
    assert again.config.n_inner == theirs.config.n_inner
    assert again.config.activation_function == theirs.config.activation_function


def test_names_of_the_published_file(tmp_path):
    """`gpt2` on the hub: no prefix, masks as buffers, and a second copy of the table may be there.

    Its class without an output map gives the logits of the token embedding.
    """
    theirs = families.model("GPT2LMHeadModel", seed=2, **SIZES)
    ours = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    tensors = io.read_weights(tmp_path / "theirs" / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    plain["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
    plain["h.1.attn.masked_bias"] = np.float32(-1e4)
    plain["lm_head.weight"] = plain["wte.weight"]
    content = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    for kind in ("GPT2LMHeadModel", "GPT2Model"):
        text = json.dumps({**content, "architectures": [kind], "n_ctx": 32})
        io.write_folder(tmp_path / kind, plain, {"format": "pt"}, {"config.json": text})
        loaded = models.to_arrays(io.load_pretrained(tmp_path / kind))
        for name, array in models.to_arrays(ours).items():
            np.testing.assert_array_equal(loaded[name], array)


def test_half_precision_files_load_as_float32(tmp_path):
    theirs = families.model("GPT2LMHeadModel", seed=3, **SIZES).to(reference.torch.bfloat16)
    ours = io.load_pretrained(families.saved(theirs, tmp_path))
    assert {array.dtype.name for array in models.to_arrays(ours).values()} == {"float32"}
    ids = families.token_ids((2, 8))
    expected = families.logits(theirs.float(), input_ids=ids)
    families.assert_same_logits(families.ours(ours, ids), expected)
