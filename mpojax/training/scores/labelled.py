"""Official metrics of labelled tasks, exact, in float64 on the host.

Those of classes and scores are checked against scikit-learn and scipy (where a quotient is 0 / 0
they are 0), those of answers against SQuAD's evaluation script of v1.1.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of equal classes; both (N,) integers."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1; both (N,) of classes 0 and 1."""
    hits = np.sum((predictions == 1) & (labels == 1))
    total = np.sum(predictions == 1) + np.sum(labels == 1)
    # 2 TP / ((TP + FP) + (TP + FN))
    return float(2 * hits / total) if total else 0.0


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation in -1..1 for any number of classes (Gorodkin 2004); both (N,)."""
    classes = np.unique(np.concatenate([predictions, labels]))
    predicted = (predictions[:, None] == classes).astype(np.float64)
    actual = (labels[:, None] == classes).astype(np.float64)
    # R_K = cov(X, Y) / sqrt(cov(X, X) cov(Y, Y)) of one-hot rows
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
    # c equal values, the last of rank r: mean rank r - (c - 1) / 2
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _quotient(x: np.ndarray, y: np.ndarray) -> float:
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.clip(np.sum(x * y) / scale, -1.0, 1.0)) if scale else 0.0


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman)}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra whitespace."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are equal after `normalize_answer`, else 0.

    >>> exact_match("The Eiffel tower.", "eiffel tower")
    1.0
    """
    return float(normalize_answer(prediction) == normalize_answer(answer))


def word_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words, in 0..1; 0 if they share none."""
    predicted, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(right)
    return 2 * precision * recall / (precision + recall)


SPAN_METRICS = {"exact_match": exact_match, "f1": word_f1}


def mean_over_questions(
    metric: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> float:
    """Mean over the questions of the best value among the right answers of each, in 0..1."""
    compare = SPAN_METRICS[metric]
    pairs = zip(predictions, answers, strict=True)
    return float(np.mean([max(compare(guess, text) for text in right) for guess, right in pairs]))
