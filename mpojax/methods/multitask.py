"""Several tasks in one classifier: each owns some columns of the head, the encoder is shared.

A linear head whose columns fall into blocks is one linear head for each task. An example counts
through the columns of its own task alone. As in table 2 of the MPOBERT paper.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mpojax import models
from mpojax.data import pipeline
from mpojax.data.text import classification as text_classification
from mpojax.training import evaluation, objectives

_KINDS = ("classification", "regression")


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """The columns of a shared head that belong to one task.

    Attributes:
      task: its name.
      kind: "classification" or "regression".
      start, stop: the columns.
      scale, shift: labels are `scale * output + shift`. A regression is learnt on labels of mean 0
        and standard deviation 1, so that its squared error starts as large as a cross-entropy.
    """

    task: str
    kind: str
    start: int
    stop: int
    scale: float = 1.0
    shift: float = 0.0
    label_names: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "label_names", tuple(self.label_names))  # JSON has lists alone

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns among those of all tasks, such as rte/entailment or stsb/score."""
        names = self.label_names or ("score",)
        if len(names) != self.stop - self.start:  # classes of a model saved without their names
            names = tuple(map(str, range(self.stop - self.start)))
        return tuple(f"{self.task}/{name}" for name in names)

    def own(self, logits):
        """(B, all outputs) -> (B, outputs of the task), a regression in the units of its labels."""
        logits = logits[:, self.start : self.stop]
        if self.kind == "classification":
            return logits
        return logits * np.float32(self.scale) + np.float32(self.shift)

    def view(self, model: Any) -> Callable[..., jax.Array]:
        """The model as objectives and evaluators of the single task call it."""
        return lambda *inputs: self.own(model(*inputs))


def make_heads(
    tasks: Mapping[str, text_classification.TextTask], labels: Mapping[str, np.ndarray]
) -> tuple[TaskHead, ...]:
    """Blocks of columns for the tasks, in their order.

    Args:
      tasks: by name.
      labels: of each task's training examples; those of a regression give its scale.

    Raises:
      ValueError: no task, or one that is neither a classification nor a regression.
    """
    if not tasks:
        raise ValueError("no tasks: several tasks in one model need at least one")
    heads: list[TaskHead] = []
    for name, task in tasks.items():
        if task.kind not in _KINDS:
            raise ValueError(
                f"task {name!r} is a {task.kind}: one head for several tasks takes {list(_KINDS)} "
                "only; fine-tune on it alone"
            )
        start, scale, shift = heads[-1].stop if heads else 0, 1.0, 0.0
        if task.kind == "regression":
            values = np.asarray(labels[name], np.float64)
            # Scores of mean 0 and variance 1 have losses of the size of a classification's.
            scale, shift = float(values.std()) or 1.0, float(values.mean())
        stop = start + task.num_labels
        heads.append(TaskHead(name, task.kind, start, stop, scale, shift, task.label_names))
    return tuple(heads)


