r"""Distils a fine-tuned encoder into a smaller one: of fewer layers, or with compressed matrices.

    python -m experiments.finetune --config=configs/mpop/minilm.py:dense,sst2 \
        --config.save_model=True --workdir=runs/teacher
    python -m experiments.distill --config=configs/opdf/minilm.py:opdf_3,sst2 \
        --config.teacher=runs/teacher/model --workdir=runs/student
    python -m experiments.distill --config=configs/opdf/minilm.py:healed,sst2 \
        --config.teacher=runs/teacher/model --workdir=runs/healed

The fields of a config are those of fine-tuning (`configs/mpop/base.py`) and those of
`configs/opdf/base.py`. A student of fewer layers starts as layers of the teacher, its matrices as
exact chains, and is saved dense. With `matrices` or `rules` the student is the teacher compressed
by them: it learns back what truncation lost, and stays as small as it is. Started again an
interrupted run resumes exactly.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
from flax import nnx

from configs.opdf import base
from experiments import fitting, jobs, launch, sources, tuning
from mpojax import data, models, training
from mpojax.methods import mpop, opdf
from mpojax.methods.opdf import distillation
from mpojax.methods.opdf import student as student_lib
from mpojax.methods.opdf import theseus as replacement

# Methods of distillation: "kd" compares outputs, "theseus" replaces layers.
HOSTS = ("kd", "theseus")


@dataclasses.dataclass(frozen=True)
class _Job(jobs.Job):
    """A job whose model is the teacher.

    Attributes:
      student: as it starts.
      targets: the teacher's cores, see `opdf.prepare`.
    """

    student: models.Model | None = None
    targets: opdf.Targets = dataclasses.field(default_factory=dict)


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
    distillation.Weights(**config.weights.to_dict())
    replacement.ReplacementSettings(**config.replacement.to_dict())
    if config.distillation not in HOSTS:
        raise ValueError(
            f"config.distillation={config.distillation!r} must be one of {', '.join(HOSTS)}."
        )
    if not config.teacher:
        raise ValueError(
            "config.teacher is empty: give the folder of a model that experiments.finetune saved."
        )
    fitting.check_left_alone(
        config,
        (
            "init_checkpoint",
            "keep_best",
            "eval_every",
            "adapters",
            "squeeze",
            "calibration_examples",
        ),
        "a student starts from config.teacher, and its last state is reported",
    )
    if not all(isinstance(layer, int) and layer >= 0 for layer in config.student_layers):
        raise ValueError(
            f"config.student_layers={config.student_layers} must be layers of the teacher."
        )
    if not jobs.read_rules(config):
        fitting.check_left_alone(
            config, ("trainable",), "a student of layers is trained as a whole"
        )
    elif settings is not None or config.student_layers:
        raise ValueError(
            "config.matrices and config.rules compress the teacher as it is: set "
            "config.opdf.enabled=False (over-parameterised chains are merged at the end) and leave "
            "config.student_layers at ()."
        )


def read_settings(config: ml_collections.ConfigDict) -> opdf.OPDFSettings | None:
    """Settings of the over-parameterised student; None where it stays dense.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.opdf.to_dict()
    enabled = fields.pop("enabled")
    known = {field.name for field in dataclasses.fields(opdf.OPDFSettings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.opdf has unknown fields {unknown}; known are {sorted(known)}.")
    settings = opdf.OPDFSettings(**fields)
    return settings if enabled else None


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    return tuning.run(
        config, folder, prepare=_prepare, train=_train, describe=_describe, summary=summary
    )


def _prepare(config: ml_collections.ConfigDict) -> _Job:
    """The data, the teacher with its own head as the job's model, and the student."""
    job = jobs.prepare(_teachers(config))
    teacher = job.model
    if not isinstance(teacher, models.SequenceClassifier):
        raise ValueError(
            f"config.task={config.task!r}: only classifiers and regressions are distilled."
        )
    if not job.has_tuned_head:
        raise ValueError(
            f"config.teacher={config.teacher!r} has no head that was tuned for config.task="
            f"{config.task!r}, and nothing could be learnt from a fresh one: give the folder of a "
            "model that experiments.finetune saved for this task."
        )
    _check_words(config, job.source)
    report, targets = None, {}
    if jobs.read_rules(config):
        student, report = jobs.compressed(config, teacher)
    else:
        depth = teacher.config.num_layers
        chosen = config.student_layers, config.opdf.layer_map
        student = student_lib.with_layers(teacher, student_lib.starting_layers(*chosen, depth))
    if config.distillation == "theseus":
        replacement.runs_of_layers(_layer_map(config, student, teacher), teacher.config.num_layers)
    settings = read_settings(config)
    if settings is not None:
        settings = dataclasses.replace(settings, layer_map=_layer_map(config, student, teacher))
        student, targets = opdf.prepare(student, settings, teacher)
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    return _Job(**fields | {"report": report, "student": student, "targets": targets})


def _check_words(config: ml_collections.ConfigDict, source: str) -> None:
    """Raises ValueError where the teacher was saved with another vocabulary."""
    try:
        theirs, _ = sources.load_tokenizer(sources.locate(config.teacher, "config.teacher"))
    except FileNotFoundError:
        return  # saved without one; its token embedding has been compared
    if theirs.vocabulary() != data.Tokenizer.from_folder(source).vocabulary():
        raise ValueError(
            f"the tokenizer in config.teacher={config.teacher!r} has other words than that of "
            f"config.model={config.model!r}: give the model that the teacher was made from."
        )


def _teachers(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config under which the teacher loads as it was tuned."""
    loaded = config.copy_and_resolve_references()
    loaded.init_checkpoint = sources.locate(config.teacher, "config.teacher")
    loaded.matrices, loaded.rules, loaded.settings = (), (), {}
    loaded.budget = loaded.bond = None
    return loaded


def _layer_map(config, student: models.Model, teacher: models.Model) -> tuple[int, ...]:
    depths = student.config.num_layers, teacher.config.num_layers
    chosen = config.opdf.layer_map
    if not chosen and config.distillation == "kd":  # with "theseus" the map says what is replaced
        chosen = config.student_layers
    return student_lib.layer_map(chosen, *depths)


def _train(
    config: ml_collections.ConfigDict, job: _Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    settings = read_settings(config)
    student, inner = mpop.with_trainable(job.student, config.trainable)
    pair = distillation.Pair(student, job.model, job.targets)
    loss, batches, trained = _host(config, job, pair, settings)
    inner = nnx.filterlib.to_predicate(inner)

    def accept(path, variable):
        return trained(path, variable) and inner(path[1:], variable)

    optimizer = _optimizer(config, pair, settings)
    state = training.TrainState.create(pair, accept, optimizer, seed=config.seed)
    facts = _at_start(job, student, state)
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
        grad_accum_steps=config.grad_accum_steps,
        prepare=opdf.prepared if student.shapes and config.grad_accum_steps > 1 else None,
    )
    if result.interrupted:
        return None
    learnt, facts = result.state.model().student, facts | {"fit": result.summary()}
    if job.report:  # of a compressed student, which stays as small as it is
        outcome = tuning.finished(config, job, learnt, inner, facts)
    else:
        outcome = tuning.merged_outcome(config, job, learnt, facts)
    return dataclasses.replace(outcome, stop_requested=result.stop_requested is not None)


def _at_start(job: _Job, student: models.Model, state: training.TrainState) -> dict[str, Any]:
    """Sizes, and metrics of the teacher and of a compressed student that has learnt nothing yet."""
    facts = {
        "trained": sum(x.size for x in jax.tree.leaves(state.trainable)),
        "train_parameters": sum(models.count_parameters(student).values()),
        "teacher_metrics": job.evaluate(job.model, job.dev),
        # Of what is trained, and of the optimizer's state.
        "training_bytes": sum(
            x.nbytes for x in jax.tree.leaves((state.trainable, state.optimizer))
        ),
    }
    if job.report:
        facts["start_metrics"] = job.evaluate(student, job.dev)
    return facts


def _host(config, job: jobs.Job, pair: distillation.Pair, settings: opdf.OPDFSettings | None):
    """(loss, batches, filter of what is trained) of the method that the chains are put into."""
    extra = None
    if pair.target_names and settings.alignment_weight:

        def extra(pair):
            return settings.alignment_weight * opdf.alignment_loss(
                pair.cores, pair.targets, settings.alignment, settings.relative
            )

    layer_map = _layer_map(config, pair.student, pair.teacher)
    if config.distillation == "theseus":
        rates = replacement.ReplacementSettings(**config.replacement.to_dict())
        loss = replacement.replacement_loss(layer_map, extra)
        return loss, replacement.Rated(job.train, rates), replacement.of_successors
    weights = distillation.Weights(**config.weights.to_dict())
    loss = distillation.distillation_loss(weights, extra, layer_map)
    return loss, job.train, distillation.of_student


def _optimizer(config, pair: distillation.Pair, settings: opdf.OPDFSettings | None):
    """The config's optimizer; over-parameterised, cores have a rate of their own."""
    if settings is None:
        fields = fitting.optimizer_fields(config, pair)
    else:
        fields = fitting.over_parameterised(config, settings, pair)
    return training.make_optimizer(fields, training.roles(pair), config.steps)


def _describe(config, job: jobs.Job, outcome: tuning.Outcome) -> dict[str, Any]:
    settings = read_settings(config)
    return {
        "host": config.distillation,
        "units": None if settings is None else settings.num_inner_cores,
        "alignment": None if settings is None else settings.alignment,
    }


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    teacher = tuning.listed(result["teacher_metrics"])
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}, seed {result['seed']}",
        f"  {metrics} on {result['dev_examples']:,} examples, after {result['steps']} steps",
        f"  teacher: {teacher}",
        f"  {result['trained']:,} of {result['train_parameters']:,} parameters trained, "
        f"{result['inference_parameters']:,} in the end",
    ]
    if result.get("start_metrics"):
        before = tuning.listed(result["start_metrics"])
        lines.insert(3, f"  compressed, not yet trained: {before}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, base.get_config())
