"""Encoder-decoders: KV cache, padding, causality, distances, chains, stacks, dtypes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models, mpo, nn
from mpojax.nn import positions as positions_lib
from tests import marks
from tests.models import small_language as small

every_kind = pytest.mark.parametrize("config", small.PAIRS.values(), ids=small.PAIRS)
# Gates, activations and ties, in which they differ, have no part in it.
either_kind = pytest.mark.parametrize(
    "config", marks.slow_but([small.T5_GATED], small.PAIRS.values()), ids=small.PAIRS
)
IDS = small.ids((3, 7))
MASK = ~small.left_padding(7, 4, 1, length=7)
TARGETS = small.ids((3, 6), 1).at[:, 0].set(0)
INPUTS = (IDS, MASK, TARGETS)


@every_kind
@pytest.mark.parametrize("chunks", [(6,), (1, 1, 1, 3)])
def test_kept_keys_give_the_logits_of_the_whole(config, chunks):
    model = small.dense(config)
    cache, start, parts = model.start_cache(model.encode(IDS, MASK), 8), 0, []
    assert cache.encoder_keys_values[0].shape == (3, 3, 7, 4, 5)
    for length in chunks:
        output = model.decode(TARGETS[:, start : start + length], MASK, cache)
        cache, start = output.cache, start + length
        parts.append(output.logits)
    small.close(np.concatenate(parts, axis=1), small.run(model, *INPUTS))


@either_kind
def test_padding_of_the_source_changes_nothing(config):
    model = small.dense(config)
    logits = np.asarray(small.run(model, *INPUTS))
    assert np.isfinite(logits).all()
    other = jnp.where(MASK, IDS, 9)
    np.testing.assert_array_equal(small.run(model, other, MASK, TARGETS), logits)
    for row, length in enumerate((7, 4, 1)):
        part = slice(row, row + 1)
        alone = small.run(model, IDS[part, :length], None, TARGETS[part])
        small.close(logits[row], alone[0])
    # A row of padding alone must not poison the others' gradients.
    nothing = MASK.at[1].set(False)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(m(IDS, nothing, TARGETS))))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_several_targets_of_one_source():
    model = small.dense(next(iter(small.PAIRS.values())))
    targets = jnp.concatenate([TARGETS, TARGETS[::-1]], axis=1).reshape(6, 6)
    each = (jnp.repeat(IDS, 2, axis=0), jnp.repeat(MASK, 2, axis=0), targets)
    small.close(model(IDS, MASK, targets), model(*each))
    with pytest.raises(ValueError, match="has 5 rows for 3 sources; it must have a multiple"):
        model(IDS, MASK, targets[:5])


@every_kind
def test_who_sees_whom(config):
    model = small.dense(config)
    logits = np.asarray(small.run(model, *INPUTS))
    for place in (1, 5):
        changed = TARGETS.at[:, place].set(TARGETS[:, place] % 40 + 5)
        after = np.asarray(small.run(model, IDS, MASK, changed))
        np.testing.assert_array_equal(after[:, :place], logits[:, :place])
        assert np.abs(after[:, place] - logits[:, place]).max() > 1e-2
    # The encoder looks both ways: its first place knows of the last one.
    hidden = model.encode(IDS[:1])
    other = model.encode(IDS[:1].at[0, -1].set(5))
    assert np.abs(hidden[0, 0] - other[0, 0]).max() > 1e-3


def test_buckets_of_distances_by_hand():
    """Half of 8 buckets are exact, the others share 4..15 by logarithm; later keys are 0."""
    buckets = jax.jit(positions_lib.relative_buckets, static_argnums=(1, 2, 3))
    distances = np.array([5, 0, -1, -3, -4, -5, -6, -9, -12, -16, -1000], np.int32)
    found = buckets(distances, 8, 16, False)
    np.testing.assert_array_equal(found, [0, 0, 1, 3, 4, 4, 5, 6, 7, 7, 7])
    # Both ways: 4 buckets each, 2 of them exact, 2..7 and 8.. by logarithm; later keys from 4 on.
    distances = np.array([0, -1, -2, -5, -6, -50, 1, 2, 5, 6, 50], np.int32)
    found = buckets(distances, 8, 16, True)
    np.testing.assert_array_equal(found, [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7])
    # As published for 32 buckets up to 128.
    found = buckets(-np.array([15, 16, 19, 127, 128], np.int32), 32, 128, False)
    np.testing.assert_array_equal(found, [15, 16, 17, 31, 31])


def test_each_tower_has_one_table_of_distances():
    model = small.dense(small.T5)
    names = [name for name in models.to_arrays(model) if "relative_bias" in name]
    assert names == ["decoder/relative_bias/table", "encoder/relative_bias/table"]
    places = np.arange(4, dtype=np.int32)
    bias = np.asarray(jax.jit(model.towers["decoder"].relative_bias)(places, places))
    assert bias.shape == (1, 4, 4, 4)
    table = models.to_arrays(model)["decoder/relative_bias/table"]
    np.testing.assert_array_equal(bias[0, :, 3, 1], table[2])
    np.testing.assert_array_equal(bias[0, :, 0, 3], table[0])


def test_tied_logits_are_scaled():
    model = small.dense(small.T5)
    plain = models.reconfigure(model, scale_logits=False)
    small.close(4.0 * small.run(model, *INPUTS), small.run(plain, *INPUTS))


@every_kind
def test_every_matrix_may_be_a_chain(config):
    chains = small.chains(config)
    assert set(chains.shapes) == set(config.matrix_sizes())
    expected = small.run(small.dense(config), *INPUTS)
    small.close(small.run(chains, *INPUTS), expected)
    merged = jax.jit(models.merged)(chains)
    assert merged.shapes == {}
    small.close(small.run(merged, *INPUTS), expected)


@either_kind
def test_stacks_of_different_shapes(config):
    arrays, shapes = dict(models.to_arrays(small.dense(config))), {}
    for path in ("encoder/layers/1/attention/key", "decoder/layers/1/cross_attention/value"):
        kernel = arrays.pop(f"{path}/kernel")
        shapes[path] = mpo.MPOShape.balanced(*kernel.shape, n=3)
        cores = mpo.decompose(kernel, shapes[path])
        arrays |= {f"{path}/cores/{k}": core for k, core in enumerate(cores)}
    mixed = models.from_arrays(config, shapes, arrays)
    assert mixed.towers["encoder"].stack_ranges == (range(1), range(1, 2))
    assert mixed.towers["decoder"].stack_ranges == (range(1), range(1, 2), range(2, 3))
    expected = small.run(small.dense(config), *INPUTS)
    small.close(small.run(mixed, *INPUTS), expected)
    cache = mixed.start_cache(mixed.encode(IDS, MASK), 6)
    small.close(mixed.decode(TARGETS, MASK, cache).logits, expected)


@every_kind
def test_flat_arrays_and_back(config):
    broken = models.reconfigure(small.chains(config), scan_boundaries=(1, 2))
    for model in (small.dense(config), broken):
        arrays = models.to_arrays(model)
        shapes = models.array_shapes(model.config, model.shapes)
        assert {name: array.shape for name, array in arrays.items()} == shapes
        again = models.from_arrays(model.config, model.shapes, arrays)
        assert jax.tree.structure(again) == jax.tree.structure(model)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(one, other)
        assert sum(models.count_parameters(model).values()) == sum(a.size for a in arrays.values())


@either_kind
def test_recomputed_layers_give_the_same(config):
    plain = small.dense(config)

    @jax.jit
    def gradient(model):
        return jax.value_and_grad(lambda m: jnp.sum(jnp.sin(m(*INPUTS))))(model)

    ours, theirs = gradient(models.reconfigure(plain, remat=True)), gradient(plain)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max() + 1e-6)


@either_kind
def test_half_precision(config):
    plain = small.dense(config)
    half = models.reconfigure(plain, dtype="bfloat16")
    logits, expected = small.run(half, *INPUTS), small.run(plain, *INPUTS)
    assert logits.dtype == jnp.float32
    assert np.linalg.norm(logits - expected) < 0.1 * np.linalg.norm(expected)
    cache = half.start_cache(half.encode(IDS, MASK), 6)
    assert cache.keys.dtype == cache.encoder_keys_values[1].dtype == jnp.bfloat16
    kept = half.decode(TARGETS, MASK, cache).logits
    assert np.linalg.norm(kept - expected) < 0.1 * np.linalg.norm(expected)


def test_dropout_is_a_function_of_its_key():
    model = small.dense(small.T5)
    keyed = {"dropout_key": jax.random.key(0)}
    one, again = (small.run(model, *INPUTS, **keyed) for _ in range(2))
    other = small.run(model, *INPUTS, dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    off = models.reconfigure(model, dropout=0.0)
    small.close(small.run(off, *INPUTS, **keyed), small.run(model, *INPUTS))


def test_experts_in_both_stacks():
    config, _, model = small.with_experts(small.T5)
    real = small.left_padding(0, 0, 3, length=6)[:, ::-1]
    output = model.forward(*INPUTS, real)
    of_encoder, of_decoder = output.routing
    np.testing.assert_array_equal(of_encoder.tokens, [MASK.sum()] * 2)
    np.testing.assert_array_equal(of_decoder.tokens, [real.sum()] * 3)
    merged = small.run(jax.jit(models.merged)(model), *INPUTS, real)
    small.close(merged, output.logits)
    one_stack = dataclasses.replace(config, experts=(("decoder/.*", nn.ExpertSettings(2)),))
    shapes = models.array_shapes(one_stack)
    assert shapes["decoder/layers/1/feed_forward/up/kernel"] == (2, 16, 24)
    assert shapes["encoder/layers/1/feed_forward/up/kernel"] == (16, 24)


def test_counts():
    def total(config):
        return sum(math.prod(shape) for shape in models.array_shapes(config).values())

    base = models.EncoderDecoderConfig(32_128, 768, 12, 12, 3072)
    assert total(base) == 222_903_552
    gated = {"activation": "gelu_tanh", "gated": True, "tied": False, "scale_logits": False}
    newer = models.EncoderDecoderConfig(32_128, 768, 12, 12, 2048, **gated)
    assert total(newer) == 247_577_856


def test_bad_input():
    model = small.dense(small.T5)
    with pytest.raises(ValueError, match=r"decoder_input_ids has shape \(6,\)"):
        model(IDS, MASK, TARGETS[0])
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 6\)"):
        model(IDS, MASK[:, 1:], TARGETS)
    with pytest.raises(ValueError, match=r"decoder_attention_mask has shape \(3, 7\)"):
        model(IDS, MASK, TARGETS, MASK)
    with pytest.raises(ValueError, match="multiple of 4"):
        dataclasses.replace(small.T5, relative_buckets=6)
    assert np.isnan(small.run(model, IDS, MASK, TARGETS.at[1, 3].set(50))[1, 3]).all()
