"""A change planted in a small network is found by the search, and missed at random.

Settings of the toy: six residual tanh layers of width 24, 512 Gaussian inputs, whole batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax.methods.pet import allocation, scores
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet.groups import Chain, Entries, Module
from tests import marks

LAYERS, WIDTH, INPUTS, PLANTED = 6, 24, 512, 3


def network(kernels, biases, x):
    for kernel, bias in zip(kernels, biases, strict=True):
        x = x + jnp.tanh(x @ kernel + bias[None])
    return x


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def train(loss, params, masks, data, rate, steps):
    """Adam on what is left, with fresh moments."""

    def body(carry, step):
        params, mean, square = carry
        grads = jax.tree.map(jnp.multiply, jax.grad(loss)(params, data), masks)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, grads)
        count = step.astype(jnp.float32) + 1.0

        def move(p, m, s, mask):
            m, s = m / (1 - 0.9**count), s / (1 - 0.999**count)
            return p - rate * mask * m / (jnp.sqrt(s) + 1e-8)

        return (jax.tree.map(move, params, mean, square, masks), mean, square), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    steps = jnp.arange(steps, dtype=jnp.int32)
    return jax.lax.scan(body, (params, zeros, zeros), steps)[0][0]


@functools.partial(jax.jit, static_argnames="loss")
def gradient(loss, params, data):
    return jax.grad(loss)(params, data)


def search(loss, params, spec, data, *, budget, rounds, rate, gauge="raw", criterion="taylor"):
    """Masks after a search with a warm phase as long as a round, and the loss at its end."""
    sizes = {name: value.shape for name, value in params.items()}
    masks = allocation.whole_masks(spec, sizes)
    rng = np.random.default_rng(0)
    whole = allocation.cost(masks, spec, sizes)
    params = train(loss, params, entries_of(masks, spec, sizes), data, rate, 60)
    for target in allocation.schedule(whole, budget, rounds):
        entries = entries_of(masks, spec, sizes)
        params = train(loss, params, entries, data, rate, 60)
        if gauge == "svd":
            host = {name: np.asarray(value) for name, value in params.items()}
            params, masks, _ = pet_masks.regauge(host, masks, spec)
            params = {name: jnp.asarray(value) for name, value in params.items()}
        sums = None
        if criterion == "taylor":
            sums = scores.score_groups(params, gradient(loss, params, data), spec)
        found = scores.final_scores(criterion, spec, params, sums, rng=rng)
        masks = allocation.allocate(found, spec, sizes, target, masks, by_cost=False)
        params = pet_masks.apply_mask(params, masks, spec, None)
    params = train(loss, params, entries_of(masks, spec, sizes), data, rate, 60)
    return masks, float(loss(params, data))


def entries_of(masks, spec, sizes):
    found = pet_masks.entry_masks(masks, spec, sizes)
    return {name: jnp.asarray(mask, jnp.float32) for name, mask in found.items()}


def base(seed):
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((LAYERS, WIDTH, WIDTH)) * WIDTH**-0.5
    x = rng.standard_normal((INPUTS, WIDTH))
    return rng, *(jnp.asarray(a, jnp.float32) for a in (kernels, x))


def rank_loss(params, data):
    kernels, x, y = data
    moved = [kernels[k] + params[f"{k}/down"] @ params[f"{k}/up"] for k in range(LAYERS)]
    return jnp.mean(jnp.square(network(moved, jnp.zeros((LAYERS, WIDTH)), x) - y))


def found_ranks(seed, **settings):
    rng, kernels, x = base(seed)
    change = rng.standard_normal((WIDTH, 2)) @ rng.standard_normal((2, WIDTH)) / WIDTH
    target = kernels.at[PLANTED].add(jnp.asarray(change, jnp.float32))
    y = network(target, jnp.zeros((LAYERS, WIDTH)), x)
    params, spec = {}, {}
    for k in range(LAYERS):
        down = rng.standard_normal((WIDTH, 8)) * WIDTH**-0.5
        params |= {f"{k}/down": jnp.asarray(down, jnp.float32)}
        params |= {f"{k}/up": jnp.zeros((8, WIDTH), jnp.float32)}
        spec[str(k)] = Chain((f"{k}/down", f"{k}/up"))
    budget = 2 * 2 * WIDTH
    masks, loss = search(
        rank_loss, params, spec, (kernels, x, y), budget=budget, rounds=10, rate=3e-3, **settings
    )
    return [int(masks[str(k)][0].sum()) for k in range(LAYERS)], loss


WANTED = [2 if layer == PLANTED else 0 for layer in range(LAYERS)]


@pytest.mark.parametrize(
    ("seed", "gauge"),
    marks.slow_but(
        {(0, "raw"), (1, "svd")}, [(seed, gauge) for seed in range(5) for gauge in ("raw", "svd")]
    ),
)
def test_a_planted_rank_is_found_in_its_layer(seed, gauge):
    assert found_ranks(seed, gauge=gauge)[0] == WANTED


# Of the test, not of the method.
@pytest.mark.slow
def test_the_random_baseline_misses_it():
    found = [found_ranks(seed, criterion="random")[0] == WANTED for seed in range(3)]
    assert sum(found) <= 1


def bias_loss(params, data):
    kernels, x, y = data
    biases = jnp.stack([params[str(k)] for k in range(LAYERS)])
    return jnp.mean(jnp.square(network(kernels, biases, x) - y))


def planted_biases(seed):
    rng, kernels, x = base(seed)
    places = np.sort(rng.choice(WIDTH, 6, replace=False))
    shift = np.zeros((LAYERS, WIDTH))
    shift[PLANTED, places] = np.sign(rng.standard_normal(6)) * (0.5 + rng.random(6))
    data = (kernels, x, network(kernels, jnp.asarray(shift, jnp.float32), x))
    return places, data, {str(k): jnp.zeros(WIDTH, jnp.float32) for k in range(LAYERS)}


@pytest.mark.parametrize("seed", marks.slow_but((0,), range(5)))
def test_planted_biases_are_found(seed):
    places, data, params = planted_biases(seed)
    settings = {"rounds": 8, "rate": 1e-2}
    single = {name: Entries((name,)) for name in params}
    masks, _ = search(bias_loss, params, single, data, budget=6, **settings)
    found = {name: np.flatnonzero(mask[0]).tolist() for name, mask in masks.items()}
    assert found == {str(k): places.tolist() if k == PLANTED else [] for k in range(LAYERS)}
    whole = {name: Module((name,)) for name in params}
    masks, _ = search(bias_loss, params, whole, data, budget=WIDTH, **settings)
    assert [bool(masks[str(k)][0]) for k in range(LAYERS)] == [k == PLANTED for k in range(LAYERS)]
