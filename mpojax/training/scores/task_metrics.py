"""Official metrics of classification and regression tasks, exact, in float64 on the host.

Checked against scikit-learn and scipy; where a quotient is 0 / 0 the metric is 0.
"""

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of equal classes; both (N,) integers."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1; both (N,) of classes 0 and 1."""
    hits = np.sum((predictions == 1) & (labels == 1))
    total = np.sum(predictions == 1) + np.sum(labels == 1)
    return float(2 * hits / total) if total else 0.0


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation in -1..1 for any number of classes (Gorodkin 2004); both (N,)."""
    classes = np.unique(np.concatenate([predictions, labels]))
    predicted = (predictions[:, None] == classes).astype(np.float64)
    actual = (labels[:, None] == classes).astype(np.float64)
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    return _quotient(predicted, actual)


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Linear correlation in -1..1; both (N,) numbers. NaN if a prediction is not finite."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if not np.all(np.isfinite(x)):
        return float("nan")
    # Exactly constant values would otherwise leave rounding errors that correlate at random.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return _quotient(x - x.mean(), y - y.mean())


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of ranks in -1..1, equal values sharing their mean rank; both (N,) numbers."""
    if not np.all(np.isfinite(predictions)):
        return float("nan")
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _quotient(x: np.ndarray, y: np.ndarray) -> float:
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.clip(np.sum(x * y) / scale, -1.0, 1.0)) if scale else 0.0


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman)}
