"""Stacks of matrices, shared central cores, scans, and one trace for each static shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers

SHAPE = mpo.MPOShape((2, 3, 2), (3, 2, 2), (4, 3))
LAYERS = 4


def stack(dtype=np.float32):
    """Stacked cores (layer, ...) and the list of chains."""
    chains = [helpers.random_cores(SHAPE, seed, dtype) for seed in range(LAYERS)]
    return tuple(jnp.asarray(np.stack(cores)) for cores in zip(*chains, strict=True)), chains


def activations(*leading):
    x = np.random.default_rng(9).standard_normal((*leading, SHAPE.in_features))
    return jnp.asarray(x.astype(np.float32))


def test_decompose_a_stack():
    full = SHAPE.with_bonds(None)
    stacked = np.stack([helpers.random_matrix(full, seed, np.float32) for seed in range(LAYERS)])
    cores, spectra = jax.jit(jax.vmap(lambda w: mpo.decompose_with_spectra(w, full)))(stacked)
    assert [core.shape for core in cores] == [(LAYERS, *core) for core in full.core_shapes]
    rebuilt = jax.vmap(mpo.to_matrix)(cores)
    for layer, w in enumerate(stacked):
        assert mpo.relative_error(w, rebuilt[layer]) <= 2e-6
        exact = mpo.decompose_with_spectra(w.astype(np.float64), full)[1]
        for found, wanted in zip(spectra, exact, strict=True):
            np.testing.assert_allclose(found[layer], wanted, rtol=0, atol=2e-3)


def test_rounding_a_stack_on_its_cores():
    cores, chains = stack()
    run = jax.jit(jax.vmap(lambda cores: (mpo.truncate(cores, 2), mpo.bond_spectra(cores))))
    cut, spectra = run(cores)
    for layer, chain in enumerate(chains):
        exact = mpo.truncate(chain, 2)
        found = [np.asarray(core[layer]) for core in cut]
        assert [core.shape for core in found] == [core.shape for core in exact]
        np.testing.assert_allclose(mpo.to_matrix(found), mpo.to_matrix(exact), rtol=0, atol=1e-4)
        for found, wanted in zip(spectra, mpo.bond_spectra(chain), strict=True):
            np.testing.assert_allclose(found[layer], wanted, rtol=0, atol=1e-4)


def test_stacked_auxiliary_cores_around_one_central_core():
    cores, _ = stack()
    central = SHAPE.central
    shared = (*cores[:central], cores[central][0], *cores[central + 1 :])
    axes = tuple(None if k == central else 0 for k in range(SHAPE.num_cores))
    x = activations(LAYERS, 5)
    matrices = jax.vmap(mpo.to_matrix, in_axes=(axes,))(shared)

    def separate(layer):
        return tuple(core if k == central else core[layer] for k, core in enumerate(shared))

    for layer in range(LAYERS):
        np.testing.assert_allclose(
            matrices[layer], helpers.rebuilt(separate(layer)), rtol=0, atol=1e-5
        )

    @jax.jit
    def every_strategy(cores, x):
        products = (functools.partial(mpo.apply, shape=SHAPE, plan=name) for name in mpo.STRATEGIES)
        return [jax.vmap(product, in_axes=(axes, 0))(cores, x) for product in products]

    expected = jnp.einsum("lti,lij->ltj", x, matrices)
    for y in every_strategy(shared, x):
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
def test_gradient_of_a_shared_central_core_sums_over_the_stack(strategy):
    cores, _ = stack()
    central, x = SHAPE.central, activations(LAYERS, 5)
    axes = tuple(None if k == central else 0 for k in range(SHAPE.num_cores))
    shared = tuple(core[0] if k == central else core for k, core in enumerate(cores))

    def loss(product):
        return lambda cores: jnp.sum(jnp.sin(jax.vmap(product, in_axes=(axes, 0))(cores, x)))

    def dense(cores, x):
        return x @ helpers.rebuilt(cores)

    product = functools.partial(mpo.apply, shape=SHAPE, plan=strategy)
    found, wanted = jax.jit(lambda c: (jax.grad(loss(product))(c), jax.grad(loss(dense))(c)))(
        shared
    )
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
def test_gradients_through_a_scan_over_layers(strategy, x64):
    square = mpo.MPOShape((2, 3, 2), (2, 3, 2), (4, 3))
    chains = [helpers.random_cores(square, seed) for seed in range(LAYERS)]
    cores = tuple(jnp.asarray(np.stack(c)) for c in zip(*chains, strict=True))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 12)))

    def loss(product, cores):
        out, _ = jax.lax.scan(lambda x, cores: (jnp.tanh(product(cores, x)), None), x, cores)
        return jnp.sum(out**2)

    def dense(cores, x):
        return x @ helpers.rebuilt(cores)

    product = functools.partial(mpo.apply, shape=square, plan=strategy)
    run = jax.jit(
        lambda cores: [
            jax.value_and_grad(functools.partial(loss, f))(cores) for f in (product, dense)
        ]
    )
    (value, found), (expected, wanted) = run(cores)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "run",
    [
        lambda w, cores: mpo.decompose(w, SHAPE),
        lambda w, cores: mpo.truncate(cores, 2),
        lambda w, cores: mpo.canonicalize(cores),
        lambda w, cores: mpo.apply(cores, w.T, SHAPE),
    ],
    ids=["decompose", "truncate", "canonicalize", "apply"],
)
def test_one_trace_for_each_shape(run):
    traces = []

    @jax.jit
    def counted(w, cores):
        traces.append(1)
        return run(w, cores)

    for seed in range(3):
        cores = tuple(map(jnp.asarray, helpers.random_cores(SHAPE, seed, np.float32)))
        jax.block_until_ready(counted(mpo.to_matrix(cores), cores))
    assert len(traces) == 1
    assert counted._cache_size() == 1


def test_host_and_jit_results_agree():
    w = helpers.random_matrix(SHAPE, 5, np.float32)
    host = mpo.decompose(w, SHAPE)
    device = mpo.decompose(jnp.asarray(w), SHAPE)
    assert all(isinstance(core, np.ndarray) for core in host)
    assert all(isinstance(core, jax.Array) for core in device)
    found, wanted = mpo.to_matrix(device), mpo.to_matrix(host)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
