"""Distils a fine-tuned encoder into one of fewer layers, over-parameterised while it learns.

    python -m experiments.finetune --config=configs/mpop/minilm.py:dense,sst2 \
        --config.save_model=True --workdir=runs/teacher
    python -m experiments.distill --config=configs/opdf/minilm.py:opdf_3,sst2 \
        --config.teacher=runs/teacher/model --workdir=runs/student

The fields of a config are those of fine-tuning (`configs/mpop/base.py`) and those of
`configs/opdf/base.py`. The student starts as layers of the teacher, its matrices as exact chains;
the dense student is saved in the workdir. Started again an interrupted run goes on exactly.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections

from experiments import fitting, jobs, launch, tuning
from mpojax import data, models, training
from mpojax.methods import opdf
from mpojax.training import distillation, replacement

# Methods of distillation: "kd" compares outputs, "theseus" replaces layers.
HOSTS = ("kd", "theseus")


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job and says how it ended."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    jobs.check(config)
    data.check_task(config.task)
    read_settings(config)
    distillation.Weights(**config.weights.to_dict())
    replacement.Settings(**config.replacement.to_dict())
    if config.host not in HOSTS:
        raise ValueError(f"config.host={config.host!r} must be one of {', '.join(HOSTS)}.")
    if not config.teacher:
        raise ValueError(
            "config.teacher is empty: give the folder of a model that experiments.finetune saved."
        )
    if config.trainable != "all" or config.keep_best or config.adapters:
        raise ValueError("a distilled student is trained as a whole: no trainable, keep_best, ...")
    if not all(isinstance(layer, int) and layer >= 0 for layer in config.student_layers):
        raise ValueError(
            f"config.student_layers={config.student_layers} must be layers of the teacher."
        )


def read_settings(config: ml_collections.ConfigDict) -> opdf.Settings | None:
    """How the student is over-parameterised; None where it stays dense.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.opdf.to_dict()
    enabled = fields.pop("enabled")
    known = {field.name for field in dataclasses.fields(opdf.Settings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.opdf has unknown fields {unknown}; known are {sorted(known)}.")
    settings = opdf.Settings(**fields)
    return settings if enabled else None


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    return tuning.run(
        config, folder, prepare=_prepare, train=_train, describe=_describe, summary=summary
    )


def _prepare(config: ml_collections.ConfigDict) -> jobs.Job:
    """The data, and the teacher with its own head as the job's model."""
    job = jobs.prepare(_teachers(config))
    if not isinstance(job.model, models.SequenceClassifier):
        raise ValueError(
            f"config.task={config.task!r}: only classifiers and regressions are distilled."
        )
    _check_words(config, job.source)
    _student(config, job.model)  # what does not fit shows before the folder is claimed
    return job


def _check_words(config: ml_collections.ConfigDict, source: str) -> None:
    """Raises ValueError where the teacher was saved with another vocabulary."""
    try:
        theirs = data.Tokenizer.from_folder(config.teacher)
    except FileNotFoundError:
        return  # saved without one; its word table has been compared
    if theirs.vocabulary() != data.Tokenizer.from_folder(source).vocabulary():
        raise ValueError(
            f"the tokenizer in config.teacher={config.teacher!r} has other words than that of "
            f"config.model={config.model!r}: give the model that the teacher was made from."
        )


def _teachers(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config under which the teacher loads as it was tuned."""
    loaded = config.copy_and_resolve_references()
    loaded.start_from = config.teacher
    return loaded


def _student(config: ml_collections.ConfigDict, teacher: models.Model):
    """(student, targets, settings): layers of the teacher, maybe as chains."""
    depth = teacher.config.num_layers
    layers = tuple(config.student_layers) or tuple(range(depth // 2))
    student = opdf.with_layers(teacher, layers)
    if config.host == "theseus":
        replacement.runs_of_layers(_layer_map(config, student, teacher), depth)
    settings = read_settings(config)
    if settings is None:
        return student, {}, None
    return *opdf.prepare(student, settings, teacher), settings


def _layer_map(config, student: models.Model, teacher: models.Model) -> tuple[int, ...]:
    settings = opdf.Settings(layer_map=config.opdf.layer_map)
    return opdf.layer_map(settings, student.config.num_layers, teacher.config.num_layers)


def _train(
    config: ml_collections.ConfigDict, job: jobs.Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    student, targets, settings = _student(config, job.model)
    pair = distillation.Pair(student, job.model, targets)
    loss, batches, accept = _host(config, job, pair, settings)
    optimizer = _optimizer(config, pair, settings)
    state = training.TrainState.create(pair, accept, optimizer, seed=config.seed)
    # Of what is trained, and of the optimizer's state.
    training_bytes = sum(x.nbytes for x in jax.tree.leaves((state.trainable, state.optimizer)))
    result = training.fit(
        state,
        loss,
        batches,
        optimizer=optimizer,
        steps=config.steps,
        mesh=training.make_mesh(config.mesh.to_dict()),
        rules=training.model_rules(pair),
        hooks=[
            training.Progress(config.variant or "distillation"),
            training.Checkpoint(every=config.checkpoint_every, at_end=False),
            training.StopOnSignal(),
        ],
        folder=folder,
        log_every=config.log_every,
        accumulate=config.accumulate,
        prepare=opdf.prepared if settings and config.accumulate > 1 else None,
    )
    if result.interrupted:
        return None
    trained = result.state.model().student
    facts = {
        "fit": result.summary(),
        "train_parameters": sum(models.count_parameters(student).values()),
        "teacher_metrics": job.evaluate(job.model, job.dev),
        "training_bytes": training_bytes,
    }
    return tuning.merged_outcome(config, job, trained, facts)


def _host(config, job: jobs.Job, pair: distillation.Pair, settings: opdf.Settings | None):
    """(loss, batches, filter of what is trained) of the method that the chains are put into."""
    extra = None
    if pair.target_names and settings.lam:

        def extra(pair):
            return settings.lam * opdf.alignment_loss(
                pair.cores, pair.targets, settings.alignment, settings.relative
            )

    layer_map = _layer_map(config, pair.student, pair.teacher)
    if config.host == "theseus":
        rates = replacement.Settings(**config.replacement.to_dict())
        loss = replacement.replacement_loss(layer_map, extra)
        return loss, replacement.Rated(job.train, rates), replacement.of_successors
    weights = distillation.Weights(**config.weights.to_dict())
    loss = distillation.distillation_loss(weights, extra, layer_map)
    return loss, job.train, distillation.of_student


def _optimizer(config, pair: distillation.Pair, settings: opdf.Settings | None):
    """The config's optimizer; cores have a rate of their own, and decay towards their start."""
    if settings is None:
        fields = config.optimizer.to_dict()
    else:
        fields = fitting.over_parameterised(config, settings.units)
    return training.make_optimizer(fields, training.roles(pair), config.steps, seed=config.seed)


def _describe(config, job: jobs.Job, outcome: tuning.Outcome) -> dict[str, Any]:
    settings = read_settings(config)
    return {
        "host": config.host,
        "units": None if settings is None else settings.units,
        "alignment": None if settings is None else settings.alignment,
    }


def summary(result: dict) -> str:
    """The result for people."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    teacher = ", ".join(f"{name} {value:.4f}" for name, value in result["teacher_metrics"].items())
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}, seed {result['seed']}",
        f"  {metrics} on {result['dev_examples']:,} examples, after {result['steps']} steps",
        f"  teacher: {teacher}",
        f"  {result['train_parameters']:,} parameters trained, {result['inference_parameters']:,} "
        "left after merging",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main)
