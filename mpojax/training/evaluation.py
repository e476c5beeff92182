"""Exact metrics over a whole data set.

The device computes one value or row per example; padding is dropped and the metric is computed on
the host over all examples, so that it never depends on batch size or number of devices. Any metric
of a benchmark fits: accuracy, F1, correlations, or a perplexity from per-example sums.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mpojax.data import pipeline
from mpojax.training import objectives, sharding, task_metrics
from mpojax.training import state as state_lib

Columns = Mapping[str, np.ndarray]  # {name: (N, ...)}, one row per example

# (model, batch) -> {name: (B, ...)}
PredictFunction = Callable[[Any, dict], dict]


class Evaluator:
    """Runs a model over evaluation data; compiled once per batch shape.

    Args:
      predict_fn: (model, batch) -> {name: (B, ...)}, per-example results; the batch's `labels` are
        added by themselves.
      metric_fn: {name: (N, ...)} on the host -> {metric: number}.
    """

    def __init__(
        self, predict_fn: PredictFunction, metric_fn: Callable[[Columns], dict[str, float]]
    ):
        self.predict_fn, self.metric_fn = predict_fn, metric_fn
        self._compiled: dict[Mesh, Callable] = {}

    def __call__(
        self,
        model: nnx.Module | state_lib.TrainState,
        data: pipeline.EvalData,
        mesh: Mesh | None = None,
    ) -> dict[str, float]:
        return self.metric_fn(self.columns(model, data, mesh))

    def columns(
        self,
        model: nnx.Module | state_lib.TrainState,
        data: pipeline.EvalData,
        mesh: Mesh | None = None,
    ) -> dict[str, np.ndarray]:
        """Per-example results {name: (N, ...)} of all examples, in the data's order."""
        mesh = mesh or sharding.make_mesh()
        rows = sharding.local_rows(data.batch_size, mesh)
        parts = _parts(model, mesh)
        if mesh not in self._compiled:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._compiled[mesh] = jax.jit(
                self._predict, static_argnums=0, out_shardings=everywhere
            )
        predict, collected, waiting = self._compiled[mesh], [], None
        with jax.set_mesh(mesh):
            for index in range(len(data)):
                batch = sharding.place_batch(data.rows(index, rows), data.batch_size, mesh)
                running = predict(*parts, batch)
                if waiting is not None:  # fetched one batch late: the device never waits
                    collected.append(_real_rows(waiting))
                waiting = running
        collected.append(_real_rows(waiting))
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
    return {"predictions": jnp.argmax(logits, axis=-1).astype(jnp.int32)}


def score(model: Any, batch: dict) -> dict[str, jax.Array]:
    """`predict_fn` of a regression: the one output (B,) of its logits (B, 1), float32."""
    return {"predictions": objectives.scores(objectives.outputs(model, batch)).astype(jnp.float32)}


def accuracy(columns: Columns) -> dict[str, float]:
    """Share of examples whose prediction equals the label."""
    return {"accuracy": task_metrics.accuracy(columns["predictions"], columns["labels"])}


def _parts(model: nnx.Module | state_lib.TrainState, mesh: Mesh) -> tuple:
    if isinstance(model, state_lib.TrainState):
        return model.definition, model.trainable, model.frozen
    definition, variables, rest = state_lib.split(model, nnx.Param)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = sharding.place(
        (variables, rest), jax.tree.map(lambda _: everywhere, (variables, rest))
    )
    return definition, *placed


def _real_rows(results: dict) -> dict[str, np.ndarray]:
    host = {name: np.asarray(value) for name, value in results.items()}
    mask = host.pop("example_mask")
    return {name: value[mask] for name, value in host.items()}
