"""Distillation as a method of runs: `config.method="distillation"`.

Its settings are `config.teacher`, `student_layers`, `distillation`, `replacement`, `weights` and
`opdf`. A student of fewer layers starts as layers of the teacher, its matrices as exact chains, and
is merged at the end. With `matrices` or `rules` the student is the teacher compressed by them: it
learns back what truncation lost, and stays as small as it is.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from mpojax import checks, compression, data, io, models, training
from mpojax.checks import field, integer, one_of, sequence
from mpojax.methods import mpop, opdf, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.opdf import distillation as pairs
from mpojax.methods.opdf import student as students
from mpojax.methods.opdf import theseus

# "kd" compares outputs, "theseus" replaces layers.
KINDS = ("kd", "theseus")


@checks.settings("config.")
class DistillationSettings:
    """How a student learns.

    Attributes:
      teacher: folder of a model that a run has tuned and saved.
      student_layers: of the teacher, with which the student starts; (): see
        `students.starting_layers`.
      distillation: one of `KINDS`.
      chains: of the over-parameterised student; None: it stays as it is.
    """

    teacher: str = field(checks.text(), "")
    student_layers: tuple[int, ...] = field(sequence(integer(0)), ())
    distillation: str = field(one_of(*KINDS), "kd")
    weights: pairs.Weights = pairs.Weights()
    replacement: theseus.ReplacementSettings = theseus.ReplacementSettings()
    layer_map: tuple[int, ...] = ()
    chains: opdf.OPDFSettings | None = None


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher, and its cores where the student's are aligned with them."""

    model: models.Model
    targets: opdf.Targets


