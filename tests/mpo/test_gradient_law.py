"""Gradients under a change of gauge, low rank as a two-core chain, and other exact relations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers

SHAPE = mpo.MPOShape((2, 3, 2), (3, 2, 2), (4, 3))


def test_gradients_transform_contragrediently(x64):
    """T_k' = q T_k p (q inverse of the previous p) gives g_k' = q^-T g_k p^-T."""
    rng = np.random.default_rng(0)
    cores = helpers.random_cores(SHAPE, 1)
    changes = [np.eye(1), *(rng.standard_normal((d, d)) for d in SHAPE.bond_dims), np.eye(1)]
    moved = [
        np.einsum("ab,bijc,cd->aijd", np.linalg.inv(changes[k]), core, changes[k + 1])
        for k, core in enumerate(cores)
    ]
    x = jnp.asarray(rng.standard_normal((5, 12)))
    loss = jax.jit(jax.grad(lambda cores: jnp.sum(jnp.sin(mpo.apply(cores, x, SHAPE)))))
    before, after = (loss(tuple(map(jnp.asarray, c))) for c in (cores, moved))
    for k, (old, new) in enumerate(zip(before, after, strict=True)):
        expected = np.einsum("ab,bijc,cd->aijd", changes[k].T, old, np.linalg.inv(changes[k + 1]).T)
        np.testing.assert_allclose(new, expected, rtol=0, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize("sizes", [(20, 14), (14, 20), (9, 9)])
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_low_rank_is_the_truncated_svd(sizes, rank):
    w = np.random.default_rng(3).standard_normal(sizes)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    shape = mpo.MPOShape.low_rank(*sizes, rank)
    full = mpo.decompose(w, shape.with_bonds(None))
    np.testing.assert_allclose(mpo.bond_spectra(full)[0], s, rtol=0, atol=1e-12)
    for cores in (
        mpo.decompose(w, shape),
        mpo.truncate(full, rank),
        mpo.truncate(full, rank, method="slicing"),
    ):
        assert [core.shape for core in cores] == [(1, sizes[0], 1, rank), (rank, 1, sizes[1], 1)]
        np.testing.assert_allclose(mpo.to_matrix(cores), best, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gauge", helpers.GAUGES)
def test_cores_of_a_gauge_are_a_fixed_point(gauge):
    cores = mpo.canonicalize(helpers.random_cores(SHAPE, 2), gauge)
    again = mpo.canonicalize(cores, gauge)
    for one, other in zip(cores, again, strict=True):
        # Signs of singular vectors are arbitrary.
        np.testing.assert_allclose(abs(one), abs(other), rtol=0, atol=1e-11 * abs(one).max())


def test_bonds_above_the_full_ones_are_reduced():
    """Trained or merged chains may carry more than the matrix can hold."""
    rng = np.random.default_rng(4)
    cores = tuple(rng.standard_normal(s) for s in [(1, 2, 3, 9), (9, 2, 2, 8), (8, 2, 2, 1)])
    w = mpo.to_matrix(cores)
    for reduced in (mpo.canonicalize(cores), mpo.truncate(cores, (9, 8)), mpo.truncate(cores, 9)):
        assert [core.shape[3] for core in reduced] == [6, 4, 1]
        assert mpo.relative_error(w, mpo.to_matrix(reduced)) <= 1e-13


def test_to_matrix_is_differentiable_and_jit_able(x64):
    cores = tuple(map(jnp.asarray, helpers.random_cores(SHAPE, 5)))

    def loss(rebuild, cores):
        w = rebuild(cores)
        return jnp.sum(jnp.sin(w) * jnp.arange(w.size, dtype=w.dtype).reshape(w.shape))

    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f)))(cores)
        for f in (mpo.to_matrix, helpers.rebuilt)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9)


def test_relative_error_of_the_identity_chain_under_slicing_is_not_the_aligned_one():
    w = helpers.random_matrix(SHAPE, 6)
    full = SHAPE.with_bonds(None)
    errors = [
        mpo.relative_error(w, mpo.to_matrix(mpo.slice_bonds(mpo.decompose(w, full, gauge), (4, 3))))
        for gauge in ("central", "identity")
    ]
    assert errors[1] > errors[0] + 0.01
