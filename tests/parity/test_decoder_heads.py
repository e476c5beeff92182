"""Decoders with heads of labels, and without any, against transformers, both ways."""

import logging

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import compression, io, models
from tests import marks
from tests.parity import language_families as families
from tests.parity import reference

LLAMA = {**families.SIZES_OF_LLAMA, "pad_token_id": 0}
SIZES = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Gemma3Text": {**LLAMA, "head_dim": 8, "sliding_window": 5},
    "GPT2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "pad_token_id": 0},
}


def _batch():
    """Ids padded on the right, and a mask."""
    ids, mask = families.token_ids((3, 9)), np.ones((3, 9), int)
    mask[1, 5:] = mask[2, 1:] = 0
    return np.where(mask == 1, ids, 0), mask


def _both(theirs, folder):
    """(ours, theirs again)."""
    ours = io.load_pretrained(families.saved(theirs, folder / "theirs"))
    io.export_huggingface(ours, folder / "ours")
    return ours, reference.load(folder / "ours", type(theirs))


# One head for all decoders; of Qwen2 and Llama themselves: test_llama.py.
@pytest.mark.parametrize("name", marks.slow_but({"Gemma3Text", "GPT2"}, SIZES))
def test_classifiers(tmp_path, name):
    """The head reads the last real token."""
    theirs = families.model(f"{name}ForSequenceClassification", num_labels=3, **SIZES[name])
    ids, mask = _batch()
    expected = families.logits(theirs, input_ids=ids, attention_mask=mask)
    ours, again = _both(theirs, tmp_path)
    assert isinstance(ours, models.SequenceClassifier)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(families.ours(ours, ids, mask), expected, rtol=0, atol=1e-5)
    found = families.logits(again, input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    small, _ = compression.compress(ours, [(".*", {"cores": 3})])
    np.testing.assert_allclose(families.ours(small, ids, mask), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_labels_of_tokens(tmp_path, name):
    theirs = families.model(f"{name}ForTokenClassification", num_labels=3, **SIZES[name])
    ids, mask = _batch()
    expected = families.logits(theirs, input_ids=ids, attention_mask=mask)
    ours, again = _both(theirs, tmp_path)
    assert isinstance(ours, models.TokenClassifier)
    families.assert_same_logits(families.ours(ours, ids, mask), expected, mask == 1)
    found = families.logits(again, input_ids=ids, attention_mask=mask)
    np.testing.assert_array_equal(found, expected)
    io.save_pretrained(ours, tmp_path / "own")
    assert io.load_pretrained(tmp_path / "own").config == ours.config


def test_a_decoder_without_an_output_map(tmp_path, caplog):
    """It gives hidden states, and says what is missing."""
    theirs = families.model("LlamaModel", tie_word_embeddings=False, **LLAMA)
    ids, mask = _batch()
    with caplog.at_level(logging.WARNING, logger="absl"):
        ours, again = _both(theirs, tmp_path)
    assert "no output map" in caplog.text
    assert "hidden states and no logits; for those load a LlamaForCausalLM" in caplog.text
    assert type(ours) is models.Decoder
    expected = reference.outputs(theirs, ids, mask).last_hidden_state.numpy()
    found = families.ours(ours, ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(reference.outputs(again, ids, mask).last_hidden_state, expected)
    with pytest.raises(ValueError, match="a Decoder generates no text"):
        models.generate(ours, ids[:1], max_new_tokens=2)
    with pytest.raises(ValueError, match="decoders read one text a row"):
        ours(ids, segments=ids)


def test_labels_and_heads_go_together():
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_heads": 2}
    for more in ({"head": "classifier"}, {"num_labels": 3}, {"head": "none", "num_labels": 3}):
        with pytest.raises(ValueError, match=r"head='\w+' with num_labels=.*have labels"):
            models.DecoderConfig(**sizes, intermediate_size=8, **more)
