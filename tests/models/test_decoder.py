"""Decoders: KV cache, padding, causality, positions, groups of heads, chains, stacks, dtypes."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo, nn
from mpojax.nn import positions as positions_lib
from tests import marks
from tests.models import small_language as small

every_kind = pytest.mark.parametrize("config", small.DECODERS.values(), ids=small.DECODERS)
# One class and one stack: what differs has no part in it.
one_kind = pytest.mark.parametrize(
    "config", marks.slow_but([small.DECODERS["mixed"]], small.DECODERS.values()), ids=small.DECODERS
)
IDS = small.ids((3, 9))
MASK = small.left_padding(0, 4, 8, length=9)


@every_kind
@pytest.mark.parametrize(
    ("padded", "chunks"),
    marks.slow_but(
        {(True, (5, 1, 1, 1, 1)), (False, (9,)), (False, (1, 3, 3, 2))},
        [(p, c) for p in (False, True) for c in ((9,), (5, 1, 1, 1, 1), (1, 3, 3, 2))],
    ),
)
def test_kept_keys_give_the_logits_of_the_whole(config, chunks, padded):
    model = small.dense(config)
    mask = MASK if padded else None
    expected = small.run(model, IDS, mask)
    # The cache can hold more, and its later positions do not matter.
    wide = None if mask is None else jnp.pad(mask, ((0, 0), (0, 3)))
    cache, start, parts = model.start_cache(3, 12), 0, []
    for length in chunks:
        output = model.forward(IDS[:, start : start + length], wide, cache=cache)
        cache, start = output.cache, start + length
        parts.append(output.logits)
        assert int(cache.position) == start
    real = np.ones((3, 9), bool) if mask is None else np.asarray(mask)
    small.close(np.concatenate(parts, axis=1)[real], np.asarray(expected)[real])


@every_kind
def test_the_last_logits_alone(config):
    model = small.dense(config)
    last = model.forward(IDS, MASK, last_only=True).logits
    assert last.shape == (3, 1, 50)
    small.close(last, small.run(model, IDS, MASK)[:, -1:])


@every_kind
def test_padding_on_the_left_changes_nothing(config):
    model = small.dense(config)
    logits = np.asarray(small.run(model, IDS, MASK))
    assert np.isfinite(logits).all()
    for row, start in enumerate((0, 4, 8)):
        small.close(logits[row, start:], small.run(model, IDS[row : row + 1, start:])[0])
    other = jnp.where(MASK, IDS, 7)
    small.close(np.asarray(small.run(model, other, MASK))[MASK], logits[np.asarray(MASK)])
    # A row without any token must not poison the others' gradients.
    nothing = MASK.at[1].set(False)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(m(IDS, nothing))))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@every_kind
def test_no_token_sees_later_ones(config):
    model = small.dense(config)
    logits = np.asarray(small.run(model, IDS))
    for place in (1, 8):
        changed = np.asarray(small.run(model, IDS.at[:, place].set(IDS[:, place] % 40 + 5)))
        np.testing.assert_array_equal(changed[:, :place], logits[:, :place])
        assert np.abs(changed[:, place] - logits[:, place]).max() > 1e-2


def test_rotary_waves_by_hand():
    numbers = positions_lib.inverse_frequencies(8, 100.0)
    np.testing.assert_allclose(numbers, [1.0, 10**-0.5, 0.1, 10**-1.5], rtol=1e-6)
    # Waves of 2 pi (kept), 20 (between), 63 and 199 (stretched) places, of 32 first positions.
    scaled = positions_lib.inverse_frequencies(8, 100.0, nn.RopeScaling.of((4.0, 1.0, 4.0, 32)))
    share = (32 * 10**-0.5 / (2 * math.pi) - 1.0) / 3.0
    middle = 10**-0.5 * (share + (1 - share) / 4.0)
    np.testing.assert_allclose(scaled, [1.0, middle, 0.1 / 4, 10**-1.5 / 4], rtol=1e-6)


def test_settings_of_older_files():
    """Four numbers for LLaMA 3's scaling, and none of the later fields."""
    settings = json.loads(json.dumps(dataclasses.asdict(small.LLAMA)))
    assert models.DecoderConfig(**settings) == small.LLAMA
    names = ("rotary_scaling", "qk_norm", "pre_norm", "sliding_window", "embedding_scale")
    older = {name: value for name, value in settings.items() if name not in names}
    older["rotary_scaling"] = [4.0, 1.0, 4.0, 16]
    assert models.DecoderConfig(**older) == small.LLAMA
    assert hash(models.DecoderConfig(**older)) == hash(small.LLAMA)
    mixed = json.loads(json.dumps(dataclasses.asdict(small.MIXED)))
    assert models.DecoderConfig(**mixed) == small.MIXED


