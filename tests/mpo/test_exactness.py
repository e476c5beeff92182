"""Exactness for every factor list of the specification, on the host and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers

LISTS = pytest.mark.parametrize("factors", helpers.ALL_FACTOR_LISTS, ids=str)


def inputs(shape, dtype):
    """Stack of a Gaussian, a rank-deficient and a zero matrix."""
    gauss = helpers.random_matrix(shape, 7)
    rng = np.random.default_rng(8)
    poor = rng.standard_normal((shape.in_features, 1)) * rng.standard_normal(shape.out_features)
    return np.stack([gauss, poor, np.zeros_like(gauss)]).astype(dtype)


def assert_exact(w, cores, tolerance):
    assert all(np.isfinite(core).all() for core in cores)
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= tolerance


@LISTS
def test_host(factors):
    partner = helpers.small_partner(factors)
    for lists in ((factors, partner), (partner, factors)):
        shape = mpo.MPOShape(*lists)
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-6)):
            for w in inputs(shape, dtype):
                cores = mpo.decompose(w, shape)
                assert all(type(core) is np.ndarray and core.dtype == dtype for core in cores)
                assert_exact(w, cores, tolerance)


def decompose_stack(shape, gauge="central"):
    """Decomposition of a stack under vmap and jit."""
    return jax.jit(jax.vmap(lambda w: mpo.decompose(w, shape, gauge)))


def assert_stack_exact(stack, cores, tolerance):
    cores = [np.asarray(core) for core in cores]
    assert all(core.dtype == stack.dtype for core in cores)
    for index, w in enumerate(stack):
        assert_exact(w, [core[index] for core in cores], tolerance)


ONE_OF_EACH_LENGTH = [(32, 24), (8, 12, 8), (3, 4, 4, 4, 4), (2, 3, 4, 4, 4, 3, 2), (2,) * 9]


# What is traced is the code that runs on the host, above, of every list.
@pytest.mark.parametrize(
    "factors",
    [
        pytest.param(factors, marks=[] if factors in ONE_OF_EACH_LENGTH else pytest.mark.slow)
        for factors in helpers.ALL_FACTOR_LISTS
    ],
    ids=str,
)
def test_jit_float32(factors):
    shape = mpo.MPOShape(factors, helpers.small_partner(factors))
    stack = inputs(shape, np.float32)
    assert_stack_exact(stack, decompose_stack(shape)(jnp.asarray(stack)), 2e-6)


@pytest.mark.parametrize("factors", ONE_OF_EACH_LENGTH, ids=str)
def test_jit_float64(factors, x64):
    shape = mpo.MPOShape(helpers.small_partner(factors), factors)
    stack = inputs(shape, np.float64)
    assert_stack_exact(stack, decompose_stack(shape)(jnp.asarray(stack)), 1e-12)


@pytest.mark.parametrize("gauge", ["left", "right", "symmetric"])
@pytest.mark.parametrize("lists", [((3, 4, 4), (4, 2, 3)), ((2, 2, 3, 2, 2), (2, 3, 2, 2, 2))])
def test_jit_in_every_gauge(gauge, lists):
    shape = mpo.MPOShape(*lists)
    stack = inputs(shape, np.float32)
    assert_stack_exact(stack, decompose_stack(shape, gauge)(jnp.asarray(stack)), 5e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jit_identity_gauge_is_bitwise(dtype, x64):
    shape = mpo.MPOShape((2, 2, 3, 2, 2), (2, 3, 2, 2, 2))
    w = jnp.asarray(helpers.random_matrix(shape, 3, dtype))
    cores = jax.jit(lambda w: mpo.decompose(w, shape, "identity"))(w)
    np.testing.assert_array_equal(mpo.to_matrix(list(map(np.asarray, cores))), w)


SQUARES = [(8, 8), (4, 8, 4), (2, 4, 4, 4, 2), (2, 2, 2, 4, 2, 2, 2), (2,) * 7]


@pytest.mark.parametrize("factors", SQUARES, ids=str)
@pytest.mark.parametrize("gauge", helpers.GAUGES)
def test_square_matrices_on_the_host(factors, gauge):
    shape = mpo.MPOShape(factors, factors)
    w = helpers.random_matrix(shape, 2)
    assert_exact(w, mpo.decompose(w, shape, gauge), 1e-12)
    single = w.astype(np.float32)
    assert_exact(single, mpo.decompose(single, shape, gauge), 2e-6)
