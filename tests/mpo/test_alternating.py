"""Alternating least squares: monotone, exact where it can be, plain without a covariance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo import alternating, weighted
from tests.mpo import helpers

SHAPES = {
    "three cores": mpo.MPOShape((2, 3, 2), (3, 2, 2)),
    "five cores": mpo.MPOShape((2, 2, 2, 2, 2), (2, 1, 3, 2, 2)),
    "padded": mpo.MPOShape((3, 4, 2), (2, 3, 3), in_features=22, out_features=17),
    "rows in one core": mpo.MPOShape((1, 8, 1), (3, 1, 4)),
    "two cores": mpo.MPOShape((4, 3), (2, 5)),
}


def covariance(size, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * size, size)) * np.geomspace(1, 30, size)
    return weighted.regularized(x.T @ x, size)


def matrix(shape, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape.in_features, shape.out_features))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("cap", [1, 3])
def test_errors_only_fall_and_end_below_every_start(name, cap):
    shape = SHAPES[name].with_bonds(cap)
    w, s = matrix(shape), covariance(shape.in_features)
    fit = mpo.fit(w, shape, s, sweeps=8, tolerance=0.0)
    assert np.all(np.diff(fit.errors) <= 0)
    starts = [mpo.decompose(w, shape), weighted.digit_whitened(w, shape, s)]
    errors = [mpo.weighted_relative_error(w, mpo.to_matrix(c, shape), s) for c in starts]
    assert fit.errors[0] == pytest.approx(min(errors))
    assert fit.error <= min(errors) + 1e-12
    measured = mpo.weighted_relative_error(w, mpo.to_matrix(fit.cores, shape), s)
    assert measured == pytest.approx(fit.error)
    assert mpo.shape_from_cores(fit.cores).bond_dims == shape.bond_dims
    tail = mpo.low_rank_errors(w, s)
    if name == "rows in one core":
        assert fit.error < 1.0
    else:
        assert 0 < fit.error < fit.errors[0]
    assert tail[-1] < 1e-7


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=10)
def test_no_start_gets_worse(seed, cap):
    shape = SHAPES["three cores"].with_bonds(cap)
    w, s = matrix(shape, seed), covariance(shape.in_features, seed)
    start = helpers.random_cores(shape, seed)
    fit = mpo.fit(w, shape, s, start=start, sweeps=3)
    before = mpo.weighted_relative_error(w, mpo.to_matrix(start, shape), s)
    assert fit.errors[0] == pytest.approx(before)
    assert fit.error <= before


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_chain_can_hold_is_found_exactly(name):
    shape = SHAPES[name].with_bonds(2)
    w = mpo.to_matrix(helpers.random_cores(shape, 3), shape)
    w = w[: shape.in_features, : shape.out_features]
    fit = mpo.fit(np.asarray(w, np.float64), shape, covariance(shape.in_features))
    if shape.is_padded:  # the padding of these cores is not zero: a chain with zeros is another one
        assert fit.error < 0.7
    else:
        assert fit.error < 1e-10


@pytest.mark.parametrize("name", SHAPES)
def test_full_bonds_are_exact(name):
    shape = SHAPES[name]
    w = matrix(shape)
    fit = mpo.fit(w, shape, covariance(shape.in_features))
    np.testing.assert_allclose(mpo.to_matrix(fit.cores, shape), w, atol=1e-10)


def test_without_weights_one_cut_bond_is_the_plain_truncation():
    shape = SHAPES["two cores"].with_bonds(3)
    w = matrix(shape)
    plain = mpo.to_matrix(mpo.decompose(w, shape))
    for s in (None, np.eye(12), np.ones(12)):
        np.testing.assert_allclose(mpo.to_matrix(mpo.fit(w, shape, s).cores), plain, atol=1e-9)
    low_rank = mpo.MPOShape.low_rank(12, 10, 4)
    plain = mpo.to_matrix(mpo.decompose(w, low_rank))
    for s in (None, np.eye(12), np.ones(12)):
        np.testing.assert_allclose(mpo.to_matrix(mpo.fit(w, low_rank, s).cores), plain, atol=1e-9)


def test_without_weights_chains_are_never_worse_than_their_truncation():
    for name in ("three cores", "five cores", "padded"):
        shape = SHAPES[name].with_bonds(3)
        w = matrix(shape)
        plain = mpo.relative_error(w, mpo.to_matrix(mpo.decompose(w, shape), shape))
        assert mpo.fit(w, shape).error <= plain + 1e-12


def test_low_rank_is_solved_in_closed_form():
    w, s = matrix(SHAPES["two cores"]), covariance(12)
    fit = mpo.fit(w, mpo.MPOShape.low_rank(12, 10, 4), s)
    assert fit.errors == (fit.error,)
    assert fit.error == pytest.approx(mpo.low_rank_errors(w, s)[4])


def test_a_diagonal_covariance_is_that_matrix():
    shape = SHAPES["three cores"].with_bonds(3)
    w, frequencies = matrix(shape), np.linspace(0.1, 4, 12)
    one, other = (mpo.fit(w, shape, s) for s in (frequencies, np.diag(frequencies)))
    np.testing.assert_allclose(one.errors, other.errors)


def test_many_sweeps_end_where_no_core_can_improve():
    """The gradient of every core vanishes: a stationary point of the weighted error."""
    shape = SHAPES["three cores"].with_bonds(2)
    w, s = matrix(shape), covariance(12)
    fit = mpo.fit(w, shape, s, sweeps=400, steps=50, tolerance=0.0)
    slope = s @ (w - mpo.to_matrix(fit.cores))
    for k in range(3):
        gradient = alternating.Site(list(fit.cores), k).adjoint(slope)
        assert np.abs(gradient).max() < 1e-4 * np.abs(s @ w).max()


def test_zero_matrices_and_the_same_result_twice():
    shape = SHAPES["five cores"].with_bonds(2)
    zero = mpo.fit(np.zeros((32, 24)), shape, covariance(32))
    assert zero.error == 0.0
    assert not np.any(mpo.to_matrix(zero.cores))
    w, s = matrix(shape), covariance(32)
    one, other = (mpo.fit(w, shape, s) for _ in range(2))
    for a, b in zip(one.cores, other.cores, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_requests():
    shape = SHAPES["two cores"].with_bonds(2)
    with pytest.raises(ValueError, match=r"w has shape \(3, 3\)"):
        mpo.fit(np.ones((3, 3)), shape)
    with pytest.raises(ValueError, match="w holds NaN"):
        mpo.fit(np.full((12, 10), np.nan), shape)
    with pytest.raises(ValueError, match=r"start has cores .* are needed"):
        mpo.fit(np.ones((12, 10)), shape, start=helpers.random_cores(shape.with_bonds(1), 0))


def test_low_rank_and_full_chains_end_at_the_optimum_from_any_start():
    w, s = matrix(SHAPES["two cores"]), covariance(12)
    best = mpo.low_rank(w, 3, s)
    for shape, wanted in (
        (mpo.MPOShape.low_rank(12, 10, 3), mpo.weighted_relative_error(w, mpo.to_matrix(best), s)),
        (SHAPES["two cores"], 0.0),
    ):
        fit = mpo.fit(w, shape, s, start=helpers.random_cores(shape, 0))
        assert fit.error == pytest.approx(wanted, abs=1e-9)
