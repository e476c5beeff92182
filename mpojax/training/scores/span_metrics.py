"""SQuAD's official exact match and F1 (evaluation script of v1.1)."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra whitespace."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are equal after `normalize`, else 0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words, in 0..1; 0 if they share none."""
    predicted, right = normalize(prediction).split(), normalize(answer).split()
    common = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(right)
    return 2 * precision * recall / (precision + recall)


METRICS = {"exact_match": exact_match, "f1": f1}


def mean(metric: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Mean over the questions of the best value among the right answers of each, in 0..1."""
    compare = METRICS[metric]
    pairs = zip(predictions, answers, strict=True)
    return float(np.mean([max(compare(guess, text) for text in right) for guess, right in pairs]))
