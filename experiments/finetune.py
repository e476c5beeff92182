"""Fine-tunes one model on one task with one seed; compressed before, or squeezed on the way.

    python -m experiments.finetune --config=configs/mpop/minilm.py:full_lfa,sst2 --workdir=runs/lfa
    python -m experiments.finetune --config=configs/mpop/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

The fields of a config are explained in `configs/mpop/base.py`. The workdir gets `result.json`,
metrics as JSONL and TensorBoard events, the compression report, and for a squeezed model its
trajectory as table and plot. Started again on its workdir an interrupted run goes on exactly.
"""

import dataclasses
import pathlib
import shutil
import time
from typing import Any

import ml_collections
from absl import logging

from experiments import fitting, jobs, launch, trajectory
from mpojax import data, files, interop, models, training
from mpojax.methods import mpop, squeeze_settings, squeezing


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job and says how it ended."""
    if run(config, folder):
        logging.info("stopped; start the same command again to go on")
        return 0
    print((pathlib.Path(folder) / "summary.txt").read_text(encoding="utf-8"))
    return 0


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    mpop.check_trainable(config.trainable)
    jobs.check_compression(config)
    settings = read_squeeze(config)
    if settings is not None and config.trainable not in mpop.FILTERS:
        raise ValueError(
            f"config.trainable={config.trainable!r} cannot be squeezed; allowed are "
            f"{sorted(mpop.FILTERS)}."
        )
    if settings is not None and not jobs.read_rules(config) and not config.start_from:
        raise ValueError("config.squeeze needs a model in MPO form: give config.matrices or rules.")
    if settings is not None and config.keep_best:
        raise ValueError(
            "config.keep_best has no meaning with config.squeeze, which decides itself."
        )
    data.check_task(config.task)
    if config.steps < 1:
        raise ValueError(f"config.steps={config.steps} must be at least 1.")
    if config.architecture and config.architecture not in models.PRESETS:
        raise ValueError(
            f"config.architecture={config.architecture!r} must be one of {sorted(models.PRESETS)}."
        )


def read_squeeze(config: ml_collections.ConfigDict) -> squeeze_settings.Settings | None:
    """Settings of the squeezing, or None.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.squeeze.to_dict()
    if not fields:
        return None
    known = {field.name for field in dataclasses.fields(squeeze_settings.Settings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.squeeze has unknown fields {unknown}; known are {sorted(known)}.")
    return squeeze_settings.Settings(**fields)


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop.

    A signal in the last step finds the run finished, all the same nothing should follow it.
    """
    check(config)
    start = time.perf_counter()
    # A folder with a run is compared first; a new one is claimed once data, model and rules fit, so
    # that a mistyped command leaves nothing behind.
    known = (pathlib.Path(folder) / "config.json").is_file()
    workdir = training.Workdir(folder, config) if known else None
    if workdir is not None and workdir.finished:
        return 0
    job = jobs.prepare(config)
    workdir = workdir or training.Workdir(folder, config)
    if job.report is not None:
        job.report.to_csv(workdir.path / "compression.csv")
    settings = read_squeeze(config)
    if settings is None:
        outcome = _tune(config, job, workdir.path)
    else:
        outcome = _squeeze(config, settings, job, workdir.path)
    if outcome is None:
        return 1
    state, facts = outcome
    stop_requested = facts.pop("stop_requested")
    result = _result(config, job, state, facts) | {"seconds": time.perf_counter() - start}
    if config.save_model:
        shutil.rmtree(workdir.path / "model", ignore_errors=True)  # of a start killed while saving
        interop.save_pretrained(state.model(), workdir.path / "model")
    files.write_atomic(workdir.path / "summary.txt", summary(result))
    workdir.write_result(result)
    for name in ("checkpoints", "best-dev", "squeezing/accepted"):  # of use to unfinished runs
        shutil.rmtree(workdir.path / name, ignore_errors=True)
    return int(stop_requested)


def _tune(config, job: jobs.Job, folder: pathlib.Path):
    """Plain fine-tuning; None when it was interrupted."""
    model, accept = mpop.with_trainable(job.model, config.trainable)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    state = training.TrainState.create(model, accept, optimizer, seed=config.seed)
    best = job.metric if config.keep_best else None
    dev = training.Evaluate(
        "dev", fitting.eval_data(config, job.dev), job.evaluate, every=config.eval_every, best=best
    )
    result = fitting.fit(
        config,
        job.train,
        state,
        optimizer,
        kind=job.kind,
        steps=config.steps,
        folder=folder,
        label=config.variant or config.task,
        hooks=[dev],
        seed=config.seed,
    )
    if result.interrupted:
        return None
    state = training.restore_best(folder, result.state) if best else result.state
    facts = {
        "trainable": accept,
        "fit": result.summary(),
        "squeeze": None,
        "stop_requested": result.stop_requested is not None,
    }
    if best:
        facts |= {"best_step": dev.best_step}
        metrics = job.evaluate(state, fitting.eval_data(config, job.dev))
    else:
        metrics = {k.removeprefix("dev/"): v for k, v in result.metrics.items() if "dev/" in k}
    return state, facts | {"metrics": metrics}


def _squeeze(config, settings: squeeze_settings.Settings, job: jobs.Job, folder: pathlib.Path):
    """Fine-tuning, then cuts; None when it was interrupted."""
    total = config.steps + settings.max_phases * settings.steps
    deciding = job.dev if job.held_out is None else job.held_out

    def train(state, optimizer, steps, phase_folder, description):
        decide = training.Evaluate("decide", fitting.eval_data(config, deciding), job.decide)
        label = f"{config.variant} {description}".strip()
        return fitting.fit(
            config,
            job.train,
            state,
            optimizer,
            kind=job.kind,
            steps=steps,
            folder=phase_folder,
            label=label,
            hooks=[decide],
            seed=config.seed,
        )

    outcome = squeezing.squeeze(
        job.model,
        settings,
        trainable=config.trainable,
        make_optimizer=lambda model: fitting.make_optimizer(config, model, total),
        train=train,
        metric=f"decide/{job.metric}",
        first_steps=config.steps,
        folder=folder / "squeezing",
        seed=config.seed,
    )
    if outcome.state is None:
        return None
    label = job.metric if job.held_out is None else f"held-out {job.metric}"
    trajectory.write(folder, outcome.phases, label)
    facts = {
        "trainable": mpop.trainable_filter(config.trainable),
        "fit": None,
        "stop_requested": False,
        "squeeze": {"why": outcome.why, "phases": outcome.phases},
        "metrics": job.evaluate(outcome.state, fitting.eval_data(config, job.dev)),
    }
    return outcome.state, facts


def _result(config, job: jobs.Job, state: training.TrainState, facts: dict[str, Any]) -> dict:
    counts = mpop.parameter_counts(state.model(), facts.pop("trainable"))
    return {
        "task": config.task,
        "variant": config.variant,
        "architecture": config.architecture,
        "seed": config.seed,
        "metric_name": job.metric,
        "metric": facts["metrics"][job.metric],
        "total": counts["total"],
        "trained": counts["trainable"],
        "counts": counts,
        "relative_error": job.report.relative_error if job.report else 0.0,
        "kept_dense": len(job.report.kept_dense) if job.report else 0,
        "train_examples": len(job.train["input_ids"]),
        "dev_examples": len(job.dev["input_ids"]),
        "steps": int(state.step),
        **facts,
    }


def summary(result: dict) -> str:
    """The result for people."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}, seed {result['seed']}",
        f"  {metrics} on {result['dev_examples']:,} examples, after {result['steps']} steps",
        f"  {result['trained']:,} of {result['total']:,} parameters trained",
    ]
    if result["relative_error"]:
        lines.append(f"  relative weight error {result['relative_error']:.4f} before training")
    if result["squeeze"]:
        cuts = sum(len(p["cuts"]) for p in result["squeeze"]["phases"] if p["accepted"])
        lines.append(f"  {cuts} cuts accepted; ended because {result['squeeze']['why']}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main)
