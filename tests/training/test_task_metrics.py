"""Official metrics against scikit-learn and scipy."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mpojax.training.scores import labelled


def pairs(values):
    """Two equally long lists."""
    return st.integers(2, 30).flatmap(
        lambda n: st.tuples(*[st.lists(values, min_size=n, max_size=n)] * 2)
    )


@hypothesis.given(pairs(st.integers(0, 1)))
def test_binary(columns):
    predictions, labels = np.array(columns)
    expected = sklearn.metrics.f1_score(labels, predictions, zero_division=0)
    assert labelled.f1(predictions, labels) == pytest.approx(expected, abs=1e-12)
    expected = sklearn.metrics.accuracy_score(labels, predictions)
    assert labelled.accuracy(predictions, labels) == pytest.approx(expected, abs=1e-12)


@hypothesis.given(pairs(st.integers(0, 3)))
def test_matthews(columns):
    predictions, labels = np.array(columns)
    one_class = len(set(predictions) | set(labels)) == 1  # the oracle warns, and says 0
    expected = 0 if one_class else sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert labelled.matthews(predictions, labels) == pytest.approx(expected, abs=1e-12)


@hypothesis.given(pairs(st.integers(-50, 50)))
def test_correlations(columns):
    predictions, labels = np.array(columns, np.float32) / 10
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        assert labelled.pearson(predictions, labels) == 0
        assert labelled.spearman(predictions, labels) == 0
        return
    expected = scipy.stats.pearsonr(*np.float64([predictions, labels])).statistic
    assert labelled.pearson(predictions, labels) == pytest.approx(expected, abs=1e-9)
    expected = scipy.stats.spearmanr(predictions, labels).statistic
    assert labelled.spearman(predictions, labels) == pytest.approx(expected, abs=1e-9)


def test_known_values():
    labels, predictions = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0, 0])
    assert labelled.accuracy(predictions, labels) == 0.75
    assert labelled.f1(predictions, labels) == pytest.approx(2 / 3)
    # (2 * 4 - 1 * 1) / sqrt(3 * 3 * 5 * 5)
    assert labelled.matthews(predictions, labels) == pytest.approx(7 / 15)
    assert labelled.matthews(1 - labels, labels) == -1
    assert labelled.spearman(np.exp(np.arange(9.0)), np.arange(9)) == pytest.approx(1)


def test_predictions_that_are_not_finite_are_never_scored():
    for value in (np.nan, np.inf):
        predictions = np.array([1.0, value, 3.0])
        assert np.isnan(labelled.pearson(predictions, np.arange(3.0)))
        assert np.isnan(labelled.spearman(predictions, np.arange(3.0)))
