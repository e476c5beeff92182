"""Exact metrics over a whole data set.

The device computes one value or row per example; padding is dropped and the metric is computed on
the host over all examples, so that it never depends on batch size or number of devices. Any metric
of a benchmark fits: accuracy, F1, correlations, or a perplexity from per-example sums.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mpojax.data import pipeline
from mpojax.training import objectives, progress, sharding
from mpojax.training import state as state_lib
from mpojax.training.scores import labelled

Columns = Mapping[str, np.ndarray]  # {name: (N, ...)}, one row per example

# (model, batch) -> {name: (B, ...)}
PredictFunction = Callable[[Any, dict], dict]


class NonFiniteOutputError(FloatingPointError):
    """Error for a NaN or infinite output of an example, of which no metric means a thing.

    An argmax or a ranking would hide it: of logits that are all NaN the "best" class is the first.
    """


class Evaluator:
    """Runs a model over evaluation data; compiled once per batch shape.

    Args:
      predict_fn: (model, batch) -> {name: (B, ...)}, per-example results; the batch's `labels` are
        added by themselves. `is_finite` (B,), where it is given, says whether the outputs behind
        them are finite.
      metric_fn: {name: (N, ...)} on the host -> {metric: number}.
      metrics: their names, for errors; default: the name of `metric_fn`.

    Raises:
      NonFiniteOutputError: when called, for outputs that are not finite, or results that are NaN
        or +infinite; names the metrics, the batch and the first such example.
    """

    def __init__(
        self,
        predict_fn: PredictFunction,
        metric_fn: Callable[[Columns], dict[str, float]],
        metrics: Sequence[str] = (),
    ):
        self.predict_fn, self.metric_fn = predict_fn, metric_fn
        self.metrics = tuple(metrics) or (getattr(metric_fn, "__name__", "metrics"),)
        self._compiled: dict[Mesh, Callable] = {}

    def __call__(
        self,
        model: nnx.Module | state_lib.TrainState,
        data: pipeline.EvalBatches,
        mesh: Mesh | None = None,
    ) -> dict[str, float]:
        return self.metric_fn(self.columns(model, data, mesh))

    def columns(
        self,
        model: nnx.Module | state_lib.TrainState,
        data: pipeline.EvalBatches,
        mesh: Mesh | None = None,
        *,
        metrics: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Per-example results {name: (N, ...)} of all examples, in the data's order.

        `metrics` are named in errors instead of the evaluator's own.
        """
        mesh = mesh or sharding.make_mesh()
        rows = sharding.local_rows(data.batch_size, mesh)
        parts = _parts(model, mesh)
        if mesh not in self._compiled:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._compiled[mesh] = jax.jit(
                self._predict, static_argnums=0, out_shardings=everywhere
            )
        predict, collected, waiting = self._compiled[mesh], [], None
        advance = progress.lines("evaluating", at_end=False)

        def fetch(results: dict) -> None:
            collected.append(_real_rows(results))
            where = f"batch {len(collected)} of {len(data)}"
            examples = data.order[(len(collected) - 1) * data.batch_size :]
            check_finite(collected[-1], examples, metrics or self.metrics, where)

        with jax.set_mesh(mesh):
            for index in range(len(data)):
                batch = sharding.shard_batch(data.rows(index, rows), data.batch_size, mesh)
                running = predict(*parts, batch)
                if waiting is not None:  # fetched one batch late: the device never waits
                    fetch(waiting)
                waiting = running
                advance(index + 1, len(data), "")
        fetch(waiting)
        back = np.argsort(data.order)  # batches may go by length
        return {name: np.concatenate([c[name] for c in collected])[back] for name in collected[0]}

    def _predict(self, definition, trainable, frozen, batch: dict) -> dict:
        results = dict(self.predict_fn(definition.merge(trainable, frozen), batch))
        for name in ("example_mask", "labels"):
            if name in batch:
                results.setdefault(name, batch[name])
        return results


def classify(model: Any, batch: dict) -> dict[str, jax.Array]:
    """`predict_fn` of a text classifier: the most likely class (B,) of its logits (B, C)."""
    logits = objectives.outputs(model, batch)
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return {"predictions": predictions, "is_finite": rows_are_finite(logits)}


def score(model: Any, batch: dict) -> dict[str, jax.Array]:
    """`predict_fn` of a regression: the one output (B,) of its logits (B, 1), float32."""
    scores = objectives.scores(objectives.outputs(model, batch)).astype(jnp.float32)
    return {"predictions": scores, "is_finite": jnp.isfinite(scores)}


def rows_are_finite(values: jax.Array) -> jax.Array:
    """(B, ...) -> (B,): whether all values of a row are finite."""
    return jnp.all(jnp.isfinite(values), axis=tuple(range(1, values.ndim)))


def accuracy(columns: Columns) -> dict[str, float]:
    """Fraction of examples whose prediction equals the label."""
    return {"accuracy": labelled.accuracy(columns["predictions"], columns["labels"])}


def check_finite(
    columns: dict[str, np.ndarray], examples: np.ndarray, metrics: Sequence[str], where: str
) -> None:
    """Checks the results of one batch; takes `is_finite` out of them.

    Args:
      columns: results of the batch's examples, as `Evaluator` has them.
      examples: their indices in the data; there may be more.
      metrics: computed from them.
      where: the batch.

    Raises:
      NonFiniteOutputError: see `Evaluator`.
    """
    good = np.array(columns.pop("is_finite", True))
    for value in columns.values():
        if jnp.issubdtype(value.dtype, jnp.floating):
            is_number = ~np.isnan(value) & (value != np.inf)  # -inf: "impossible", as of spans
            good = good & is_number.reshape(len(value), -1).all(1)
    if not good.all():
        first = examples[np.flatnonzero(~good)[0]]
        raise NonFiniteOutputError(
            f"{', '.join(metrics)}: the model's output for {np.sum(~good)} of {len(good)} examples "
            f"in {where} is NaN or infinite (the first: example {first}, counted from 0). The "
            "model's parameters may hold NaN, or its dtype may be too narrow for its activations"
        )


def _parts(model: nnx.Module | state_lib.TrainState, mesh: Mesh) -> tuple:
    if isinstance(model, state_lib.TrainState):
        return model.definition, model.trainable, model.frozen
    definition, variables, rest = state_lib.split(model, nnx.Param)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = sharding.device_put(
        (variables, rest), jax.tree.map(lambda _: everywhere, (variables, rest))
    )
    return definition, *placed


def _real_rows(results: dict) -> dict[str, np.ndarray]:
    host = {name: np.asarray(value) for name, value in results.items()}
    mask = host.pop("example_mask")
    return {name: value[mask] for name, value in host.items()}