def mixture_loss(heads: Sequence[TaskHead]) -> objectives.LossFunction:
    """The loss of `data.Mixture` batches: the mean over all rows of the loss of each row's task.

    Cross-entropy over the task's own columns; squared error of a regression's one, on labels of
    mean 0 and standard deviation 1. Metrics: the fraction of rows of classifications that
    are right (0 in a batch without such rows).

    Args:
      heads: in the order of the mixture's tasks; the batch has `task` (B,) int32 and `labels` (B,)
        float32, classes and scores alike.
    """
    # (tasks, columns): True at the columns of each task.
    columns = np.arange(heads[-1].stop)
    own = np.array([(columns >= head.start) & (columns < head.stop) for head in heads])
    is_regression = np.array([head.kind == "regression" for head in heads])
    first = np.array([head.start for head in heads], np.int32)
    scale, shift = (
        np.array([getattr(head, name) for head in heads], np.float32) for name in ("scale", "shift")
    )

    def loss_fn(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        logits = _checked(objectives.outputs(model, batch, key), len(columns))
        task, labels = batch["task"], objectives.labels_of(batch)
        scored = jnp.asarray(is_regression)[task]
        # A row's softmax is over the classes of its own task alone.
        masked = jnp.where(jnp.asarray(own)[task], logits, jnp.finfo(logits.dtype).min)
        # (B,): the first column of the task of each row, of a regression its only one.
        start = jnp.asarray(first)[task]
        targets = start + jnp.where(scored, 0, labels.astype(jnp.int32))
        entropies = optax.softmax_cross_entropy_with_integer_labels(masked, targets)
        scores = jnp.take_along_axis(logits, start[:, None], axis=1)[:, 0]
        wanted = (labels - jnp.asarray(shift)[task]) / jnp.asarray(scale)[task]
        # Both are computed for every row: shapes must not depend on the mixture of a batch.
        losses = jnp.where(scored, (scores - wanted) ** 2, entropies)
        hits = (jnp.argmax(masked, axis=-1) == targets) & ~scored
        count = jnp.maximum(jnp.sum(~scored), 1).astype(jnp.float32)
        return jnp.mean(losses), {"accuracy": jnp.sum(hits).astype(jnp.float32) / count}

    return loss_fn


class TasksEvaluator:
    """The official metrics of every task, as `<task>/<metric>`, and their `average`.

    Args:
      heads: of the shared model.
      evaluators: {task: evaluator of the task alone}; all of them run as one program.
      main: {task: the metric that counts in the average}.
    """

    AVERAGE = "average"

    def __init__(
        self,
        heads: Sequence[TaskHead],
        evaluators: Mapping[str, evaluation.Evaluator],
        main: Mapping[str, str],
    ):
        self.heads, self.evaluators, self.main = tuple(heads), dict(evaluators), dict(main)
        outputs = self.heads[-1].stop

        def predict(model: Any, batch: dict) -> dict[str, jax.Array]:
            logits = _checked(objectives.outputs(model, batch), outputs)
            return {"logits": logits, "is_finite": evaluation.rows_are_finite(logits)}

        self._logits = evaluation.Evaluator(predict, dict)

    def __call__(
        self, model: Any, data: Mapping[str, pipeline.EvalData], mesh=None
    ) -> dict[str, float]:
        """`data` holds the examples of every task; other arguments as in `Evaluator`."""
        found: dict[str, float] = {}
        for head in self.heads:
            single = self.evaluators[head.task]
            names = [f"{head.task}/{name}" for name in single.metrics]
            columns = self._logits.columns(model, data[head.task], mesh, metrics=names)
            logits = columns.pop("logits")
            # What the task's own evaluator would see, had it a model of its own.
            predicted = single.predict_fn(lambda *unused, of=head, x=logits: of.own(x), {})
            columns |= {name: np.asarray(value) for name, value in predicted.items()}
            metrics = single.metric_fn(columns)
            found |= {f"{head.task}/{name}": value for name, value in metrics.items()}
        main = [found[f"{task}/{metric}"] for task, metric in self.main.items()]
        return found | {self.AVERAGE: statistics.fmean(main)}


def single_task(model: models.SequenceClassifier, head: TaskHead) -> models.SequenceClassifier:
    """The model of one task, with its head cut out of the shared one; it can be trained on alone.

    A regression's scale goes into the head, so that its output is a label.
    """
    cut = models.head_columns(model, head.start, head.stop, scale=head.scale, shift=head.shift)
    source = cut.config.with_label_names(head.label_names).source_config
    return models.reconfigure(cut, source_config=source)


def _checked(logits: jax.Array, outputs: int) -> jax.Array:
    if logits.ndim != 2 or logits.shape[1] != outputs:
        raise ValueError(
            f"these tasks need a model with {outputs} outputs, logits (B, {outputs}); got shape "
            f"{logits.shape}. Give the model a head with num_labels={outputs}"
        )
    return logits
