"""Deep low-rank updates: the subspace they learn in, where they start, what is left at the end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, training
from mpojax.methods import deep_lora
from mpojax.methods.deep_lora import updates

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
CONFIG = models.EncoderConfig(vocab_size=31, max_positions=16, pooling="mean", **SIZES)
RNG = np.random.default_rng(0)
BATCH = {
    "input_ids": RNG.integers(1, 31, (4, 8)),
    "attention_mask": np.ones((4, 8), np.int32),
    "token_type_ids": np.zeros((4, 8), np.int32),
    "labels": np.array([0, 1, 0, 1]),
}
LOSS = training.objective("classification")


@pytest.fixture(scope="module")
def model():
    return models.with_head(models.build(CONFIG, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1))


APART = {"rank": 4, "basis_rate": 0.01, "matrices": ".*/(query|up)"}


def start(model, **changes):
    settings = deep_lora.DeepLoRASettings(**APART | changes)

    def gradients(paths):
        return deep_lora.first_gradients(model, paths, LOSS, [BATCH])

    return deep_lora.started(model, settings, gradients)


def descend(factors, target, moves, steps=800, rate=0.05):
    """Factors of a product after gradient descent on 1/2 ||product - target||^2."""

    @jax.jit
    def step(factors):
        def loss(factors):
            return 0.5 * jnp.sum((functools.reduce(jnp.matmul, factors) - target) ** 2)

        gradients = jax.grad(loss)(factors)
        return [f - rate * move * g for f, g, move in zip(factors, gradients, moves, strict=True)]

    factors = [jnp.asarray(f, jnp.float32) for f in factors]
    for _ in range(steps):
        factors = step(factors)
    return np.asarray(functools.reduce(jnp.matmul, factors))


def matrices(settings, left, right):
    *rest, last = settings.cores(left, right)
    return [core.reshape(-1, core.shape[-1]) for core in rest] + [last[:, 0, :, 0]]


@pytest.mark.parametrize("size", [(8, 8), (10, 6), (6, 10)])
def test_a_compressed_factorisation_learns_as_the_full_one(size):
    """Theorem 2.1: outside of the bases a full square factorisation has nothing but its start."""
    rng = np.random.default_rng(1)
    target = rng.standard_normal((size[0], 2)) @ rng.standard_normal((2, size[1]))
    target, scale = target / np.linalg.norm(target, 2), 0.3
    left, right = deep_lora.bases(4, -target, size, np.random.default_rng(2))
    rotation = updates.orthogonal(*size, np.random.default_rng(2))
    wide = scale * np.eye(max(size))
    full = [scale * rotation, wide, wide] if size[0] <= size[1] else [wide, wide, scale * rotation]
    whole = descend(full, target, (1, 1, 1))
    three = deep_lora.DeepLoRASettings(rank=4, basis_rate=None, init_scale=scale)
    apart = deep_lora.DeepLoRASettings(rank=4, basis_rate=0.0, init_scale=scale)
    found = descend(matrices(three, left, right), target, (1, 1, 1))
    frozen = descend(matrices(apart, left, right), target, (0, 1, 1, 1, 0))
    inside = np.linalg.qr(left)[0], np.linalg.qr(right.T)[0]
    part = inside[0] @ inside[0].T @ whole @ inside[1] @ inside[1].T
    np.testing.assert_allclose(found, target, atol=0.02)
    np.testing.assert_allclose(found, part, atol=1e-3)
    if size[0] == size[1]:
        np.testing.assert_allclose(found, part, atol=2e-5)
        np.testing.assert_allclose(frozen, part, atol=2e-5)
        rho = functools.reduce(lambda r, _: r * (1 - 0.05 * r**4), range(800), scale)
        rest = rho**3 * (rotation - left @ right)
        np.testing.assert_allclose(whole, found + rest, atol=2e-5)


def test_the_start_computes_the_same_and_has_the_gradients_subspace(model):
    deep = start(model)
    np.testing.assert_allclose(deep(**inputs()), model(**inputs()), atol=1e-6)
    path = "layers/1/feed_forward/up"
    gradient = deep_lora.first_gradients(model, [path], LOSS, [BATCH])[path]
    arrays = models.to_arrays(deep)
    left, right = arrays[f"{path}/adapter/cores/0"][0, :, 0], arrays[f"{path}/adapter/cores/4"]
    u, _, vt = np.linalg.svd(gradient)
    assert left.shape == (16, 4)
    assert right.shape == (4, 1, 24, 1)
    basis = np.linalg.qr(np.asarray(left, np.float64))[0]
    np.testing.assert_allclose(basis @ basis.T @ u[:, :2], u[:, :2], atol=1e-5)
    rows = np.asarray(right[:, 0, :, 0], np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-5)
    summed = deep_lora.first_gradients(model, [path], LOSS, [BATCH, BATCH])[path]
    np.testing.assert_allclose(summed, 2 * gradient, rtol=1e-6)
    np.testing.assert_allclose(vt[:1] @ gradient.T, np.linalg.norm(gradient, 2) * u[:, :1].T)


def inputs():
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: jnp.asarray(BATCH[name]) for name in names}


@pytest.mark.parametrize("changes", [{}, {"basis_rate": None, "depth": 4}, {"start": "random"}])
def test_what_is_found_is_kept_and_merges(model, changes):
    """Of planted updates of rank 2 the rank and the function come back."""
    deep = start(model, **changes)
    arrays, rng = dict(models.to_arrays(deep)), np.random.default_rng(3)
    low = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 4))
    low *= 0.01 / 1e-3 ** (changes.get("depth", 3) - 1)
    for name in [n for n in arrays if n.endswith("/cores/1")]:
        arrays[name] = np.float32(low)[:, None, None, :]
    learnt = models.from_arrays(deep.config, deep.shapes, arrays)
    shallow, ranks = deep_lora.compressed(learnt, 1e-4)
    assert set(ranks.values()) == {2}
    assert {s.kind for s in models.adapter_settings(shallow.config).values()} == {"low_rank"}
    expected = learnt(**inputs())
    assert np.max(np.abs(expected - model(**inputs()))) > 1e-3
    np.testing.assert_allclose(shallow(**inputs()), expected, atol=2e-5)
    np.testing.assert_allclose(compression.merge(shallow)(**inputs()), expected, atol=2e-5)
    np.testing.assert_allclose(compression.merge(learnt)(**inputs()), expected, atol=2e-5)
    whole, ranks = deep_lora.compressed(deep, 0.0)
    assert set(ranks.values()) == {4}
    np.testing.assert_allclose(whole(**inputs()), deep(**inputs()), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "config.deep_lora.rank=3 must be even"),
        ({"rank": 18}, "config.deep_lora.rank at layers/0/attention/query=18 must be"),
        ({"matrices": "nothing"}, "config.deep_lora.matrices='nothing' matches no matrix"),
        ({"depth": 1}, "depth=1 must be an integer from 2"),
        ({"start": "noise"}, "start='noise' must be one of 'gradient'"),
    ],
)
def test_bad_input(model, changes, message):
    with pytest.raises(ValueError, match=message):
        start(model, **changes)


def test_a_matrix_in_mpo_form(model):
    small, _ = compression.compress(model, [(".*/query", {"bond": 2})])
    with pytest.raises(ValueError, match="is in MPO form"):
        start(small)
