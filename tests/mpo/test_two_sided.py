"""Closed forms of approximation by inputs, by outputs and for changed inputs; golden cases."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mpojax import mpo

W = np.array([[2.0, 0], [0, 1], [1, 1]])
A = np.array([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]])
G = np.array([[1, 0.5], [0.5, 4]])
X = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [2, 0, 0]])
CHANGED = np.array([[1, 0, 0.5], [0, 1, 1], [1, 0.5, 0], [1.5, 0, 0]])


def loss(error, covariance, curvature=None):
    curvature = np.eye(error.shape[1]) if curvature is None else curvature
    return np.trace(curvature @ error.T @ covariance @ error)


def test_whitened():
    low_rank = mpo.LowRank(W, A)
    np.testing.assert_allclose(low_rank.spectrum**2, [10.242641, 1.757359], atol=1e-6)
    w = mpo.to_matrix(low_rank.cores(1))
    expected = [[1.707107, 0.707107], [0.353553, 0.146447], [1.207107, 0.5]]
    np.testing.assert_allclose(w, expected, atol=1e-6)
    assert loss(W - w, A) == pytest.approx(1.757359, abs=1e-6)
    plain = mpo.to_matrix(mpo.low_rank(W, 1))
    assert loss(W - plain, A) == pytest.approx(1.839749, abs=1e-6)


def test_whitened_by_a_singular_covariance():
    x = np.array([[1.0, 2, 2]])
    low_rank = mpo.LowRank(W, x.T @ x)
    np.testing.assert_allclose(low_rank.spectrum**2, [32, 0], atol=1e-6)
    w = mpo.to_matrix(low_rank.cores(1))
    np.testing.assert_allclose(w, [[1, 1], [0.5, 0.5], [1, 1]], atol=1e-6)


def test_whitened_on_both_sides():
    low_rank = mpo.LowRank(W, A, G)
    np.testing.assert_allclose(low_rank.spectrum**2, [20.746428, 3.253572], atol=1e-6)
    w = mpo.to_matrix(low_rank.cores(1))
    expected = [[0.828501, 0.514496], [0.943242, 0.585749], [1.357493, 0.842997]]
    np.testing.assert_allclose(w, expected, atol=1e-6)
    assert loss(W - w, A, G) == pytest.approx(3.253572, abs=1e-6)
    one_sided = mpo.to_matrix(mpo.low_rank(W, 1, A))
    assert loss(W - one_sided, A, G) == pytest.approx(5.636039, abs=1e-6)


def test_changed_inputs():
    covariance, cross = CHANGED.T @ CHANGED, CHANGED.T @ X
    target = mpo.corrected(W, covariance, cross, ridge=0.0)
    expected = [[2.482759, 0.220690], [-0.551724, 1.062069], [1.448276, 1.062069]]
    np.testing.assert_allclose(target, expected, atol=1e-6)
    assert np.sum((X @ W - CHANGED @ target) ** 2) == pytest.approx(0.420690, abs=1e-6)
    w = mpo.to_matrix(mpo.low_rank(target, 1, covariance))
    expected = [[2.363152, 0.653322], [-0.239776, -0.066289], [1.618215, 0.447375]]
    np.testing.assert_allclose(w, expected, atol=1e-6)
    assert np.sum((X @ W - CHANGED @ w) ** 2) == pytest.approx(4.179980, abs=1e-6)
    aimed_at_compressed = mpo.to_matrix(mpo.low_rank(W, 1, covariance))
    error = np.sum((X @ W - CHANGED @ aimed_at_compressed) ** 2)
    assert error == pytest.approx(5.438947, abs=1e-6)


def test_the_residual_of_a_stream_is_taken_up():
    rng = np.random.default_rng(0)
    x, w, missing = (rng.standard_normal(size) for size in ((50, 4), (4, 3), (50, 3)))
    target = mpo.corrected(w, x.T @ x, x.T @ x, x.T @ missing, ridge=0.0)
    naive = np.linalg.lstsq(x, x @ w + missing, rcond=None)[0]
    np.testing.assert_allclose(target, naive, atol=1e-9)


def test_a_ridge_pulls_to_the_weights():
    zero = np.zeros((3, 3))
    zero[0, 0] = 1.0
    target = mpo.corrected(W, zero, zero, ridge=0.1)
    np.testing.assert_allclose(target, W, atol=1e-9)  # nothing has entered: nothing changes


SPECTRA = [np.array([9.0, 4, 1]), np.array([6, 0.5])]
LOSSES = [np.append(np.cumsum(s[::-1])[::-1], 0.0) for s in SPECTRA]


@pytest.mark.parametrize(("budget", "ranks"), [(11, [1, 1]), (14, [None, 1]), (15, [None, None])])
def test_ranks_under_a_budget(budget, ranks):
    sizes = [(3, 3), (3, 2)]
    assert mpo.allocate_ranks(LOSSES, sizes, budget, pivoted=False) == ranks
    with pytest.raises(ValueError, match="below the 11 that rank 1 needs"):
        mpo.allocate_ranks(LOSSES, sizes, 10, pivoted=False)


@pytest.mark.parametrize(
    ("size", "ranks"),
    [
        ((576, 576), (230, 172, 115)),
        ((576, 192), (115, 86, 57)),
        ((576, 1536), (335, 251, 167)),
        ((4096, 11008), (2388, 1791, 1194)),
        ((576, 960), (288, 216, 144)),
    ],
)
def test_the_largest_ranks_of_a_share(size, ranks):
    for share, rank in zip((0.8, 0.6, 0.4), ranks, strict=True):
        falling = np.exp(-np.arange(min(size) + 1) / 5)
        budget = round(share * size[0] * size[1])
        (found,) = mpo.allocate_ranks([falling], [size], budget, pivoted=False)
        assert found == rank
        (pivoted,) = mpo.allocate_ranks([falling], [size], budget)
        assert pivoted > rank


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows, columns, tokens = (draw(st.integers(2, 9)) for _ in range(3))
    w = rng.standard_normal((rows, columns))
    x, g = (
        rng.standard_normal((tokens, rows)),
        rng.standard_normal((draw(st.integers(1, 9)), columns)),
    )
    return w, x.T @ x, mpo.ridged(g.T @ g, 0.1), draw(st.integers(1, min(rows, columns)))


@hypothesis.given(problems())
def test_no_other_low_rank_is_better_and_columns_may_be_permuted(problem):
    w, covariance, curvature, rank = problem
    low_rank = mpo.LowRank(w, covariance, curvature)
    best = mpo.to_matrix(low_rank.cores(rank))
    found = loss(w - best, covariance, curvature)
    tail = np.sum(low_rank.spectrum[rank:] ** 2)
    scale = 1e-7 * max(loss(w, covariance, curvature), 1e-9)
    assert found == pytest.approx(tail, abs=scale)
    for other in (mpo.low_rank(w, rank), mpo.low_rank(w, rank, covariance)):
        assert found <= loss(w - mpo.to_matrix(other), covariance, curvature) + scale
    rows, columns = (np.random.default_rng(0).permutation(n) for n in w.shape)
    permuted = mpo.LowRank(
        w[np.ix_(rows, columns)],
        covariance[np.ix_(rows, rows)],
        curvature[np.ix_(columns, columns)],
    )
    np.testing.assert_allclose(permuted.spectrum**2, low_rank.spectrum**2, atol=1e-6 * found + 1e-6)


@hypothesis.given(problems(), st.sampled_from([1e-30, 1e-9, 1e9]), st.booleans())
def test_scales_and_dead_inputs_change_nothing(problem, scale, dead):
    """Whatever the units of inputs and gradients, and where some or all inputs are zero."""
    w, covariance, curvature, rank = problem
    if dead:
        covariance = covariance * np.outer(*[np.arange(len(w)) % 2] * 2)
    low_rank = mpo.LowRank(w, covariance, curvature)
    best = mpo.to_matrix(low_rank.cores(rank))
    scaled = mpo.LowRank(w, scale * covariance, curvature / scale)
    found = mpo.to_matrix(scaled.cores(rank))
    assert np.isfinite(found).all()
    tail = np.sum(low_rank.spectrum[rank:] ** 2)
    close = 1e-6 * max(np.sum(low_rank.spectrum**2), 1e-9)
    for other in (best, found):
        assert loss(w - other, covariance, curvature) == pytest.approx(tail, abs=close)
    target = mpo.corrected(w, scale * covariance, scale * covariance)
    np.testing.assert_allclose(target, w, atol=1e-6)


def test_matrices_without_inputs_or_gradients_keep_their_weights():
    nothing = np.zeros((3, 3))
    np.testing.assert_array_equal(mpo.corrected(W, nothing, nothing), W)
    np.testing.assert_array_equal(mpo.ridged(np.zeros((2, 2)), 0.1), np.eye(2))
    assert np.isfinite(mpo.to_matrix(mpo.LowRank(W, nothing, np.eye(2)).cores(1))).all()


@st.composite
def allocations(draw):
    """(losses, sizes) of some matrices, in no order."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    sizes = [tuple(int(n) for n in rng.integers(2, 12, 2)) for _ in range(draw(st.integers(1, 6)))]
    spectra = [np.sort(rng.exponential(size=min(s)) ** 2)[::-1] * rng.exponential() for s in sizes]
    return [np.append(np.cumsum(s[::-1])[::-1], 0.0) for s in spectra], sizes


