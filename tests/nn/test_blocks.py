"""Attention, feed-forward, norm and dropout against formulas written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import mpo, nn
from mpojax.nn import norm as norm_lib

HIDDEN, HEADS = 12, 3


def _attention(**settings):
    return nn.Attention(HIDDEN, HEADS, HIDDEN // HEADS, rngs=nnx.Rngs(0), **settings)


def _written_out(module, x, mask):
    """Attention in numpy, one head at a time."""
    query, key, value = (
        np.asarray(m(jnp.asarray(x))) for m in (module.query, module.key, module.value)
    )
    depth = HIDDEN // HEADS
    mixed = np.zeros_like(x)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            part = slice(h * depth, (h + 1) * depth)
            scores = query[b, :, part] @ key[b, :, part].T / math.sqrt(depth)
            scores = np.where(mask[b][None, :], scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            mixed[b, :, part] = weights @ value[b, :, part]
    return np.asarray(module.out(jnp.asarray(mixed)))


def _inputs():
    x = np.random.default_rng(0).standard_normal((2, 5, HIDDEN)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    return x, mask


def test_attention_is_the_formula():
    x, mask = _inputs()
    module = _attention()
    actual = module(jnp.asarray(x), jnp.asarray(mask)[:, None, None])
    np.testing.assert_allclose(actual, _written_out(module, x, mask), rtol=1e-4, atol=1e-5)
    unmasked = module(jnp.asarray(x))
    everything = np.ones_like(mask)
    np.testing.assert_allclose(unmasked, _written_out(module, x, everything), rtol=1e-4, atol=1e-5)


def test_masked_positions_do_not_matter():
    x, mask = _inputs()
    module = _attention()
    changed = np.where(mask[..., None], x, 1e3)
    before = module(jnp.asarray(x), jnp.asarray(mask)[:, None, None])
    after = module(jnp.asarray(changed), jnp.asarray(mask)[:, None, None])
    np.testing.assert_array_equal(before[1, :2], after[1, :2])


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_fully_masked_row_stays_finite(rate):
    x, _ = _inputs()
    mask = jnp.asarray([[True] * 5, [False] * 5])
    module = _attention(dropout_rate=rate)
    key = jax.random.key(0) if rate else None

    @jax.jit
    def run(x):
        y, pull_back = jax.vjp(lambda x: module(x, mask[:, None, None], dropout_key=key), x)
        return y, pull_back(2 * y)

    y, grads = run(jnp.asarray(x))
    assert np.isfinite(y).all()
    assert np.isfinite(grads).all()


def test_dropout_takes_a_key():
    x, mask = _inputs()
    plain, module = _attention(), _attention(dropout_rate=0.5)
    x, mask = jnp.asarray(x), jnp.asarray(mask)[:, None, None]
    assert not np.allclose(module(x, mask, dropout_key=jax.random.key(1)), plain(x, mask))
    np.testing.assert_array_equal(module(x, mask), plain(x, mask))


def test_any_projection_may_be_a_chain():
    shapes = {name: mpo.MPOShape.balanced(HIDDEN, HIDDEN, n=3) for name in ("key", "out")}
    module = _attention(shapes=shapes)
    kinds = [type(getattr(module, n)).__name__ for n in ("query", "key", "value", "out")]
    assert kinds == ["Dense", "MPOLinear", "Dense", "MPOLinear"]
    x, mask = _inputs()
    actual = module(jnp.asarray(x), jnp.asarray(mask)[:, None, None])
    np.testing.assert_allclose(actual, _written_out(module, x, mask), rtol=1e-4, atol=1e-5)


def test_values_may_come_from_another_width():
    module = _attention(value_size=5)
    x, mask = _inputs()
    wide = np.random.default_rng(1).standard_normal((2, 5, 5)).astype(np.float32)
    x = jnp.asarray(x)
    keys_values = module.keys_values(x, value_input=jnp.asarray(wide))
    actual = module(x, jnp.asarray(mask)[:, None, None], keys_values=keys_values)
    # A value map that reads x gives the same where its output is the same.
    expected = _written_out(_Values(module, wide), np.asarray(x), mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class _Values:
    """An attention module whose values are fixed."""

    def __init__(self, module, wide):
        self.query, self.key, self.out = module.query, module.key, module.out
        self.value = lambda x: module.value(jnp.asarray(wide))


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", nn.ACTIVATIONS)
def test_activations_are_their_formulas(name):
    points = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = np.array([ACTIVATIONS[name](float(x)) for x in points])
    np.testing.assert_allclose(
        nn.ACTIVATIONS[name](jnp.asarray(points)), expected, rtol=1e-5, atol=2e-6
    )


def test_feed_forward_is_two_maps_and_an_activation():
    block = nn.FeedForward(6, 10, "silu", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 6))
    inner = np.asarray(block.up(x))
    expected = block.down(jnp.asarray(inner / (1 + np.exp(-inner))))
    np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="activation 'swoosh' is not one of"):
        nn.FeedForward(6, 10, "swoosh", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_layer_norm_in_float32(offset):
    norm = nn.LayerNorm(8, 1e-5, dtype="bfloat16")
    norm.scale[...] = jnp.arange(8.0)
    norm.bias[...] = jnp.ones(8)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) + offset
    wide = x.astype(np.float64)
    normalised = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    y = norm(jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), normalised * np.arange(8) + 1, rtol=1e-2, atol=2e-2
    )


def test_no_norm_scales_and_shifts():
    norm = nn.NORMS["no_norm"](8, 1e-5, dtype="bfloat16")
    x = jax.random.normal(jax.random.key(0), (4, 8))
    np.testing.assert_array_equal(norm(x), x.astype(jnp.bfloat16))
    norm.scale[...] = jnp.arange(8.0)
    norm.bias[...] = jnp.ones(8)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(x) * np.arange(8) + 1
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)
    assert nn.NORMS["no_norm"] is norm_lib.NoNorm


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((200, 200))
    y = np.asarray(nn.dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1 / 0.75).item()}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.01)
    assert y.mean() == pytest.approx(1.0, abs=0.01)
    assert nn.dropout(x, 0.25, None) is x
    assert nn.dropout(x, 0.0, jax.random.key(0)) is x
