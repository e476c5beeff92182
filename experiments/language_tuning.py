"""The training of a language model, whatever it is trained on."""

import pathlib
from typing import Any

import ml_collections
from flax import nnx

from experiments import fitting, tuning
from experiments.render import runs
from mpojax import training
from mpojax.methods.mpoe import router_statistics
from mpojax.training.tasks import language_modeling

# Last values of the training that results keep.
_KEPT = ("mask_rate", "router/dropped", "router/entropy", "router/max_load")


def tune(
    config: ml_collections.ConfigDict,
    job: Any,
    folder: pathlib.Path,
    *,
    looked_at: Any,
    higher_is_better: bool,
    at_start: bool = False,
) -> tuning.Outcome | None:
    """Trains, and evaluates the last state, or the best on dev; None when it was interrupted.

    Args:
      config: of `configs/mpoe`.
      job: has model, train, dev, test (may be empty), evaluate, metric and name.
      folder: of the run.
      looked_at: evaluation data on which routers of experts are watched.
      higher_is_better: direction of `job.metric`.
      at_start: evaluate before the first step, too.
    """
    mesh = training.make_mesh(config.mesh.to_dict())
    optimizer = fitting.make_optimizer(config, job.model, config.steps)
    state = training.TrainState.create(job.model, nnx.Param, optimizer, seed=config.seed)
    best = job.metric if config.keep_best else None
    dev = training.Evaluate(
        "dev",
        job.dev,
        job.evaluate,
        every=config.eval_every,
        best=best,
        higher_is_better=higher_is_better,
        at_start=at_start,
    )
    hooks: list[training.Hook] = [dev]
    if job.model.config.experts:
        hooks.append(router_statistics.RouterStatistics(looked_at, every=config.router_every))
    result = fitting.fit(
        config,
        job.train,
        state,
        optimizer,
        loss=language_modeling.language_model_loss(
            config.balance_weight, config.z_weight, config.label_smoothing
        ),
        steps=config.steps,
        folder=folder,
        label=config.variant or job.name,
        hooks=hooks,
    )
    if result.interrupted:
        return None
    if job.model.config.experts:
        runs.write_router(folder)
    state, facts = result.state, {"fit": result.summary()}
    facts["training"] = {n: result.metrics[n] for n in _KEPT if n in result.metrics}
    prefix = "dev/"
    found = {n: v for n, v in result.metrics.items() if n.startswith(prefix)}
    metrics = {name.removeprefix(prefix): value for name, value in found.items()}
    if best:
        state = training.restore_best(folder, state)
        metrics = job.evaluate(state, job.dev, mesh)
        facts |= {"best_step": dev.best_step}
    if job.test:
        found = job.evaluate(state, job.test, mesh)
        metrics |= {f"test_{name}": value for name, value in found.items()}
    return tuning.Outcome(state, metrics, nnx.Param, facts, result.stop_requested is not None)