class Distillation(protocol.Method):
    """A student of fewer layers, or with compressed matrices, learns from a tuned classifier."""

    Settings = DistillationSettings
    can_only_evaluate = False

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Distillation":
        names = ("teacher", "student_layers", "distillation")
        fields = {name: config[name] for name in names if name in config}
        for name, kind in (
            ("weights", pairs.Weights),
            ("replacement", theseus.ReplacementSettings),
        ):
            given = options_lib.plain(config.get(name) or {})
            fields[name] = checks.from_mapping(kind, given, f"config.{name}")
        given = dict(options_lib.plain(config.get("opdf") or {}))
        enabled = given.pop("enabled", True)
        chains = checks.from_mapping(opdf.OPDFSettings, given, "config.opdf")
        more = {"layer_map": chains.layer_map, "chains": chains if enabled else None}
        return cls(DistillationSettings(**fields, **more))

    def check(self, options: options_lib.Options) -> None:
        own = self.settings
        if not own.teacher:
            raise ValueError(
                "config.teacher is empty: give the folder of a model that a run has tuned and "
                "saved (config.save_model=True)."
            )
        options_lib.check_default(
            options,
            ("init_checkpoint", "keep_best", "eval_every", "adapters", "calibration_examples"),
            ": a student starts from config.teacher, and its last state is reported",
        )
        if not options.compression.compression_rules:
            why = ": a student of layers is trained as a whole"
            options_lib.check_default(options, ("trainable",), why)
        elif own.chains is not None or own.student_layers:
            raise ValueError(
                "config.matrices and config.rules compress the teacher as it is: set "
                "config.opdf.enabled=False (over-parameterised chains are merged at the end) and "
                "leave config.student_layers at ()."
            )

    def for_task(self, options: options_lib.Options) -> options_lib.Options:
        """Loads the teacher as it was tuned."""
        teacher = str(io.locate(self.settings.teacher, "--config.teacher"))
        model = dataclasses.replace(options.model, init_checkpoint=teacher)
        plain = options_lib.Compression()
        return dataclasses.replace(options, model=model, compression=plain)

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        """Makes the student of the loaded teacher; the teacher is `extra`."""
        own, teacher = self.settings, setup.model
        if not isinstance(teacher, models.SequenceClassifier):
            raise ValueError(
                f"config.task={setup.name!r}: only classifiers and regressions are distilled."
            )
        if not setup.has_tuned_head:
            raise ValueError(
                f"config.teacher={own.teacher!r} has no head that was tuned for config.task="
                f"{setup.name!r}, and nothing could be learnt from a fresh one: give the folder of "
                "a model that was tuned on this task and saved."
            )
        self._check_vocabulary(setup)
        report, targets, asked = None, {}, setup.options.compression
        if rules := asked.compression_rules:
            names = ("budget", "bond", "allocation", "keep_dense")
            how = {name: getattr(asked, name) for name in names}
            student, report = compression.compress(teacher, rules, **how)
        else:
            chosen = own.student_layers, own.layer_map
            layers = students.starting_layers(*chosen, teacher.config.num_layers)
            student = students.with_layers(teacher, layers)
        layer_map = self._layer_map(student, teacher)
        if own.distillation == "theseus":
            theseus.runs_of_layers(layer_map, teacher.config.num_layers)
        if own.chains is not None:
            chains = dataclasses.replace(own.chains, layer_map=layer_map)
            student, targets = opdf.over_parameterise(student, chains, teacher)
        extra = Teacher(teacher, targets)
        return dataclasses.replace(setup, model=student, report=report, extra=extra)

    def _check_vocabulary(self, setup: protocol.Setup) -> None:
        """Raises ValueError where the teacher was saved with another vocabulary."""
        try:
            known = data.Tokenizer.from_folder(io.locate(self.settings.teacher))
        except FileNotFoundError:
            return  # saved without one; its token embedding has been compared
        if known.vocabulary() != data.Tokenizer.from_folder(setup.tokenizer_folder).vocabulary():
            raise ValueError(
                f"the tokenizer in config.teacher={self.settings.teacher!r} has other words than "
                f"that of config.model={setup.options.model.model!r}: give the model that the "
                "teacher was made from."
            )

    def _layer_map(self, student: models.Model, teacher: models.Model) -> tuple[int, ...]:
        own, depths = self.settings, (student.config.num_layers, teacher.config.num_layers)
        chosen = own.layer_map
        if not chosen and own.distillation == "kd":  # with "theseus" the map says what is replaced
            chosen = own.student_layers
        return students.layer_map(chosen, *depths)

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        own, teacher = self.settings, setup.extra
        student, inner = mpop.with_trainable(setup.model, setup.options.training.trainable)
        inner = nnx.filterlib.to_predicate(inner)
        pair = pairs.Pair(student, teacher.model, teacher.targets)
        loss, batches, trained = self._learning(setup, pair)

        def accept(path, variable):
            # Paths in the pair begin with its part, such as "student".
            return trained(path, variable) and inner(path[1:], variable)

        if own.chains is None:
            fields = setup.optimizer_fields(pair)
        else:
            fields = opdf.optimizer_fields(setup, pair, own.chains)
        optimizer = setup.make_optimizer(pair, fields=fields)
        state = setup.state(pair, accept, optimizer)
        extra = _at_start(setup, student, state)
        # One micro-batch rebuilds every matrix once in any case.
        rebuilt = student.shapes and setup.options.training.grad_accum_steps > 1
        result = setup.fit(
            state,
            optimizer,
            folder,
            loss_fn=loss,
            data=batches,
            precompute=opdf.rebuilt_once if rebuilt else None,
        )
        if result.interrupted:
            return None
        learnt, extra = result.state.model().student, extra | {"fit": result.summary()}
        # A compressed student stays as small as it is.
        made = setup.finished(learnt, inner, extra) if setup.report else setup.merged(learnt, extra)
        return dataclasses.replace(made, stop_requested=result.stop_requested is not None)

    def _learning(self, setup: protocol.Setup, pair: pairs.Pair):
        """(loss, batches, filter of what is trained) of the kind of distillation."""
        own, extra = self.settings, None
        if pair.target_names and own.chains.alignment_weight:

            def extra(pair):
                return own.chains.alignment_weight * opdf.alignment_loss(
                    pair.cores, pair.targets, own.chains.alignment, own.chains.relative
                )

        layer_map = self._layer_map(pair.student, pair.teacher)
        if own.distillation == "theseus":
            loss = theseus.replacement_loss(layer_map, extra)
            return loss, theseus.Rated(setup.train, own.replacement), theseus.of_successors
        loss = pairs.distillation_loss(own.weights, extra, layer_map)
        return loss, setup.train, pairs.of_student

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        chains = self.settings.chains
        return {
            "host": self.settings.distillation,
            "units": None if chains is None else chains.num_inner_cores,
            "alignment": None if chains is None else chains.alignment,
        }

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        lines = [f"  {name}: {_line(result[key])}" for key, name in _MEASURED if result.get(key)]
        sizes = f"{result['train_parameters']:,} parameters while it learnt"
        return [*lines, f"  {sizes}, {result['inference_parameters']:,} in the end"]


_MEASURED = (
    ("start_metrics", "compressed, not yet trained"),
    ("teacher_metrics", "teacher"),
)


def _line(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _at_start(
    setup: protocol.Setup, student: models.Model, state: training.TrainState
) -> dict[str, Any]:
    """Sizes, and metrics of the teacher and of a compressed student that has learnt nothing yet."""
    extra = {
        "trained": sum(x.size for x in jax.tree.leaves(state.trainable)),
        "train_parameters": sum(models.count_parameters(student).values()),
        "teacher_metrics": setup.evaluate(setup.extra.model, setup.dev),
        # Of what is trained, and of the optimizer's state.
        "training_bytes": sum(
            x.nbytes for x in jax.tree.leaves((state.trainable, state.optimizer))
        ),
    }
    if setup.report:
        extra["start_metrics"] = setup.evaluate(student, setup.dev)
    return extra
