"""Common part of fine-tuning on one task and on several: a run in its folder, and its fit.

Pre-training ends and saves in the same way.
"""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
from absl import logging
from flax import nnx

from experiments import fitting, jobs
from mpojax import compression, files, io, models, training
from mpojax.methods import mpop

# Of use to unfinished runs.
_LEFTOVERS = (
    *("checkpoints", "best-dev", "squeezing/accepted"),
    *("search/checkpoints", "retrain/checkpoints"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of the training of a run.

    Attributes:
      state: what is reported.
      metrics: of it, on the development data.
      trainable: filter of what was trained.
      facts: more entries of the result.
      stop_requested: nothing should follow the run, although it is finished.
    """

    state: training.TrainState
    metrics: dict[str, float]
    trainable: Any
    facts: dict[str, Any]
    stop_requested: bool = False


def main(
    run_: Callable[[ml_collections.ConfigDict, str], int],
    config: ml_collections.ConfigDict,
    folder: str,
) -> int:
    """Runs a job in a folder; returns the exit status."""
    if run_(config, folder):
        logging.info("stopped; start the same command again to resume")
        return 0
    if jax.process_index() == 0:
        print((pathlib.Path(folder) / "summary.txt").read_text(encoding="utf-8"))
        logging.info("everything is in %s", folder)
    return 0


def run(
    config: ml_collections.ConfigDict,
    folder: str | pathlib.Path,
    *,
    prepare: Callable[[ml_collections.ConfigDict], jobs.Job],
    train: Callable[[ml_collections.ConfigDict, jobs.Job, pathlib.Path], Outcome | None],
    describe: Callable[[ml_collections.ConfigDict, jobs.Job, Outcome], dict[str, Any]],
    summary: Callable[[dict], str],
) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop.

    A signal in the last step finds the run finished, all the same nothing should follow it.

    Args:
      config: checked.
      folder: new, or that of the same run.
      prepare: loads what the config asks for.
      train: does the work; None when it was interrupted.
      describe: entries of the result in addition to those that all runs have.
      summary: the human-readable summary of a result.
    """
    start = time.perf_counter()
    # A folder with a run is compared first; a new one is claimed once data, model and rules fit, so
    # that a mistyped command leaves nothing behind.
    known = (pathlib.Path(folder) / "config.json").is_file()
    workdir = training.Workdir(folder, config) if known else None
    if workdir is not None and workdir.finished:
        return 0
    job = prepare(config)
    fitting.make_optimizer(config, job.model, config.steps)  # a mistake in it shows before
    workdir = workdir or training.Workdir(folder, config)
    parts = {name: getattr(job, name, None) for name in ("train", "dev", "held_out", "test")}
    workdir.check_data(fingerprints(parts))
    if job.report is not None and jax.process_index() == 0:
        job.report.to_csv(workdir.path / "compression.csv")
    outcome = train(config, job, workdir.path)
    if outcome is None:
        return 1
    result = _result(config, job, outcome) | describe(config, job, outcome)
    result["seconds"] = time.perf_counter() - start
    if config.save_model:
        save(config, outcome.state, workdir.path / "model", job.source)
        if job.heads and jax.process_index() == 0:
            jobs.write_heads(workdir.path / "model", job.heads)
    if jax.process_index() == 0:
        files.write_atomic(workdir.path / "summary.txt", summary(result))
    workdir.write_result(result)
    if jax.process_index() == 0:
        for name in _LEFTOVERS:
            shutil.rmtree(workdir.path / name, ignore_errors=True)
    return int(outcome.stop_requested)


def fingerprints(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fingerprints that `training.Workdir.check_data` compares.

    Args:
      parts: batches by name, or {task: batches}; None for what a run does not have.
    """
    found = {}
    for name, part in parts.items():
        tasks = part if isinstance(part, Mapping) else {"": part}
        for task, batches in tasks.items():
            if batches is not None:
                entry = {"examples": batches.num_examples, "fingerprint": batches.fingerprint()}
                found[f"{name}/{task}" if task else name] = entry
    return found


def tune(config: ml_collections.ConfigDict, job: jobs.Job, folder: pathlib.Path) -> Outcome | None:
    """Plain fine-tuning; None when it was interrupted."""
    model, accept = mpop.with_trainable(job.model, config.trainable)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    state = training.TrainState.create(model, accept, optimizer, seed=config.seed)
    best = job.metric if config.keep_best else None
    dev = training.Evaluate("dev", job.dev, job.evaluate, every=config.eval_every, best=best)
    result = fitting.fit(
        config,
        job.train,
        state,
        optimizer,
        loss=job.loss,
        steps=config.steps,
        folder=folder,
        label=config.variant or job.name,
        hooks=[dev],
    )
    if result.interrupted:
        return None
    state, facts = result.state, {"fit": result.summary()}
    metrics = {k.removeprefix("dev/"): v for k, v in result.metrics.items() if "dev/" in k}
    if best:
        state = training.restore_best(folder, state)
        metrics = job.evaluate(state, job.dev)
        facts |= {"best_step": dev.best_step}
    return Outcome(state, metrics, accept, facts, result.stop_requested is not None)


def merged_outcome(
    config: ml_collections.ConfigDict, job: jobs.Job, model: models.Model, facts: dict[str, Any]
) -> Outcome:
    """The outcome of a model that was over-parameterised while it learnt: its dense form.

    The result also gets the metrics before merging, and the size afterwards.
    """
    merged, before = compression.merge(model), job.evaluate(model, job.dev)
    outcome = finished(config, job, merged, mpop.trainable_filter("all"), facts)
    outcome.facts["unmerged_metrics"] = before
    logging.info("%s large, %s merged", before, outcome.metrics)
    return outcome


def finished(
    config: ml_collections.ConfigDict,
    job: jobs.Job,
    model: models.Model,
    accept: nnx.filterlib.Filter,
    facts: dict[str, Any],
) -> Outcome:
    """The outcome of a model that was a part of what was trained, without its moments.

    The result also gets its size.
    """
    optimizer = fitting.make_optimizer(config, model, config.steps)
    state = training.TrainState.create(model, accept, optimizer)
    size = sum(models.count_parameters(model).values())
    more = {"steps": config.steps, "inference_parameters": size}
    return Outcome(state, job.evaluate(state, job.dev), accept, facts | more)


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics in a line of a summary."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def save(
    config: ml_collections.ConfigDict,
    state: training.TrainState,
    folder: pathlib.Path,
    tokenizer_from: str | pathlib.Path,
) -> None:
    """The model with its tokenizer; all processes must call it, process 0 gathers and writes."""
    if jax.process_count() > 1:
        state = training.sharding.replicated(state, training.make_mesh(config.mesh.to_dict()))
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a start killed while saving
        io.save_pretrained(state.model(), folder, tokenizer_from=tokenizer_from)


def _result(config: ml_collections.ConfigDict, job: jobs.Job, outcome: Outcome) -> dict[str, Any]:
    model = outcome.state.model()
    counts = mpop.parameter_counts(model, outcome.trainable)
    return {
        "task": job.name,
        "variant": config.variant,
        "architecture": config.architecture,
        "model": jobs.sizes(model.config),
        "seed": config.seed,
        "metric_name": job.metric,
        "metric": outcome.metrics[job.metric],
        "total": counts["total"],
        "trained": counts["trainable"],
        "counts": counts,
        "relative_error": job.report.relative_error if job.report else 0.0,
        "kept_dense": len(job.report.kept_dense) if job.report else 0,
        "train_examples": 0 if job.train is None else job.train.num_examples,
        "dev_examples": job.dev_examples,
        "label_names": getattr(model.config, "label_names", ()),
        "steps": int(outcome.state.step),
        "metrics": outcome.metrics,
        **outcome.facts,
    }
