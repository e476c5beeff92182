r"""Fine-tunes a model with some of its matrices over-parameterised (OPF): dense again at the end.

    python -m experiments.opf --config=configs/opf/minilm.py:dynamic,sst2 --workdir=runs/opf
    python -m experiments.opf --config=configs/opf/minilm.py:static,sst2 \
        --config.scoring_checkpoint=runs/tuned/model --workdir=runs/opf_static

The fields of a config are those of fine-tuning (`configs/mpop/base.py`) and those of
`configs/opf/base.py`. The result names the matrices that became chains, and when. Started again on
its workdir an interrupted run resumes exactly.
"""

import dataclasses
import pathlib

import ml_collections

from configs.opf import base
from experiments import fitting, jobs, launch, sources, tuning
from mpojax import data, io, models, training
from mpojax.methods import mpop, opdf
from mpojax.methods.opdf import opf

# Fields of `configs/mpop/base.py` about compression.
_COMPRESSION = ("matrices", "rules", "budget", "bond", "calibration_examples")


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    jobs.check(config)
    data.check_task(config.task)
    settings = read_settings(config)
    if settings.strategy == "dynamic":
        settings.round_steps(config.steps)
    if (settings.strategy == "static") != bool(config.scoring_checkpoint):
        raise ValueError(
            f"config.scoring_checkpoint={config.scoring_checkpoint!r} with config.opf.strategy="
            f"{settings.strategy!r}: 'static' needs the folder of a fine-tuned model there, "
            "'dynamic' reads none."
        )
    fitting.check_left_alone(
        config,
        (*_COMPRESSION, "trainable", "keep_best", "eval_every", "adapters", "squeeze"),
        "the whole dense model is trained, and its last state reported",
    )
    if settings.strategy == "dynamic":
        _check_optimizer(config.optimizer)


def _check_optimizer(optimizer: ml_collections.ConfigDict) -> None:
    """What the state of a run in which matrices become chains can follow."""
    if optimizer.name == "muon":
        raise ValueError(
            "config.optimizer.name='muon' has state that cannot follow a matrix that becomes a "
            "chain: take adam, adamw, lamb or sgd, or config.opf.strategy='static'."
        )
    if optimizer.weight_decay:
        raise ValueError(
            f"config.optimizer.weight_decay={optimizer.weight_decay!r}: cores decay towards their "
            "start, and have none when training begins. Set it to 0, or "
            "config.opf.strategy='static'."
        )


def read_settings(config: ml_collections.ConfigDict) -> opf.OPFSettings:
    """Settings of which matrices are over-parameterised.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.opf.to_dict()
    known = {field.name for field in dataclasses.fields(opf.OPFSettings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.opf has unknown fields {unknown}; known are {sorted(known)}.")
    return opf.OPFSettings(**fields)


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    return tuning.run(
        config, folder, prepare=_prepare, train=_train, describe=_describe, summary=summary
    )


def _prepare(config: ml_collections.ConfigDict) -> jobs.Job:
    """The job; of "static" its model has the chains already."""
    job, settings = jobs.prepare(config), read_settings(config)
    paths = opf.candidates(job.model, settings)
    if settings.strategy == "dynamic":
        return job
    tuned = io.load_pretrained(
        sources.locate(config.scoring_checkpoint, "config.scoring_checkpoint")
    )
    ours, theirs = (models.array_shapes(m.config) for m in (job.model, tuned))
    if ours != theirs or tuned.shapes or type(tuned) is not type(job.model):
        raise ValueError(
            f"the model in config.scoring_checkpoint={config.scoring_checkpoint!r} has "
            f"other parameters than config.model={config.model!r} with its head: give that model, "
            "fine-tuned on the task and dense."
        )
    rows = slice(0, job.train.batch_size)
    batches = [job.train.rows(k, rows) for k in range(settings.score_batches)]
    scores = opf.static_scores(tuned, paths, opf.losses(job.loss, batches))
    chosen = opf.select(scores, settings.num_per_role)
    model, _ = opdf.prepare(job.model, opf.only(settings.chains, chosen))
    return dataclasses.replace(job, model=model)


def _train(
    config: ml_collections.ConfigDict, job: jobs.Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    settings, accept = read_settings(config), mpop.trainable_filter("all")

    def make_optimizer(model):
        fields = fitting.over_parameterised(config, settings.chains, model)
        roles = training.roles(model)
        return training.make_optimizer(fields, roles, config.steps)

    optimizer, hooks = make_optimizer(job.model), []
    if settings.strategy == "dynamic":
        prepare = fitting.prepare(config, has_chains=True)
        more = (accept, make_optimizer, config.steps, prepare)
        hooks = [opf.Dynamic(job.model, settings, job.loss, *more)]
    state = training.TrainState.create(job.model, accept, optimizer, seed=config.seed)
    result = fitting.fit(
        config,
        job.train,
        state,
        optimizer,
        loss=job.loss,
        steps=config.steps,
        folder=folder,
        label=config.variant or job.name,
        hooks=hooks,
    )
    if result.interrupted:
        return None
    model = result.state.model()
    chosen = hooks[0].chosen if hooks else [(0, list(job.model.shapes))]
    facts = {"fit": result.summary(), **opf.report(model, chosen)}
    outcome = tuning.merged_outcome(config, job, model, facts)
    return dataclasses.replace(outcome, stop_requested=result.stop_requested is not None)


def _describe(config, job: jobs.Job, outcome: tuning.Outcome) -> dict:
    settings = read_settings(config)
    return {
        "strategy": settings.strategy,
        "number": settings.num_per_role,
        "units": settings.num_inner_cores,
    }


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    count = sum(len(entry["matrices"]) for entry in result["chosen"])
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}, seed {result['seed']}",
        f"  {metrics} on {result['dev_examples']:,} examples, after {result['steps']} steps",
        f"  {count} matrices became chains: {result['train_parameters']:,} parameters trained, "
        f"{result['inference_parameters']:,} left after merging",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, base.get_config())
