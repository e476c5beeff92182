"""Evaluation of labelled tasks by their official metrics.

Of spans, the best one of all windows of a question counts, as text: the device finds the most
likely first and last tokens of each window; the host pairs them, so that start <= end and the
answer is not too long, and compares the texts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.data import pipeline
from mpojax.data.sources import squad
from mpojax.data.text import classification as text_classification
from mpojax.training import evaluation, objectives
from mpojax.training.scores import labelled as scores_lib


def evaluator(
    task: text_classification.TextTask, split: str | text_classification.Split | None = None
) -> evaluation.Evaluator:
    """The evaluator of a task: its official metrics over a whole split, {metric: value}.

    Correlations lie in -1..1, all other metrics in 0..1.

    Args:
      task: its kind says how the model is read, its `metrics` what is computed.
      split: what will be evaluated, a name or examples; None = the task's development split.

    Raises:
      ValueError: the task has no such split, or the split has no labels.
    """
    name = "given as examples"
    if not isinstance(split, text_classification.Split):
        name = split or task.dev_split
        split = task[name]
    if split.labels is None:
        raise ValueError(f"split {name!r} of task {task.name!r} has no labels; choose another")
    if task.kind == "span":
        return SpanEvaluator(split, task.metrics)
    predict = evaluation.classify if task.kind == "classification" else evaluation.score
    chosen = {name: scores_lib.METRICS[name] for name in task.metrics}

    def metrics(columns: evaluation.Columns) -> dict[str, float]:
        if "labels" not in columns:
            raise ValueError(f"the data has no labels; encode a split of task {task.name!r}")
        return {n: f(columns["predictions"], columns["labels"]) for n, f in chosen.items()}

    return evaluation.Evaluator(predict, metrics, task.metrics)


class SpanEvaluator(evaluation.Evaluator):
    """Metrics of a whole split of questions, as `Evaluator` does for classes.

    The data must be `EvalData` of `split.encode(...)` of the same split.

    Args:
      split: questions, contexts and right answers.
      metrics: names among `scores.labelled.SPAN_METRICS`.
      n_best: most likely starts, and ends, that are tried in each window.
      max_answer_length: in tokens.
    """

    def __init__(
        self,
        split: squad.SpanSplit,
        metrics: tuple[str, ...] = ("f1", "exact_match"),
        n_best: int = 20,
        max_answer_length: int = 30,
    ):
        checks.check_value("n_best", n_best, checks.integer(1))
        checks.check_value("max_answer_length", max_answer_length, checks.integer(1))
        super().__init__(self._best_places, dict, metrics)
        self.split = split
        self.n_best, self.max_answer_length = n_best, max_answer_length

    def __call__(self, model, data: pipeline.EvalData, mesh=None) -> dict[str, float]:
        texts = self.texts(model, data, mesh)
        return {
            m: scores_lib.mean_over_questions(m, texts, self.split.answers) for m in self.metrics
        }

    def texts(self, model, data: pipeline.EvalData, mesh=None) -> list[str]:
        """The predicted answer of each question; "" where no pair of positions is a span."""
        host = data.host_arrays
        index = host.get("example_index")
        if index is None or not np.array_equal(np.unique(index), np.arange(len(self.split))):
            raise ValueError(
                "the data does not hold the windows of this evaluator's split: pass EvalData of "
                "split.encode(...) of the same split"
            )
        columns = self.columns(model, data, mesh)
        spans, scores = best_spans(columns, self.max_answer_length)
        best = np.full(len(self.split), -np.inf)
        chosen = [""] * len(self.split)
        for window in np.flatnonzero(scores > -np.inf):
            example = index[window]
            if scores[window] > best[example]:
                best[example] = scores[window]
                start, end = spans[window]
                characters = host["offsets"][window, start, 0], host["offsets"][window, end, 1]
                chosen[example] = self.split.pairs[example][slice(*characters)]
        return chosen

    def _best_places(self, model: Any, batch: dict) -> dict[str, jax.Array]:
        logits = objectives.span_logits(objectives.outputs(model, batch), batch)
        logits = logits.astype(jnp.float32)
        # (F, 1, S), against logits (F, 2, S). Masked positions may hold any value, so they are set
        # to 0 before the check for finite ones.
        context = batch["context_mask"][:, None, :] != 0
        finite = evaluation.rows_are_finite(jnp.where(context, logits, 0.0))
        logits = jnp.where(context, logits, -jnp.inf)
        # Windows may be cropped to fewer tokens than n_best: all batches give equal shapes.
        short = max(0, self.n_best - logits.shape[2])
        logits = jnp.pad(logits, ((0, 0), (0, 0), (0, short)), constant_values=-jnp.inf)
        scores, places = jax.lax.top_k(logits, self.n_best)
        return {"scores": scores, "places": places, "is_finite": finite}


def best_spans(
    columns: evaluation.Columns, max_answer_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best span of each window.

    Args:
      columns: scores (F, 2, n) float32 of the n best starts and ends, -inf for those that must not
        be taken, and their positions (F, 2, n).
      max_answer_length: in tokens.

    Returns:
      Positions (F, 2) of first and last token, and their summed scores (F,), -inf where no pair
      of positions is a span.
    """
    # (F, n, 1) and (F, 1, n).
    starts, ends = columns["places"][:, 0, :, None], columns["places"][:, 1, None, :]
    # NaN scores are never the best.
    scores = np.nan_to_num(columns["scores"].astype(np.float64), nan=-np.inf, neginf=-np.inf)
    # (windows, starts, ends)
    total = scores[:, 0, :, None] + scores[:, 1, None, :]
    total = np.where((ends >= starts) & (ends - starts < max_answer_length), total, -np.inf)
    flat = total.reshape(len(total), -1)
    best = flat.argmax(1)
    # A flat index is (number of the start) * n + (number of the end).
    rows, width = np.arange(len(flat)), total.shape[2]
    places = columns["places"]
    spans = np.stack([places[rows, 0, best // width], places[rows, 1, best % width]], 1)
    return spans, flat[rows, best]
