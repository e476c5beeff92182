"""Search of factor lists: never worse than SVD, finds planted structure, keeps its budget."""

import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers
from tests.mpo.test_alternating import covariance


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


@pytest.mark.parametrize("size", [(12, 16), (24, 8), (18, 18)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("weighted", [True, False])
def test_never_worse_than_the_best_svd_of_equal_size(size, share, weighted):
    w = noise(*size)
    s = covariance(size[0]) if weighted else None
    budget = int(share * w.size)
    found = mpo.search_factors(w, budget, s, ridge=1e-3)
    assert found.shape.num_params <= budget
    rank = budget // sum(size)
    plain = mpo.to_matrix(mpo.low_rank(w, rank)) if rank else np.zeros_like(w)
    error = mpo.weighted_relative_error(w, plain, s)
    assert found.errors[0] <= found.low_rank_errors[0] <= error + 1e-12
    if weighted and rank:
        aware = mpo.low_rank(w, rank, mpo.regularized(s, size[0], 1e-3))
        aware_error = mpo.weighted_relative_error(w, mpo.to_matrix(aware), s)
        assert found.errors[0] <= aware_error + 1e-12
    measured = mpo.weighted_relative_error(w, mpo.to_matrix(found.cores[0], found.shape), s)
    assert found.errors[0] == pytest.approx(measured)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_planted_chain_is_found_where_low_rank_fails(weighted):
    """A Kronecker product of noise has full rank but a chain of bond 1."""
    w = np.kron(noise(6, 4), noise(4, 6, 1))
    s = covariance(24) if weighted else None
    found = mpo.search_factors(w, 60, s)
    assert found.errors[0] < 1e-9
    assert found.low_rank_errors[0] > 0.5
    assert found.shape.num_params <= 60


def test_longer_chains_are_found_too():
    shape = mpo.MPOShape((4, 3, 4), (3, 4, 2)).with_bonds(2)
    w = np.asarray(mpo.to_matrix(helpers.random_cores(shape, 1)), np.float64)
    found = mpo.search_factors(w, shape.num_params + 10)
    assert found.errors[0] < 1e-9 < found.low_rank_errors[0]


def test_decaying_spectra_give_low_rank():
    w = (noise(24, 6) * 0.5 ** np.arange(6)) @ noise(6, 20, 1)
    found = mpo.search_factors(w, 2 * 44)
    assert found.shape == mpo.MPOShape.low_rank(24, 20, 2)
    assert found.errors == found.low_rank_errors


def test_matrices_can_share_a_shape():
    ws = [np.kron(noise(6, 4, k), noise(4, 6, k + 9)) for k in range(3)]
    found = mpo.search_factors(ws, 60, [covariance(24, k) for k in range(3)])
    assert len(found.cores) == len(found.errors) == 3
    assert max(found.errors) < 1e-9
    for w, cores in zip(ws, found.cores, strict=True):
        np.testing.assert_allclose(mpo.to_matrix(cores, found.shape), w, atol=1e-8)
    # One of them has no such structure: it must not pay for the others.
    found = mpo.search_factors([*ws, noise(24, 24)], 60)
    pairs = zip(found.errors, found.low_rank_errors, strict=True)
    assert all(error <= low_rank for error, low_rank in pairs)


def test_budgets_below_rank_one_still_give_a_chain():
    found = mpo.search_factors(noise(16, 16), 30, covariance(16))
    assert found.shape.num_params <= 30
    assert found.low_rank_errors == (1.0,)
    assert found.errors[0] < 1.0


def test_sizes_without_divisors_are_padded():
    found = mpo.search_factors(noise(31, 29), 400)
    assert (found.shape.in_features, found.shape.out_features) == (31, 29)
    assert found.shape.num_params <= 400


def test_the_same_result_twice():
    w, s = noise(16, 18), covariance(16)
    one, other = (mpo.search_factors(w, 150, s) for _ in range(2))
    assert (one.shape, one.errors, one.tried) == (other.shape, other.errors, other.tried)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 3}, "budget of 3 parameters is too small"),
        ({"max_cores": 6}, r"max_cores=6 must be an integer from 2 to 5"),
        ({"w": [np.ones((6, 4)), np.ones((4, 6))]}, "must be matrices of one size"),
        ({"w": np.full((6, 4), np.inf)}, "w holds NaN or infinite entries"),
        ({"covariance": [np.eye(6)] * 2}, "2 covariances for 1 matrices"),
        ({"covariance": np.full((6, 6), np.nan)}, "covariance holds NaN"),
        ({"covariance": np.ones((6, 6)), "ridge": 0.0}, "covariance is singular"),
    ],
)
def test_bad_requests(change, message):
    request = {"w": noise(6, 4), "budget": 20}
    with pytest.raises(ValueError, match=message):
        mpo.search_factors(**(request | change))
