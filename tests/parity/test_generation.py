"""Generated texts against transformers: greedy and beam search, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import io, models
from tests import marks
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


def _same(ours: models.Generated, theirs: np.ndarray, eos) -> np.ndarray:
    """Asserts equal texts; their lengths."""
    ids, lengths = np.asarray(ours.ids), np.asarray(ours.lengths)
    for row, (text, length) in enumerate(zip(ids, lengths, strict=True)):
        ends = np.flatnonzero(np.isin(theirs[row], eos)) if eos is not None else []
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


@pytest.mark.parametrize(
    ("kind", "padding"),
    marks.slow_but(
        {("gpt2", "left"), ("llama", "left"), ("llama", "none")},
        [(kind, padding) for kind in DECODERS for padding in ("none", "left")],
    ),
)
def test_greedy_decoder(tmp_path, kind, padding):
    name, settings = DECODERS[kind]
    theirs = families.model(name, 1, 0.3, **settings)
    loaded = io.load_pretrained(families.saved(theirs, tmp_path))
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
    loaded = io.load_pretrained(families.saved(theirs, tmp_path))
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
    return theirs, io.load_pretrained(families.saved(theirs, folder))


# Layers of version 1.0: test_beams_of_an_encoder_decoder.
@pytest.mark.parametrize("version", marks.slow_but({"1.1"}, VERSIONS))
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
    # Other penalties: test_beams_of_a_decoder, and against all texts tests/models.
    marks.slow_but(
        {("1.0", 3, -1.0), ("1.1", 4, 1.0)},
        [("1.0", 2, 1.0), ("1.0", 4, 0.0), ("1.0", 3, -1.0), ("1.1", 4, 1.0), ("1.1", 3, 2.0)],
    ),
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


SEVERAL = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "llama": ("LlamaForCausalLM", LLAMA),
    "t5": ("T5ForConditionalGeneration", {**T5, "pad_token_id": 0, "decoder_start_token_id": 0}),
}


@pytest.mark.parametrize(
    ("kind", "beams"),
    marks.slow_but(
        {("gpt2", 3), ("llama", 1), ("t5", 1)}, [(kind, n) for kind in SEVERAL for n in (1, 3)]
    ),
)
def test_several_ends_of_a_folder(tmp_path, kind, beams):
    """Whatever file names them, each of them ends a text; the folder says how many beams."""
    name, settings = SEVERAL[kind]
    theirs = families.model(name, 5, 0.3, **settings)
    ids, mask = (rows[:4] for rows in (_sources(4) if kind == "t5" else _inputs(4)))
    never = _theirs(theirs, ids, mask, eos_token_id=59, num_beams=beams)
    first, second = (int(never[row, place]) for row, place in ((0, 2), (1, 4)))
    assert first != second
    for of_config, ends in ((first, [second, first, second]), ([second, first, 58], [first])):
        folder = tmp_path / str(ends)
        theirs.config.eos_token_id = of_config
        theirs.generation_config = reference.transformers.GenerationConfig(
            eos_token_id=ends, pad_token_id=0, decoder_start_token_id=0, num_beams=beams
        )
        loaded = io.load_pretrained(families.saved(theirs, folder))
        assert loaded.config.end_ids == tuple(dict.fromkeys(ends))
        assert loaded.config.sampling == models.Sampling(beams=beams)
        made = models.generate(loaded, ids, mask, max_new_tokens=NEW)
        lengths = _same(made, _theirs(theirs, ids, mask, eos_token_id=ends, num_beams=beams), ends)
        assert lengths.min() < NEW or beams > 1


@pytest.mark.parametrize("kind", SEVERAL)
def test_defaults_of_a_folder_are_written_back(tmp_path, kind):
    name, settings = SEVERAL[kind]
    theirs = families.model(name, 5, 0.3, **settings)
    theirs.generation_config = reference.transformers.GenerationConfig(
        eos_token_id=[7, 8], pad_token_id=3, do_sample=True, temperature=0.5, repetition_penalty=1.1
    )
    loaded = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    assert (loaded.config.end_ids, loaded.config.pad_id) == ((7, 8), 3)
    assert loaded.config.sampling == models.Sampling(temperature=0.5, top_k=50)
    io.save_pretrained(loaded, tmp_path / "saved")
    again = io.load_pretrained(tmp_path / "saved")
    assert again.config == loaded.config
    io.export_huggingface(again, tmp_path / "exported")
    auto = "AutoModelForSeq2SeqLM" if kind == "t5" else "AutoModelForCausalLM"
    back = reference.load(tmp_path / "exported", getattr(reference.transformers, auto))
    for key, value in theirs.generation_config.to_diff_dict().items():
        if value is not None and not key.startswith(("_", "transformers")):
            assert getattr(back.generation_config, key) == value
    changed = models.reconfigure(loaded, eos_id=9, sampling=models.Sampling(beams=4))
    io.export_huggingface(changed, tmp_path / "changed")
    back = reference.load(tmp_path / "changed", getattr(reference.transformers, auto))
    found = back.generation_config
    assert (found.eos_token_id, found.num_beams, found.do_sample) == (9, 4, False)
    assert io.load_pretrained(tmp_path / "changed").config.sampling.beams == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "top_k": 0, "top_p": 0.5},
        {"do_sample": True, "temperature": 1.7, "top_k": 7},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_draws_of_a_folder_are_from_their_distribution(tmp_path, settings):
    """The same tokens are possible, with the same probabilities."""
    theirs = families.model("LlamaForCausalLM", 6, 0.3, **LLAMA)
    theirs.generation_config = reference.transformers.GenerationConfig(
        eos_token_id=2, pad_token_id=0, **settings
    )
    loaded = io.load_pretrained(families.saved(theirs, tmp_path))
    logits = np.random.default_rng(0).normal(size=(5, families.VOCABULARY)).astype(np.float32)
    config, _ = theirs._prepare_generation_config(None)
    tensor = reference.torch.tensor(logits)
    expected = theirs._get_logits_processor(config)(None, tensor).softmax(-1).numpy()
    ours = models.sampling.filtered(jnp.asarray(logits), loaded.config.sampling)
    np.testing.assert_allclose(jax.nn.softmax(ours), expected, rtol=1e-5, atol=1e-7)
    assert (np.asarray(jax.nn.softmax(ours)) == 0).sum() == (expected == 0).sum() > 0


def test_the_caller_decides_over_the_folder(tmp_path):
    theirs = families.model("LlamaForCausalLM", 6, 0.3, **LLAMA)
    theirs.generation_config = reference.transformers.GenerationConfig(
        eos_token_id=2, pad_token_id=0, do_sample=True, temperature=0.6, top_p=0.9
    )
    loaded = io.load_pretrained(families.saved(theirs, tmp_path))
    ids, mask = (rows[:4] for rows in _inputs(0))
    sampled = models.generate(loaded, ids, mask, max_new_tokens=4, key=jax.random.key(0))
    given = models.generate(
        loaded, ids, mask, max_new_tokens=4, key=jax.random.key(0), sampling=loaded.config.sampling
    )
    np.testing.assert_array_equal(sampled.ids, given.ids)
    greedy = models.generate(loaded, ids, mask, max_new_tokens=4, sampling=models.Sampling())
    _same(greedy, _theirs(theirs, ids, mask, new=4, eos_token_id=2), 2)
    with pytest.raises(ValueError, match=r"the default of this model\) draws tokens: give a key"):
        models.generate(loaded, ids, mask, max_new_tokens=4)
