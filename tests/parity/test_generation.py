"""Generated texts against transformers: greedy and beam search, token for token."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import interop, models
from tests.parity import language_families as families
from tests.parity import reference

GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "pad_token_id": 0}
LLAMA = {**families.SIZES_OF_LLAMA, "pad_token_id": 0}
T5 = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_heads": 4, "num_layers": 2}
DECODERS = {"gpt2": ("GPT2LMHeadModel", GPT2), "llama": ("LlamaForCausalLM", LLAMA)}
VERSIONS = {"1.0": {}, "1.1": {"feed_forward_proj": "gated-gelu"}}
NEW = 12


def _theirs(model, ids, mask, new: int = NEW, **settings) -> np.ndarray:
    """New tokens, padding included; a decoder's start token is left out."""
    tensors = {
        "inputs": reference.torch.tensor(ids).long(),
        "attention_mask": reference.torch.tensor(mask).long(),
    }
    config = reference.transformers.GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        decoder_start_token_id=0,
        **{"eos_token_id": model.config.eos_token_id, **settings},
    )
    # What the model's own file says by default would fill up what is None here.
    model.generation_config = config
    model.config.eos_token_id = config.eos_token_id
    made = reference.quietly(model.generate, **tensors, generation_config=config).numpy()
    return made[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :]


def _same(ours: models.Generated, theirs: np.ndarray, eos: int | None) -> np.ndarray:
    """Asserts equal texts; their lengths."""
    ids, lengths = np.asarray(ours.ids), np.asarray(ours.lengths)
    for row, (text, length) in enumerate(zip(ids, lengths, strict=True)):
        ends = np.flatnonzero(theirs[row] == eos) if eos is not None else []
        expected = theirs[row][: ends[0] + 1] if len(ends) else theirs[row]
        np.testing.assert_array_equal(text[:length], expected, err_msg=f"row {row}")
        assert (text[length:] == 0).all()
    return lengths


def _inputs(seed: int, batch: int = 12):
    """Ids, and a mask of left padding."""
    ids = families.token_ids((batch, 7), seed)
    mask = np.ones((batch, 7), int)
    for row in range(1, batch):
        mask[row, : row % 7] = 0
    return np.where(mask == 1, ids, 0), mask


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_decoder(tmp_path, kind, padding):
    name, settings = DECODERS[kind]
    theirs = families.model(name, 1, 0.3, **settings)
    loaded = interop.load_pretrained(families.saved(theirs, tmp_path))
    ids, mask = _inputs(0)
    given = None if padding == "none" else mask
    # An end that some rows reach early: the token the first row makes at its fourth place.
    never = _theirs(theirs, ids, np.ones_like(ids) if given is None else mask, eos_token_id=None)
    eos = int(never[0, 3])
    for end in (None, eos):
        ours = models.generate(
            models.reconfigure(loaded, eos_id=end, pad_id=0),
            jnp.asarray(ids),
            None if given is None else jnp.asarray(given),
            max_new_tokens=NEW,
        )
        expected = _theirs(
            theirs, ids, np.ones_like(ids) if given is None else mask, eos_token_id=end
        )
        lengths = _same(ours, expected, end)
        assert (lengths.min() < NEW) == (end is not None)
    assert len(np.unique(never)) > 5


@pytest.mark.parametrize(("kind", "length_penalty"), [("gpt2", 1.0), ("llama", -1.0)])
def test_beams_of_a_decoder(tmp_path, kind, length_penalty):
    name, settings = DECODERS[kind]
    theirs = families.model(name, 2, 0.3, **settings)
    loaded = interop.load_pretrained(families.saved(theirs, tmp_path))
    ids, mask = _inputs(1)
    eos = int(_theirs(theirs, ids, mask, eos_token_id=None)[0, 3])
    expected = _theirs(
        theirs, ids, mask, eos_token_id=eos, num_beams=3, length_penalty=length_penalty
    )
    ours = models.generate(
        models.reconfigure(loaded, eos_id=eos, pad_id=0),
        jnp.asarray(ids),
        jnp.asarray(mask),
        max_new_tokens=NEW,
        sampling=models.Sampling(beams=3, length_penalty=length_penalty),
    )
    _same(ours, expected, eos)


def _sources(seed: int):
    """Ids and a mask of padding on the right."""
    ids, mask = _inputs(seed)
    return ids[:, ::-1].copy(), mask[:, ::-1].copy()


def _t5(version: str, folder, seed: int):
    settings = {**T5, **VERSIONS[version], "pad_token_id": 0, "decoder_start_token_id": 0}
    theirs = families.model("T5ForConditionalGeneration", seed, 0.3, **settings)
    return theirs, interop.load_pretrained(families.saved(theirs, folder))


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_encoder_decoder(tmp_path, version):
    theirs, loaded = _t5(version, tmp_path, 3)
    ids, mask = _sources(2)
    plain = _theirs(theirs, ids, mask, eos_token_id=59)
    for eos in (59, int(plain[0, 2])):
        ours = models.generate(
            models.reconfigure(loaded, eos_id=eos),
            jnp.asarray(ids),
            jnp.asarray(mask),
            max_new_tokens=NEW,
        )
        lengths = _same(ours, _theirs(theirs, ids, mask, eos_token_id=eos), eos)
    assert lengths.min() < NEW


@pytest.mark.parametrize(
    ("version", "beams", "length_penalty"),
    [("1.0", 2, 1.0), ("1.0", 4, 0.0), ("1.0", 3, -1.0), ("1.1", 4, 1.0), ("1.1", 3, 2.0)],
)
def test_beams_of_an_encoder_decoder(tmp_path, version, beams, length_penalty):
    theirs, loaded = _t5(version, tmp_path, 4)
    ids, mask = _sources(3)
    plain = _theirs(theirs, ids, mask, eos_token_id=59)
    for eos in (59, int(plain[0, 2])):
        how = models.Sampling(beams=beams, length_penalty=length_penalty)
        ours = models.generate(
            models.reconfigure(loaded, eos_id=eos),
            jnp.asarray(ids),
            jnp.asarray(mask),
            max_new_tokens=NEW,
            sampling=how,
        )
        expected = _theirs(
            theirs, ids, mask, eos_token_id=eos, num_beams=beams, length_penalty=length_penalty
        )
        _same(ours, expected, eos)