def test_rotary_scores_depend_on_distances_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.standard_normal((1, 5, 2, 6)), jnp.float32) for _ in range(2))
    places = jnp.asarray([[0, 1, 2, 5, 9]])

    def scores(places):
        turns = positions_lib.rotary_embedding(places, positions_lib.inverse_frequencies(6, 100.0))
        return jnp.einsum(
            "bsnd,btnd->bnst", *(positions_lib.apply_rope(x, turns) for x in (query, key))
        )

    small.close(scores(places + 17), scores(places))
    assert np.abs(scores(places * 2) - scores(places)).max() > 0.1


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_groups_equal_repeated_heads(kv_heads):
    config = dataclasses.replace(small.LLAMA, num_kv_heads=kv_heads)
    model = small.dense(config)
    arrays = models.to_arrays(model)
    for name, array in arrays.items():
        if "attention/key" in name or "attention/value" in name:
            heads = array.reshape(16, kv_heads, 6)
            arrays[name] = np.repeat(heads, 4 // kv_heads, axis=1).reshape(16, 24)
    whole = models.from_arrays(dataclasses.replace(config, num_kv_heads=4), {}, arrays)
    small.close(small.run(whole, IDS, MASK), small.run(model, IDS, MASK))
    assert model.start_cache(2, 5).keys.shape == (3, 2, kv_heads, 6, 5)


@every_kind
def test_every_matrix_may_be_a_chain(config):
    chains = small.chains(config)
    assert set(chains.shapes) == set(config.matrix_sizes())
    expected = small.run(small.dense(config), IDS, MASK)
    small.close(small.run(chains, IDS, MASK), expected)
    for merged in (compression.merge(chains), jax.jit(models.merged)(chains)):
        assert merged.shapes == {}
        small.close(small.run(merged, IDS, MASK), expected)


@one_kind
def test_stacks_of_different_shapes(config):
    arrays, shapes = dict(models.to_arrays(small.dense(config))), {}
    for path, bonds in (("layers/1/attention/query", None), ("layers/2/feed_forward/up", None)):
        kernel = arrays.pop(f"{path}/kernel")
        shapes[path] = mpo.MPOShape.balanced(*kernel.shape, n=3).with_bonds(bonds or 10**6)
        cores = mpo.decompose(kernel, shapes[path])
        arrays |= {f"{path}/cores/{k}": core for k, core in enumerate(cores)}
    mixed = models.from_arrays(config, shapes, arrays)
    broken = models.reconfigure(small.dense(config), scan_boundaries=(1,))
    assert mixed.tower.stack_ranges == (range(1), range(1, 2), range(2, 3))
    assert broken.tower.stack_ranges == (range(1), range(1, 3))
    expected = small.run(small.dense(config), IDS, MASK)
    for model in (mixed, broken):
        small.close(small.run(model, IDS, MASK), expected)
        cache = model.start_cache(3, 9)
        first = model.forward(IDS[:, :8], MASK, cache=cache)
        last = model.forward(IDS[:, 8:], MASK, cache=first.cache)
        small.close(last.logits[:, 0], expected[:, 8])


@every_kind
def test_flat_arrays_and_back(config):
    broken = models.reconfigure(small.chains(config), scan_boundaries=(2,))
    for model in (small.dense(config), small.chains(config), broken):
        arrays = models.to_arrays(model)
        shapes = models.array_shapes(model.config, model.shapes)
        assert {name: array.shape for name, array in arrays.items()} == shapes
        again = models.from_arrays(model.config, model.shapes, arrays)
        assert jax.tree.structure(again) == jax.tree.structure(model)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(models.to_arrays(broken)) == set(models.to_arrays(small.chains(config)))


@one_kind
def test_recomputed_layers_give_the_same(config):
    plain = small.dense(config)
    remat = models.reconfigure(plain, remat=True)

    @jax.jit
    def gradient(model):
        return jax.value_and_grad(lambda m: jnp.sum(jnp.sin(m(IDS, MASK))))(model)

    ours, theirs = gradient(remat), gradient(plain)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max() + 1e-6)
    # Nor does it stand in the way of the KV cache.
    cache = remat.start_cache(3, 9)
    small.close(remat.forward(IDS, MASK, cache=cache).logits, small.run(plain, IDS, MASK))


def test_a_layer_by_itself_is_recomputed_behind_a_barrier():
    """A loop of one layer is unrolled, and what its two passes share would be merged again."""
    stacked = models.reconfigure(small.dense(small.LLAMA), remat=True)
    for model, barrier in ((stacked, False), (models.unstacked(stacked), True)):
        program = jax.make_jaxpr(jax.grad(lambda m: jnp.sum(m(IDS, MASK))))(model)
        assert ("prevent_cse=True" in str(program)) == barrier


@every_kind
def test_half_precision(config):
    plain = small.dense(config)
    half = models.reconfigure(plain, dtype="bfloat16")
    logits, expected = small.run(half, IDS, MASK), small.run(plain, IDS, MASK)
    assert logits.dtype == jnp.float32
    assert np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)
    cache = half.start_cache(3, 9)
    assert cache.keys.dtype == jnp.bfloat16
    kept = half.forward(IDS, MASK, cache=cache).logits
    assert np.linalg.norm(kept - expected) < 0.05 * np.linalg.norm(expected)


