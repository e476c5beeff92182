"""Generation against a loop over the whole model without a KV cache; ends, beams, bad input."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models
from mpojax.models import generation, sampling
from tests import marks
from tests.models import small_language as small

DRAWN = models.Sampling(temperature=1.0)
IDS = small.ids((3, 5))
MASK = small.left_padding(0, 2, 4, length=5)
NEW = 6

every_kind = pytest.mark.parametrize("config", [*small.DECODERS.values(), *small.PAIRS.values()])


@jax.jit
def _logits_after(model, ids, mask, written, count):
    """Of the token after the first `count` of `written`, by one call for the whole text."""
    if isinstance(model, models.EncoderDecoder):
        start = jnp.full_like(written[:, :1], model.config.decoder_start_id)
        logits = model(ids, mask, jnp.concatenate([start, written], axis=1))
        return logits[:, count]
    real = jnp.pad(mask, ((0, 0), (0, written.shape[1])), constant_values=True)
    return model(jnp.concatenate([ids, written], axis=1), real)[:, ids.shape[1] - 1 + count]


def _by_hand(model, ids, mask, num: int = NEW) -> tuple[np.ndarray, np.ndarray]:
    """Greedy texts and lengths."""
    filler = model.config.pad_id if model.config.pad_id is not None else model.config.eos_id
    # The cells after `count` are not seen.
    written = np.full((len(ids), num), 7, np.int32)
    for count in range(num):
        logits = _logits_after(model, ids, mask, jnp.asarray(written), count)
        written[:, count] = np.argmax(logits, axis=-1)
    lengths = np.full(len(ids), num)
    for row, text in enumerate(written):
        ends = np.flatnonzero(text == model.config.eos_id)
        if len(ends):
            lengths[row] = ends[0] + 1
            text[ends[0] + 1 :] = filler
    return written, lengths


def _same(made: models.Generated, expected):
    np.testing.assert_array_equal(made.ids, expected[0])
    np.testing.assert_array_equal(made.lengths, expected[1])
    assert made.ids.dtype == made.lengths.dtype == jnp.int32


def _ending(model, ids, mask):
    """(the same model, a row): its end token ends this row, not at once, and not every row."""
    texts = _by_hand(models.reconfigure(model, eos_id=49), ids, mask)[0]
    for token in np.unique(texts):
        firsts = [np.flatnonzero(text == token)[:1].tolist() for text in texts]
        rows = [row for row, first in enumerate(firsts) if first and 0 < first[0] < NEW - 2]
        if rows and [] in firsts:
            return models.reconfigure(model, eos_id=int(token)), rows[0]
    raise AssertionError(f"no such token in {texts}")


@every_kind
def test_greedy(config):
    model = small.dense(dataclasses.replace(config, eos_id=49), seed=3)
    made = models.generate(model, IDS, MASK, max_new_tokens=NEW)
    _same(made, _by_hand(model, IDS, MASK))
    # One token alone: nothing is read after it.
    one = models.generate(model, IDS, MASK, max_new_tokens=1)
    np.testing.assert_array_equal(one.ids, made.ids[:, :1])


@pytest.mark.parametrize("config", [small.LLAMA, small.T5_GATED], ids=["llama", "1.1"])
def test_early_ends(config):
    model, row = _ending(small.dense(config, seed=3), IDS, MASK)
    expected = _by_hand(model, IDS, MASK)
    assert 1 < expected[1][row] < NEW == expected[1].max()
    _same(models.generate(model, IDS, MASK, max_new_tokens=NEW), expected)
    padded = models.reconfigure(model, pad_id=48)
    made = models.generate(padded, IDS, MASK, max_new_tokens=NEW)
    assert (np.asarray(made.ids)[row, int(made.lengths[row]) :] == 48).all()
    _same(made, _by_hand(padded, IDS, MASK))


def test_without_an_end_nothing_ends():
    model = small.dense(small.GPT2)
    assert model.config.eos_id is None
    made = models.generate(model, IDS, max_new_tokens=NEW)
    np.testing.assert_array_equal(made.lengths, [NEW] * 3)


def test_the_loop_stops_with_the_last_row(monkeypatch):
    steps = []
    original = sampling.next_tokens

    def counted(logits, how, keys, place):
        jax.debug.callback(lambda: steps.append(1))
        return original(logits, how, keys, place)

    model, row = _ending(small.dense(small.GPT2, seed=3), IDS, MASK)
    alone = slice(row, row + 1)
    monkeypatch.setattr(sampling, "next_tokens", counted)
    made = models.generate(model, IDS[alone], MASK[alone], max_new_tokens=17)
    jax.effects_barrier()
    assert len(steps) == int(made.lengths[0]) < NEW


@pytest.mark.parametrize(
    "config", marks.slow_but([small.LLAMA], [small.LLAMA, small.T5]), ids=["llama", "1.0"]
)
def test_chains_and_experts(config):
    chains = small.chains(dataclasses.replace(config, eos_id=49), seed=3)
    expected = _by_hand(small.dense(chains.config, seed=3), IDS, MASK)
    for model in (chains, jax.jit(models.merged)(chains)):
        _same(models.generate(model, IDS, MASK, max_new_tokens=NEW), expected)
    _, _, experts = small.with_experts(chains.config)
    expected = _by_hand(experts, IDS, MASK)
    for model in (experts, jax.jit(models.merged)(experts)):
        _same(models.generate(model, IDS, MASK, max_new_tokens=NEW), expected)


@pytest.mark.parametrize("config", [small.GPT2, small.T5], ids=["gpt2", "1.0"])
@pytest.mark.slow
def test_experts_never_drop_a_token(config):
    _, _, free = small.with_experts(config)
    narrow, _, model = small.with_experts(config, capacity_factor=0.3)
    ids = jnp.repeat(IDS[:1], 6, axis=0)  # Equal rows want the same experts.
    made = models.generate(model, ids, max_new_tokens=NEW)
    np.testing.assert_array_equal(made.ids, models.generate(free, ids, max_new_tokens=NEW).ids)
    np.testing.assert_array_equal(made.ids, jnp.repeat(made.ids[:1], 6, axis=0))
    # The model itself is as it was, and drops.
    inputs = (ids,) if config is small.GPT2 else (ids, None, ids)
    wide = models.dropless(model)
    for one, drops in ((model, True), (wide, False)):
        output = jax.jit(lambda m: m.forward(*inputs))(one)
        assert (np.asarray(output.routing[0].dropped).max() > 0) == drops
    small.close(wide(*inputs), free(*inputs))
    assert model.config == narrow
    assert wide.config == free.config
    assert models.dropless(free) is free
    one, other = models.to_arrays(wide), models.to_arrays(model)
    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_nothing_is_compiled_for_another_prompt(monkeypatch):
    traced = []
    original = sampling.next_tokens
    counted = lambda *arguments: traced.append(1) or original(*arguments)  # noqa: E731
    monkeypatch.setattr(sampling, "next_tokens", counted)
    model = small.dense(small.LLAMA, seed=5)
    before = generation._generate._cache_size()
    for seed in range(3):
        key = jax.random.key(seed)
        mask = small.left_padding(seed, 0, length=6)
        models.generate(
            model, small.ids((2, 6), seed), mask, max_new_tokens=4, sampling=DRAWN, key=key
        )
    # Once for the prompt's token and once for the loop; a second model has the same program.
    assert len(traced) == 2
    models.generate(
        small.dense(small.LLAMA, seed=6),
        np.asarray(small.ids((2, 6))),
        np.ones((2, 6), np.int64),
        max_new_tokens=4,
        sampling=DRAWN,
        key=jax.random.key(0),
    )
    assert len(traced) == 2
    assert generation._generate._cache_size() == before + 1


def test_works_under_jit_and_in_half_precision():
    model = small.dense(small.LLAMA, seed=3)
    whole = jax.jit(lambda m, ids, mask: models.generate(m, ids, mask, max_new_tokens=NEW))
    expected = models.generate(model, IDS, MASK, max_new_tokens=NEW)
    np.testing.assert_array_equal(whole(model, IDS, MASK).ids, expected.ids)
    half = models.reconfigure(model, dtype="bfloat16")
    made = models.generate(half, IDS, MASK, max_new_tokens=NEW)
    assert np.mean(made.ids == expected.ids) > 0.5


@pytest.mark.parametrize(
    "config", marks.slow_but([small.GPT2], [small.GPT2, small.T5]), ids=["gpt2", "1.0"]
)
def test_draws_are_a_function_of_key_row_and_prompt(config):
    model = small.dense(dataclasses.replace(config, eos_id=1), seed=3)

    def draw(ids, seed=0, num=NEW, model=model):
        key = jax.random.key(seed)
        return models.generate(model, ids, max_new_tokens=num, sampling=DRAWN, key=key).ids

    made = draw(IDS)
    np.testing.assert_array_equal(draw(IDS), made)
    assert (draw(IDS, seed=1) != made).any()
    np.testing.assert_array_equal(draw(IDS[:2]), made[:2])
    np.testing.assert_array_equal(draw(IDS.at[1:].set(5))[0], made[0])
    np.testing.assert_array_equal(draw(IDS, num=NEW - 2), made[:, : NEW - 2])
    same = draw(jnp.repeat(IDS[:1], 3, axis=0))
    assert (same[0] != same[1]).any()


@pytest.mark.parametrize(
    ("kind", "length_penalty"),
    marks.slow_but(
        {("decoder", 0.0), ("pair", 1.0), ("pair", -1.0)},
        [(kind, penalty) for kind in ("decoder", "pair") for penalty in (0.0, 1.0, -1.0)],
    ),
)
def test_wide_beams_find_the_best_of_all_texts(kind, length_penalty):
    """With as many beams as there are texts nothing is pruned."""
    settings = {"vocab_size": 4, "eos_id": 2, "pad_id": 0}
    config = dataclasses.replace(small.LLAMA if kind == "decoder" else small.T5, **settings)
    model = small.dense(config, seed=4)
    ids, mask, num = IDS % 4, MASK, 3
    how = models.Sampling(beams=4**num, length_penalty=length_penalty)
    made = models.generate(model, ids, mask, max_new_tokens=num, sampling=how)
    texts = np.asarray(list(itertools.product(range(4), repeat=num)), np.int32)

    for row in range(3):
        many = (jnp.repeat(array[row : row + 1], len(texts), axis=0) for array in (ids, mask))
        many = tuple(many)
        logits = [_logits_after(model, *many, jnp.asarray(texts), count) for count in range(num)]
        gains = np.asarray(jax.nn.log_softmax(jnp.stack(logits, axis=1)))
        best = (-np.inf, None)
        for text, gain in zip(texts, gains, strict=True):
            ends = np.flatnonzero(text == 2)
            length = ends[0] + 1 if len(ends) else num
            score = gain[np.arange(length), text[:length]].sum() / length**length_penalty
            best = max(best, (score, tuple(text[:length])))
        length = int(made.lengths[row])
        assert tuple(np.asarray(made.ids[row, :length])) == best[1]
        assert (np.asarray(made.ids[row, length:]) == 0).all()


def test_up_to_the_last_position_and_from_lists():
    model = small.dense(small.LLAMA)  # of 32 positions, of which the last new token needs none
    made = models.generate(model, IDS, max_new_tokens=28)
    few = models.generate(model, np.asarray(IDS).tolist(), max_new_tokens=4)
    np.testing.assert_array_equal(few.ids, made.ids[:, :4])


def test_bad_input():
    model = small.dense(small.LLAMA)
    few = {"max_new_tokens": 4}
    cases = [
        ((IDS,), {"max_new_tokens": 29}, r"prompt of 5 tokens and max_new_tokens=29.*positions=32"),
        ((IDS,), {"max_new_tokens": 0}, "max_new_tokens=0 must be"),
        ((IDS[0],), few, r"must be integers \(batch, length\)"),
        ((IDS.astype(float),), few, r"must be integers \(batch, length\)"),
        ((IDS[:, :0],), few, "give at least one row and one token"),
        (([[1, 2], [3]],), few, "rows differ in length: pad the prompts"),
        ((IDS, MASK.at[1].set(False)), few, "no real token in row 1: an empty prompt"),
        ((IDS, MASK[:, ::-1]), few, "padding after a real token in row 1.*pad prompts on the left"),
        ((IDS, MASK[:, 1:]), few, r"attention_mask has shape \(3, 4\)"),
        ((IDS + 40,), few, r"ids in .*the model knows 0\.\.49"),
        ((IDS,), {**few, "sampling": DRAWN}, r"temperature=1\.0 draws tokens: give a key"),
    ]
    for arguments, more, message in cases:
        with pytest.raises(ValueError, match=message):
            models.generate(model, *arguments, **more)
    with pytest.raises(ValueError, match="a dict generates no text"):
        models.generate({}, IDS, **few)
    # A source may be padded anywhere, and has no longest length.
    pair = small.dense(small.T5)
    models.generate(pair, small.ids((1, 40)), small.left_padding(20, length=40), **few)


@pytest.mark.parametrize("kind", marks.slow_but({"llama"}, ("llama", "1.0")))
def test_layers_stored_by_themselves(kind):
    """The same arrays and tokens; nothing is copied out of a stack."""
    model = small.chains({**small.DECODERS, **small.PAIRS}[kind])
    unstacked = models.unstacked(model)
    before, after = models.to_arrays(model), models.to_arrays(unstacked)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    tower = unstacked.tower if kind == "llama" else unstacked.towers["decoder"]
    assert [len(layers) for layers in tower.stack_ranges] == [1, 1, 1]
    made, expected = (models.generate(m, IDS, MASK, max_new_tokens=3) for m in (unstacked, model))
    np.testing.assert_array_equal(made.ids, expected.ids)
