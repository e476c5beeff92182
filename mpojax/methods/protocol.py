"""The protocol of a method: what a run sets up for it, and what it gives back.

A run is a task (model, tokenizer, batches, loss, metrics: a `Setup`) and a method (a `Method`): the
task is what the data of the config are, the method what `config.method` names. A method of one's
own is a subclass of `Method`, in any module that can be imported: `config.method="module:Class"`.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from mpojax import checks, compression, models, training
from mpojax.methods import mpop
from mpojax.methods import options as options_lib
from mpojax.methods.mpoe import gradient_mask
from mpojax.training import objectives

# Name of a method in configs -> its class; imported when it is asked for.
METHODS = {
    "tuning": "mpojax.methods.protocol:Method",
    "squeezing": "mpojax.methods.mpop.method:Squeezing",
    "pet_search": "mpojax.methods.pet.method:PETSearch",
    "distillation": "mpojax.methods.opdf.method:Distillation",
    "opf": "mpojax.methods.opf.method:OPF",
    "healing": "mpojax.methods.healing.method:Healing",
    "deep_lora": "mpojax.methods.deep_lora.method:DeepLoRA",
    "branches": "mpojax.methods.branches.method:Branches",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run works with, made once from its config.

    Attributes:
      options: fields of the config, by concern.
      name: of the task, or of all tasks.
      model: compressed, with adapters or experts, where the config says so.
      tokenizer_folder: whose tokenizer is saved with the model.
      loss: what training minimises.
      train: batches to train on; None for a run that trains nothing.
      dev: what is reported: batches, or {task: batches}.
      num_dev_examples: how many examples (of plain text: tokens) these are.
      evaluate: (model or state, batches, mesh=None) -> {metric: value}.
      metric: the one that decides; a `sign` of -1 says that lower is better.
      test: is evaluated once, at the end.
      held_out, decide: by which a method decides, and its evaluator; None: `dev` decides.
      report: of the compression, or None.
      evaluates_first: whether `dev` is also evaluated before the first step.
      has_tuned_head: whether the model came with a head for the task.
      extra: what the task or the method needs afterwards.
    """

    task: "Task"
    options: options_lib.Options
    name: str
    model: models.Model
    tokenizer_folder: str
    loss: objectives.LossFunction
    train: Any
    dev: Any
    num_dev_examples: int
    evaluate: Callable[..., dict[str, float]]
    metric: str
    sign: int = 1
    test: Any = None
    held_out: Any = None
    decide: Callable[..., dict[str, float]] | None = None
    report: compression.CompressionReport | None = None
    evaluates_first: bool = False
    has_tuned_head: bool = False
    extra: Any = None

    @property
    def label(self) -> str:
        """Of progress bars."""
        return self.options.training.variant or self.name

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of the run."""
        return training.make_mesh(dict(self.options.training.mesh))

    def optimizer_fields(self, model: models.Model, **rates: float) -> dict[str, Any]:
        """Fields of the config's optimizer, rates of roles that the model lacks left out.

        `rates` stand where the config gives none.
        """
        fields, roles = dict(self.options.training.optimizer), training.roles(model).values()
        rates |= fields.get("role_learning_rates") or {}
        fields["role_learning_rates"] = {role: v for role, v in rates.items() if role in roles}
        return fields

    def make_optimizer(
        self, model: models.Model, steps: int | None = None, fields: Mapping | None = None
    ):
        """The config's optimizer for a model, or that of other fields."""
        own, chains = self.options.training, None
        if fields is None:
            fields, chains = self.optimizer_fields(model), models.central_cores(model)
        steps = own.steps if steps is None else steps
        return gradient_mask.make_optimizer(
            fields, training.roles(model), steps, chains, seed=own.seed
        )

    def state(self, model: models.Model, trainable: Any, optimizer: Any) -> training.TrainState:
        """The state at step 0."""
        return training.TrainState.create(
            model, trainable, optimizer, seed=self.options.training.seed
        )

    def fit(
        self, state: training.TrainState, optimizer: Any, folder: pathlib.Path, **more: Any
    ) -> training.FitResult:
        """`training.fit` by the config: mesh, sharding, progress, checkpoints, signals.

        Args:
          state, optimizer: see `training.fit`.
          folder: of metrics and checkpoints; a run there resumes.
          more: arguments of `training.fit` to replace: `loss_fn`, `data`, `steps`, `precompute`;
            `hooks` and `label` of this training; `unsaved` parts of its model, see
            `training.Checkpoint`.
        """
        arguments = self.fit_arguments(state, **more)
        return training.fit(state, optimizer=optimizer, folder=folder, **arguments)

    def fit_arguments(
        self,
        state: training.TrainState,
        label: str = "",
        hooks: Sequence = (),
        unsaved: Sequence[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """Arguments of `training.fit`, and so of `training.dry_run`, that the config gives."""
        own, model = self.options.training, state.model()
        return {
            "loss_fn": self.loss,
            "data": self.train,
            "steps": own.steps,
            "mesh": self.mesh,
            "rules": training.model_rules(model),
            "hooks": [
                training.Progress(label or self.label),
                *hooks,
                *self.task.hooks(self, model),
                training.Checkpoint(own.checkpoint_every, at_end=False, unsaved=unsaved),
                training.StopOnSignal(),
            ],
            "log_every": own.log_every,
            "grad_accum_steps": own.grad_accum_steps,
            "precompute": self.precompute(bool(model.shapes)),
        } | more

    def precompute(self, has_chains: bool) -> Callable | None:
        """Work done once for all micro-batches of a step: matrices are rebuilt from their cores."""
        return models.merged if has_chains and self.options.training.grad_accum_steps > 1 else None

    def finished(
        self, model: models.Model, trainable: Any, extra: dict[str, Any], evaluated: Any = None
    ) -> "Result":
        """The result of a model that was a part of what was trained: without its moments.

        It also has the model's size.

        Args:
          evaluated: the same model in another form, to evaluate in its place.
        """
        optimizer = self.make_optimizer(model)
        state = training.TrainState.create(model, trainable, optimizer)
        size = sum(models.count_parameters(model).values())
        more = {"steps": self.options.training.steps, "inference_parameters": size}
        metrics = self.evaluate(state if evaluated is None else evaluated, self.dev)
        return Result(state, metrics, trainable, extra | more)

    def merged(self, model: models.Model, extra: dict[str, Any]) -> "Result":
        """The result of a model that was over-parameterised while it learnt: its dense form.

        It also has the metrics before merging.
        """
        before = self.evaluate(model, self.dev)
        result = self.finished(compression.merge(model), mpop.trainable_filter("all"), extra)
        result.extra["unmerged_metrics"] = before
        logging.info("%s large, %s merged", before, result.metrics)
        return result


class Task:
    """What is learnt, from which data, and how that is measured: the other half of a run.

    Attributes:
      can_only_evaluate: whether a run without steps has a meaning.
    """

    can_only_evaluate = True

    def check(self, options: options_lib.Options) -> None:
        """Checks fields without weights or data.

        Raises:
          ValueError: fields that are wrong whatever model and data are.
        """

    def setup(self, options: options_lib.Options) -> Setup:
        """Loads data and model.

        Raises:
          ValueError: model, data and options that do not fit.
        """
        raise NotImplementedError

    def hooks(self, setup: Setup, model: models.Model) -> Sequence[training.Hook]:
        """Hooks of every training on the task."""
        return ()

    def finish(self, setup: Setup, result: "Result", folder: pathlib.Path) -> "Result":
        """What follows the training, such as the evaluation on the test split."""
        return result

    def report(self, setup: Setup, result: "Result") -> dict[str, Any]:
        """More entries of `result.json`."""
        return {}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        """Lines of `summary.txt`, from the content of `result.json`."""
        raise NotImplementedError

    def save(self, setup: Setup, folder: pathlib.Path) -> None:
        """Writes what belongs to a saved model besides its weights and its tokenizer."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
      state: what is reported.
      metrics: of it, on the development data.
      trainable: filter of what was trained.
      extra: more entries of `result.json`.
      stop_requested: nothing should follow the run, although it is finished.
    """

    state: training.TrainState
    metrics: dict[str, float]
    trainable: Any
    extra: dict[str, Any]
    stop_requested: bool = False


class Method:
    """Tuning of the parameters that `config.trainable` names; the base of all other methods.

    Attributes:
      Settings: dataclass of its settings, which `config.<section>` gives.
      section: field of the config; "" for none.
      can_only_evaluate: whether a run without steps has a meaning.
    """

    Settings: type | None = None
    section = ""
    can_only_evaluate = True

    def __init__(self, settings: Any = None):
        self.settings = settings

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Method":
        """The method with the settings of a config.

        Raises:
          ValueError: unknown fields, or values that are not allowed.
        """
        if cls.Settings is None:
            return cls()
        section = f"config.{cls.section}"
        fields = options_lib.plain(config.get(cls.section) or {})
        return cls(checks.from_mapping(cls.Settings, fields, section))

    def check(self, options: options_lib.Options) -> None:
        """Checks what concerns the method and other fields, without weights or data.

        Raises:
          ValueError: fields that clash.
        """

    def for_task(self, options: options_lib.Options) -> options_lib.Options:
        """The options that the task is set up with, where these are others than the run's."""
        return options

    def setup(self, setup: Setup) -> Setup:
        """The setup as the method needs it; the run's folder is claimed afterwards.

        Raises:
          ValueError: model or data that do not fit.
        """
        return setup

    def train(self, setup: Setup, folder: pathlib.Path) -> Result | None:
        """Does the work, resuming in `folder`; None when it was interrupted."""
        own = setup.options.training
        model, trainable = mpop.with_trainable(setup.model, own.trainable)
        optimizer = setup.make_optimizer(model)
        state = setup.state(model, trainable, optimizer)
        best = setup.metric if own.keep_best else None
        dev = training.Evaluate(
            "dev",
            setup.dev,
            setup.evaluate,
            every=own.eval_every,
            best=best,
            higher_is_better=setup.sign > 0,
            at_start=setup.evaluates_first,
        )
        result = setup.fit(state, optimizer, folder, hooks=[dev])
        if result.interrupted:
            return None
        state, extra = result.state, {"fit": result.summary()}
        metrics = {k.removeprefix("dev/"): v for k, v in result.metrics.items() if "dev/" in k}
        if best:
            state = training.restore_best(folder, state)
            metrics = setup.evaluate(state, setup.dev, setup.mesh)
            extra["best_step"] = dev.best_step
        return Result(state, metrics, trainable, extra, result.stop_requested is not None)

    def report(self, setup: Setup, result: Result) -> dict[str, Any]:
        """More entries of `result.json`."""
        return {}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        """More lines of `summary.txt`, from the content of `result.json`."""
        return []


def find(name: str) -> type[Method]:
    """The class of a method: of a name in `METHODS`, or of `module:Class`.

    Raises:
      ValueError: an unknown name, no such module or class, or one that is no `Method`.
    """
    module, colon, kind = METHODS.get(name, name).partition(":")
    if not colon:
        near = checks.did_you_mean(name, METHODS)
        raise ValueError(
            f"config.method={name!r} must be one of {', '.join(METHODS)}, or module:Class of your "
            f"own{near or '.'}"
        )
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"config.method={name!r} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(
            f"config.method={name!r} is no subclass of mpojax.methods.protocol.Method."
        )
    return found
