"""Errors that count by the inputs: metrics, low rank in closed form."""

import numpy as np
import pytest

from mpojax import mpo
from mpojax.mpo import weighted


def inputs(tokens, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, size)) @ rng.standard_normal((size, size))


def matrix(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def test_the_weighted_error_is_that_of_the_outputs():
    x, w, w_hat = inputs(50, 6), matrix(6, 9), matrix(6, 9, 2)
    expected = np.linalg.norm(x @ (w - w_hat)) / np.linalg.norm(x @ w)
    assert mpo.weighted_relative_error(w, w_hat, x.T @ x) == pytest.approx(expected)
    assert mpo.weighted_relative_error(w, w_hat) == pytest.approx(mpo.relative_error(w, w_hat))
    frequencies = np.array([3.0, 1, 0, 2, 5, 1])
    rows = np.repeat(np.arange(6), frequencies.astype(int))
    expected = np.linalg.norm((w - w_hat)[rows]) / np.linalg.norm(w[rows])
    assert mpo.weighted_relative_error(w, w_hat, frequencies) == pytest.approx(expected)
    np.testing.assert_allclose(
        mpo.whitened(w, frequencies), mpo.whitened(w, np.diag(frequencies)), atol=1e-12
    )
    white = mpo.whitened(w, x.T @ x)
    np.testing.assert_allclose(white.T @ white, w.T @ x.T @ x @ w)


@pytest.mark.parametrize("size", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("kind", ["full", "diagonal", "none"])
def test_low_rank_is_the_best_of_its_rank(size, kind):
    """Against the whitened truncated SVD, and against a descent from many random starts."""
    w = matrix(*size)
    x = inputs(40, size[0])
    s = {"full": x.T @ x, "diagonal": np.abs(x[0]) + 0.1, "none": None}[kind]
    root = np.eye(size[0])
    if s is not None:
        root = np.linalg.cholesky(s).T if s.ndim == 2 else np.diag(np.sqrt(s))
    u, singular, vt = np.linalg.svd(root @ w)
    errors = mpo.low_rank_errors(w, s)
    for rank in (1, 2, 4):
        best = np.linalg.inv(root) @ (u[:, :rank] * singular[:rank]) @ vt[:rank]
        cores = mpo.low_rank(w, rank, s)
        np.testing.assert_allclose(mpo.to_matrix(cores), best, atol=1e-9)
        assert mpo.shape_from_cores(cores) == mpo.MPOShape.low_rank(*size, rank)
        tail = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
        assert errors[rank] == pytest.approx(tail, rel=1e-6)
        assert mpo.weighted_relative_error(w, best, s) == pytest.approx(tail)
        assert _brute_force(root @ w, rank) >= tail * (1 - 1e-9)
    assert errors[0] == 1.0


def _brute_force(target, rank):
    """Least relative error that alternating least squares finds from 20 random starts."""
    found = []
    for seed in range(20):
        right = matrix(rank, target.shape[1], seed)
        for _ in range(200):
            left = np.linalg.lstsq(right.T, target.T, rcond=None)[0].T
            right = np.linalg.lstsq(left, target, rcond=None)[0]
        found.append(np.linalg.norm(target - left @ right))
    return min(found) / np.linalg.norm(target)


def test_low_rank_needs_no_inverse():
    """Three inputs for eight rows: rank 3 is exact on them."""
    x, w = matrix(3, 8, 5), matrix(8, 6)
    cores = mpo.low_rank(w, 3, x.T @ x)
    np.testing.assert_allclose(x @ mpo.to_matrix(cores), x @ w, atol=1e-9)


def test_a_ridge_makes_any_covariance_usable():
    x = matrix(3, 8)
    s = weighted.regularized(x.T @ x, 8)
    assert np.trace(s) / 8 == pytest.approx(1 + weighted.DEFAULT_RIDGE)
    assert np.linalg.eigvalsh(s)[0] == pytest.approx(weighted.DEFAULT_RIDGE, rel=1e-6)
    np.testing.assert_allclose(
        weighted.regularized(np.array([1.0, 0, 3]), 3, 0.5), [1.25, 0.5, 2.75]
    )
    good = inputs(50, 8)
    np.testing.assert_allclose(
        weighted.regularized(good.T @ good, 8, ridge=0.0) * np.trace(good.T @ good) / 8,
        good.T @ good,
    )


@pytest.mark.parametrize(
    ("covariance", "ridge", "message"),
    [
        (
            np.eye(3),
            0.1,
            r"shape \(3, 3\); .* with 4 rows it must be \(4, 4\), or \(4,\)",
        ),
        (np.full((4, 4), np.nan), 0.1, "holds NaN or infinite entries"),
        (np.eye(4), -1.0, "ridge=-1.0 must be a finite number of at least 0"),
        (np.eye(4), float("nan"), "ridge=nan must be a finite number"),
        (np.zeros((4, 4)), 0.1, "has no positive variance"),
        (np.array([1.0, -1, 2, 2]), 0.1, "has no positive variance"),
        (np.triu(np.ones((4, 4))), 0.1, "is not symmetric"),
        (np.ones((4, 4)), 0.0, r"is singular: .* more inputs than the 4 rows .* ridge above 0"),
        (np.array([1.0, 0, 2, 3]), 0.0, "is singular"),
    ],
)
def test_unusable_covariances_are_refused(covariance, ridge, message):
    with pytest.raises(ValueError, match=message):
        mpo.regularized(covariance, 4, ridge)


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match=r"rank=6 must be an integer from 1 to 5"):
        mpo.low_rank(matrix(5, 7), 6)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_whitening_by_digits_is_exact_where_one_core_holds_all_rows(kind):
    x, w = inputs(60, 6), matrix(6, 12)
    s = weighted.regularized(x.T @ x if kind == "full" else np.abs(x[0]), 6)
    shape = mpo.MPOShape((1, 6, 1), (3, 1, 4)).with_bonds((2, 3))
    cores = weighted.digit_whitened(w, shape, s)
    values, vectors = np.linalg.eigh(np.diag(s) if s.ndim == 1 else s)
    root = (vectors * np.sqrt(values)) @ vectors.T
    expected = np.linalg.inv(root) @ mpo.to_matrix(mpo.decompose(root @ w, shape))
    np.testing.assert_allclose(mpo.to_matrix(cores), expected, atol=1e-9)


def test_a_kronecker_covariance_is_whitened_exactly_by_digits():
    rng = np.random.default_rng(4)
    blocks = [b @ b.T + np.eye(3) for b in rng.standard_normal((2, 3, 3))]
    s, w = weighted.regularized(np.kron(*blocks), 9, 0.0), matrix(9, 8)
    shape = mpo.MPOShape((3, 3), (2, 4)).with_bonds(3)
    chain = mpo.to_matrix(weighted.digit_whitened(w, shape, s))
    best = mpo.decompose_with_spectra(mpo.whitened(w, s), mpo.MPOShape((3, 3), (2, 4)))[1]
    # Both roots differ by a Kronecker product of rotations, which leaves the spectrum alone.
    assert mpo.weighted_relative_error(w, chain, s) == pytest.approx(
        np.linalg.norm(best[0][3:]) / np.linalg.norm(best[0])
    )