@one_kind
def test_dropout_is_a_function_of_its_key(config):
    model = small.dense(config)
    one, again, other = (small.run(model, IDS, MASK, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    off = models.reconfigure(model, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    small.close(small.run(off, IDS, MASK, jax.random.key(0)), small.run(model, IDS, MASK))


def test_experts_report_what_they_did():
    config, _, model = small.with_experts(small.GPT2)
    output = model.forward(IDS, MASK)
    (statistics,) = output.routing
    assert isinstance(statistics, nn.RouterStatistics)
    np.testing.assert_array_equal(statistics.tokens, [MASK.sum()] * 3)
    np.testing.assert_allclose(np.asarray(statistics.load).sum(-1), 1.0, rtol=1e-6)
    small.close(small.run(jax.jit(models.merged)(model), IDS, MASK), output.logits)
    # Different experts in one layer: a stack of its own.
    few = dataclasses.replace(config.experts[0][1], number=2)
    mixed = dataclasses.replace(config, experts=(("layers/1/.*", few), *config.experts))
    model = models.build(mixed, rngs=nnx.Rngs(0))
    routing = model.forward(IDS, MASK).routing
    assert [entry.load.shape for entry in routing] == [(1, 4), (1, 2), (1, 4)]


def test_counts():
    def total(config):
        return sum(math.prod(shape) for shape in models.array_shapes(config).values())

    gpt2 = models.DecoderConfig(50_257, 768, 12, 12, 3072)
    assert total(gpt2) == 124_439_808
    smol = models.DecoderConfig(
        49_152,
        576,
        30,
        9,
        1536,
        num_kv_heads=3,
        positions="rotary",
        norm="rms_norm",
        activation="silu",
        gated=True,
        attention_bias=False,
        attention_out_bias=False,
        feed_forward_bias=False,
    )
    assert total(smol) == 134_515_008
    for config in small.DECODERS.values():
        assert sum(models.count_parameters(small.dense(config)).values()) == total(config)


def test_bad_input():
    model = small.dense(small.GPT2)
    with pytest.raises(ValueError, match="33 tokens is longer than max_positions=32"):
        model(small.ids((1, 33)))
    with pytest.raises(ValueError, match="33 tokens is longer than max_positions=32"):
        model.start_cache(1, 33)
    with pytest.raises(ValueError, match=r"must be integers \(batch, length\)"):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"shape \(0, 9\): give at least one row"):
        model(IDS[:0])
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 8\); it must be \(3, 9\)"):
        model(IDS, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"it must be \(3, 12\)"):
        model.forward(IDS, MASK, cache=model.start_cache(3, 12))
    cache = model.forward(IDS, cache=model.start_cache(3, 12)).cache
    with pytest.raises(
        ValueError, match="9 tokens do not fit into a cache of 12 positions, of which 9"
    ):
        model.forward(IDS, cache=cache)
    assert np.isnan(small.run(model, IDS.at[1, 3].set(50))[1, 3]).all()


def test_logits_of_16_bit_models_are_not_rounded_on_the_way():
    config = dataclasses.replace(small.GPT2, dtype="bfloat16")
    logits = np.asarray(small.run(small.dense(config), IDS))
    rounded = np.asarray(jnp.asarray(logits).astype(jnp.bfloat16).astype(jnp.float32))
    assert logits.dtype == np.float32
    assert np.mean(rounded == logits) < 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rotary_base", 0.0, "rotary_base=0.0 must be a finite number above 0"),
        ("rotary_scaling", (0.0, 1.0, 4.0, 32), "each a finite number above 0"),
        ("rotary_scaling", (8.0, 4.0, 4.0, 32), "low_freq_factor=4.0 must be below"),
        ("rotary_scaling", (8.0, 1.0, 4.0), "a list of 4 entries"),
        ("rotary_scaling", {"rope_type": "ntk", "factor": 2.0}, "must be one of 'linear'"),
        ("rotary_scaling", {"rope_type": "yarn", "factor": 2.0}, "also needs: original_max_pos"),
        ("rotary_scaling", {"rope_type": "yarn", "faktor": 2.0}, "did you mean 'factor'"),
        ("rotary_scaling", 2.0, "must be a nn.RopeScaling, its fields, or None"),
        ("rotary_fraction", 0.5, "head_size=6 times rotary_fraction=0.5 must be even"),
        ("no_rope_layers", (3,), "each an integer from 0 to 2"),
        ("pre_norm", False, "pre_norm=False needs output_norm=True"),
        ("qk_norm", "all", "qk_norm='all' must be one of 'head', 'whole'"),
    ],
)
def test_settings_that_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small.LLAMA, **{field: value})
