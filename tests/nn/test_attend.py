"""Attention and what its layers keep for the backward pass, against the library's functions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import nn
from mpojax.nn import attention as attention_lib
from mpojax.nn import functional, masks

BATCH, LENGTH, KEYS, SIZE = 2, 5, 7, 4


def draw(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def kept_sizes(function, *args):
    """Sizes of the arrays between forward and backward pass, other than the arguments."""
    _, backward = jax.vjp(function, *args)
    own = {id(arg) for arg in args}
    return [leaf.size for leaf in jax.tree.leaves(backward) if id(leaf) not in own]


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_value_and_gradient_of_the_library(kv_heads, has_mask, has_bias):
    query = draw(BATCH, LENGTH, 6, SIZE, seed=0)
    key, value = (draw(BATCH, KEYS, kv_heads, SIZE, seed=seed) for seed in (1, 2))
    mask = jnp.asarray(np.arange(KEYS) < 4)[None, None, None, :] if has_mask else None
    bias = draw(1, 6, LENGTH, KEYS, seed=3) if has_bias else None

    def library(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=0.3)

    def own(query, key, value):
        return attention_lib.attend(query, key, value, mask, scale=0.3, bias=bias)

    weights = draw(BATCH, LENGTH, 6, SIZE, seed=4)
    results = [
        jax.jit(jax.value_and_grad(lambda *args, f=f: jnp.sum(weights * f(*args)), (0, 1, 2)))(
            query, key, value
        )
        for f in (library, own)
    ]
    for expected, actual in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_softmax_and_its_derivatives_of_both_orders():
    x, direction = draw(3, 5, seed=0), draw(3, 5, seed=1)
    library = functools.partial(jax.nn.softmax, axis=-1)

    def second(f):
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
        return jax.jit(lambda x, direction: jax.jvp(slope, (x,), (direction,)))(x, direction)

    for expected, actual in zip(second(library), second(functional.softmax), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_one_array_of_the_scores_size_is_kept():
    query = draw(BATCH, 16, 2, SIZE, seed=0)
    scores = BATCH * 2 * 16 * 16
    kept = kept_sizes(lambda q: attention_lib.attend(q, query, query, scale=1.0), query)
    assert kept.count(scores) == 1
    assert max(kept) == scores


@pytest.mark.parametrize("name", sorted({*nn.ACTIVATIONS} - {"relu"}))  # keeps signs
def test_activations_keep_their_input(name):
    x = draw(8, 32, seed=0)
    kept = kept_sizes(nn.ACTIVATIONS[name], x)
    assert sum(kept) <= x.size


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norms_keep_their_input(kind):
    norm, x = kind(32, 1e-6), draw(8, 32, seed=0)
    assert max(kept_sizes(norm, x), default=0) <= 32


def test_a_norm_is_the_formula_with_its_gradient():
    x, norm = draw(4, 32, seed=0), nn.LayerNorm(32, 1e-6)
    weights, scale = draw(4, 32, seed=1), draw(32, seed=2)
    norm.scale[...] = scale

    def written_out(x, scale):
        return jnp.sum(weights * scale[None] * jax.nn.standardize(x, epsilon=1e-6))

    def own(x, scale):
        module = nnx.clone(norm)
        module.scale[...] = scale
        return jnp.sum(weights * module(x))

    pair = (jax.jit(jax.grad(f, (0, 1)))(x, scale) for f in (written_out, own))
    for expected, actual in zip(*pair, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [None, 40])
@pytest.mark.parametrize("has_padding", [False, True])
def test_causal_texts_in_blocks_are_the_whole(before, has_padding):
    batch, length, heads, kv_heads, size = 2, 300, 4, 2, 8
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((batch, length, n, size)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    distance = np.arange(length)[:, None] - np.arange(length)
    array = jnp.asarray((distance >= 0) & (distance <= (length if before is None else before)))
    mask = masks.Mask(array[None, None], reaches=((before, 0),))
    if has_padding:
        real = jnp.arange(length)[None] < jnp.asarray([[length], [170]])
        mask = dataclasses.replace(mask, array=mask.array & real[:, None, None])
    assert len(masks.blocks(mask, length, length)) == 3
    # Rows of padding see nothing of their text where a window has left it behind.
    counted = np.asarray(mask.array.any(axis=-1))[:, 0, :, None, None]

    def loss(q, k, v, mask):
        mixed = attention_lib.attend(q, k, v, mask, scale=0.3)
        return jnp.sum(jnp.where(counted, jnp.sin(mixed), 0.0)), mixed

    @jax.jit
    def run(q, k, v):
        step = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return step(q, k, v, mask), step(q, k, v, mask.array)

    ((_, found), slopes), ((_, wanted), plain) = run(q, k, v)
    np.testing.assert_allclose(*(np.where(counted, x, 0) for x in (found, wanted)), atol=1e-6)
    for one, other in zip(slopes, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)
