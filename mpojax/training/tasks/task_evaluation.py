"""From a task to the evaluator of its official metrics."""

from mpojax.data.text import classification as text_classification
from mpojax.training import evaluation
from mpojax.training.scores import task_metrics
from mpojax.training.tasks import span_evaluation


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
        return span_evaluation.SpanEvaluator(split, task.metrics)
    predict = evaluation.classify if task.kind == "classification" else evaluation.score
    chosen = {name: task_metrics.METRICS[name] for name in task.metrics}

    def metrics(columns: evaluation.Columns) -> dict[str, float]:
        if "labels" not in columns:
            raise ValueError(f"the data has no labels; encode a split of task {task.name!r}")
        return {n: f(columns["predictions"], columns["labels"]) for n, f in chosen.items()}

    return evaluation.Evaluator(predict, metrics, task.metrics)
