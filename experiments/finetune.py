r"""Fine-tunes one model on one task with one seed; compressed before, or squeezed on the way.

    python -m experiments.finetune --config=configs/mpop/minilm.py:full_lfa,sst2 --workdir=runs/lfa
    python -m experiments.finetune --config=configs/mpop/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

The fields of a config are explained in `configs/mpop/base.py`. The workdir gets `result.json`,
metrics as JSONL and TensorBoard events, the compression report, and for a squeezed model its
trajectory as table and plot. Started again on its workdir an interrupted run resumes exactly.
"""

import dataclasses
import pathlib

import jax
import ml_collections

from configs.mpop import base
from experiments import fitting, jobs, launch, tuning
from experiments.render import runs
from mpojax import data, training
from mpojax.methods import mpop
from mpojax.methods.mpop import costs, squeezing
from mpojax.methods.mpop.settings import SqueezingSettings


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    jobs.check(config, can_only_evaluate=True)
    settings = read_squeeze(config)
    if settings is not None and config.trainable not in mpop.FILTERS:
        raise ValueError(
            f"config.trainable={config.trainable!r} cannot be squeezed; allowed are "
            f"{sorted(mpop.FILTERS)}."
        )
    if settings is not None and not jobs.read_rules(config) and not config.init_checkpoint:
        raise ValueError("config.squeeze needs a model in MPO form: give config.matrices or rules.")
    if settings is not None and not config.steps:
        raise ValueError(
            "config.steps=0 only evaluates: give the steps before the first cut, or no "
            "config.squeeze."
        )
    if settings is not None and config.keep_best:
        raise ValueError(
            "config.keep_best has no meaning with config.squeeze, which decides itself."
        )
    data.check_task(config.task)


def read_squeeze(config: ml_collections.ConfigDict) -> SqueezingSettings | None:
    """Settings of the squeezing, or None.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.squeeze.to_dict()
    if not fields:
        return None
    known = {field.name for field in dataclasses.fields(SqueezingSettings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.squeeze has unknown fields {unknown}; known are {sorted(known)}.")
    return SqueezingSettings(**fields)


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    settings = read_squeeze(config)

    def train(config, job, path):
        return (
            tuning.tune(config, job, path)
            if settings is None
            else _squeeze(config, settings, job, path)
        )

    def describe(config, job, outcome):
        drawn = {"shots": config.shots, "draw": config.draw}
        return {"fit": None, "squeeze": None} | drawn | outcome.facts

    return tuning.run(
        config, folder, prepare=jobs.prepare, train=train, describe=describe, summary=summary
    )


def _squeeze(
    config, settings: SqueezingSettings, job: jobs.Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    """Fine-tuning, then cuts; None when it was interrupted."""
    total = config.steps + settings.max_phases * settings.steps
    deciding = job.dev if job.held_out is None else job.held_out

    def train(state, optimizer, steps, phase_folder, description):
        return fitting.fit(
            config,
            job.train,
            state,
            optimizer,
            loss=job.loss,
            steps=steps,
            folder=phase_folder,
            label=f"{config.variant} {description}".strip(),
            hooks=[training.Evaluate("decide", deciding, job.decide)],
        )

    def gradients(model):
        rows = slice(0, job.train.batch_size)
        batches = (job.train.rows(step, rows) for step in range(settings.score_batches))
        return costs.gradients(model, job.loss, batches)

    outcome = squeezing.Squeezing(
        model=job.model,
        settings=settings,
        trainable=config.trainable,
        make_optimizer=lambda model: fitting.make_optimizer(config, model, total),
        train=train,
        metric=f"decide/{job.metric}",
        first_steps=config.steps,
        folder=folder / "squeezing",
        seed=config.seed,
        gradients=gradients,
    ).run()
    if outcome.state is None:
        return None
    if jax.process_index() == 0:
        label = job.metric if job.held_out is None else f"held-out {job.metric}"
        runs.write_trajectory(folder, outcome.phases, label)
    return tuning.Outcome(
        outcome.state,
        job.evaluate(outcome.state, job.dev),
        mpop.trainable_filter(config.trainable),
        {"squeeze": {"why": outcome.why, "phases": outcome.phases}},
    )


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    shots = f", {result['shots']} shots, draw {result['draw']}" if result["shots"] else ""
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}{shots}, seed {result['seed']}",
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
    launch.run(main, base.get_config())