def predicted(losses, ranks):
    return sum(loss[-1 if rank is None else rank] for loss, rank in zip(losses, ranks, strict=True))


@hypothesis.given(allocations(), st.booleans(), st.randoms())
def test_more_parameters_never_predict_more_and_order_is_nothing(problem, pivoted, random):
    losses, sizes = problem
    least = sum(min(m * n, mpo.MPOShape.low_rank(m, n, 1, pivoted).num_params) for m, n in sizes)
    budgets = np.linspace(least, sum(m * n for m, n in sizes), 12).astype(int)
    found = [mpo.allocate_ranks(losses, sizes, int(b), pivoted=pivoted) for b in budgets]
    values = [predicted(losses, ranks) for ranks in found]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(values))
    assert values[-1] == 0.0
    order = random.sample(range(len(sizes)), len(sizes))
    permuted = [losses[i] for i in order], [sizes[i] for i in order]
    ranks = mpo.allocate_ranks(*permuted, int(budgets[6]), pivoted=pivoted)
    assert ranks == [found[6][i] for i in order]


def test_the_budget_of_svd_llm_v2():
    losses = np.array([10.0, 100, 1000])
    np.testing.assert_allclose(
        mpo.log_shares(losses, 0.6), [0.345455, 0.672727, 0.781818], atol=1e-6
    )
    np.testing.assert_allclose(mpo.log_shares(losses, 1.0), 1.0)
    # A matrix cannot lose more than all of itself: the others take the rest.
    np.testing.assert_allclose(mpo.log_shares(losses, 0.2), [0.0, 0.16, 0.44], atol=1e-9)
    with pytest.raises(ValueError, match="1 / log of a loss of 1 or less is no share"):
        mpo.log_shares(losses / 100, 0.6)
