"""One first core for several matrices: golden case, limits, never worse than its start."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mpojax import mpo
from tests.mpo.test_two_sided import A, W, loss

W2 = np.array([[1.0, 1], [0, 2], [1, -1]])
A2 = np.array([[1.0, 0, 0], [0, 1, 0.5], [0, 0.5, 3]])


def errors(shared, ws, metrics, rank, turns, curvatures=(None, None)):
    first, seconds = shared.cores(rank, turns)
    found = [mpo.to_matrix((first, second)) for second in seconds]
    triples = zip(ws, found, metrics, curvatures, strict=True)
    return sum(loss(w - w_hat, metric, g) for w, w_hat, metric, g in triples)


def test_the_golden_case():
    shared = mpo.SharedLowRank([W, W2], [A, A2])
    for turns, value in ((0, 9.337717), (1, 8.585609), (2, 8.074795), (60, 7.815523)):
        assert errors(shared, (W, W2), (A, A2), 1, turns) == pytest.approx(value, abs=1e-6)
    assert shared.squared_errors[1] == pytest.approx(9.337717, abs=1e-6)
    # The coefficients of the joint decomposition, without a fit of their own.
    joint = mpo.LowRank(np.concatenate([W, W2], 1), A + A2)
    both = np.split(mpo.to_matrix(joint.cores(1)), 2, axis=1)
    common = loss(W - both[0], A) + loss(W2 - both[1], A2)
    assert common == pytest.approx(10.572742, abs=1e-6)
    private = [mpo.LowRank(*pair).squared_errors[1] for pair in ((W, A), (W2, A2))]
    np.testing.assert_allclose(private, [1.757359, 3.585786], atol=1e-6)


@st.composite
def families(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows, columns, number = (draw(st.integers(2, 7)) for _ in range(3))
    ws = [rng.standard_normal((rows, columns)) for _ in range(number)]
    inputs = [rng.standard_normal((draw(st.integers(1, 9)), rows)) for _ in range(number)]
    grads = [mpo.ridged(np.cov(rng.standard_normal((columns, 9))), 0.1) for _ in range(number)]
    rank = draw(st.integers(1, min(rows, number * columns)))
    return ws, [x.T @ x for x in inputs], [np.atleast_2d(g) for g in grads], rank


@hypothesis.given(families())
def test_turns_only_help_and_no_chain_of_its_own_is_worse(family):
    ws, covariances, curvatures, rank = family
    shared = mpo.SharedLowRank(ws, covariances, curvatures)
    given = ws, covariances, rank
    values = [errors(shared, *given, turns, curvatures) for turns in (0, 1, 3)]
    scale = 1e-6 * shared.squared_errors[0] + 1e-9
    assert values[0] == pytest.approx(shared.squared_errors[rank], abs=scale)
    assert values[1] <= values[0] + scale
    assert values[2] <= values[1] + scale
    curve = shared.squared_errors
    assert np.all(np.diff(curve) <= scale)
    triples = zip(ws, covariances, curvatures, strict=True)
    private = [mpo.LowRank(*each).squared_errors for each in triples]
    least = sum(each[min(rank, len(each) - 1)] for each in private)
    assert values[2] >= least - scale


def test_equal_matrices_share_for_nothing():
    shared = mpo.SharedLowRank([W, W, W], [A] * 3)
    assert errors(shared, [W] * 3, [A] * 3, 1, 0, [None] * 3) == pytest.approx(
        3 * 1.757359, abs=1e-5
    )
    with pytest.raises(ValueError, match="rank=4 must be an integer from 1 to 3"):
        shared.cores(4)
