"""The part that all training runs share: a config's optimizer, batches, hooks and mesh."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from configs.mpop import base
from mpojax import data, models, training
from mpojax.methods import opdf
from mpojax.methods.mpoe import gradient_mask
from mpojax.training import objectives


def make_optimizer(config: ml_collections.ConfigDict, model: models.Model, steps: int):
    """The config's optimizer; see `optimizer_fields`."""
    return gradient_mask.make_optimizer(
        optimizer_fields(config, model),
        training.roles(model),
        steps,
        models.central_cores(model),
        seed=config.get("seed", 0),
    )


def optimizer_fields(
    config: ml_collections.ConfigDict, model: models.Model, **rates: float
) -> dict[str, Any]:
    """Fields of the config's optimizer, rates of roles that the model lacks left out.

    `rates` stand where the config gives none.
    """
    fields, roles = config.optimizer.to_dict(), set(training.roles(model).values())
    rates |= fields.get("role_learning_rates") or {}
    fields["role_learning_rates"] = {role: v for role, v in rates.items() if role in roles}
    return fields


def check_left_alone(config: ml_collections.ConfigDict, names: Sequence[str], why: str) -> None:
    """Raises ValueError where a field of `configs/mpop/base.py` is not as it stands there.

    Args:
      names: of fields that this kind of run has no use for.
      why: it has none, as part of the message.
    """
    plain = base.get_config()
    for name in names:
        value, default = (
            each.to_dict() if isinstance(each, ml_collections.ConfigDict) else each
            for each in (config[name], plain[name])
        )
        if value != default and (value or default):
            raise ValueError(f"config.{name}={value!r}: {why}. Leave it at {default!r}.")


def over_parameterised(
    config: ml_collections.ConfigDict, settings: opdf.OPDFSettings, model: models.Model
) -> dict[str, Any]:
    """The config's optimizer for a model of exact chains: cores have a rate of their own.

    It falls with their number to the power `config.rate_exponent`, unless the config gives rates of
    roles itself; cores decay towards their start.

    Args:
      settings: by which `model`, or its student, gets chains.
      model: what is trained.
    """
    planned = opdf.planned_shapes(model.config, settings)
    cores = max(shape.num_cores for shape in planned.values())
    rate = opdf.rate_factor(cores, config.rate_exponent) * config.optimizer.learning_rate
    fields = optimizer_fields(config, model, central=rate, auxiliary=rate)
    if fields["weight_decay"]:
        fields["decay_to_start"] = (r".*/cores/\d+",)
    return fields


def fit(
    config: ml_collections.ConfigDict,
    train: data.TrainData,
    state: training.TrainState,
    optimizer,
    *,
    loss: objectives.LossFunction,
    steps: int,
    folder: pathlib.Path,
    label: str,
    hooks: Sequence[training.Hook],
) -> training.FitResult:
    """`training.fit` with the config's mesh, the model's sharding rules, and bookkeeping.

    Args:
      train: batches of training examples, such as `train_data` makes them.
      state, optimizer: see `training.fit`.
      loss: such as `training.objective` gives it.
      steps: at which the run ends, those of earlier starts included.
      label: of the progress bar.
      hooks: in addition to progress, checkpoints and signals.
    """
    model = state.model()
    return training.fit(
        state,
        loss,
        train,
        optimizer=optimizer,
        steps=steps,
        mesh=training.make_mesh(config.mesh.to_dict()),
        rules=training.model_rules(model),
        hooks=[
            training.Progress(label),
            *hooks,
            training.Checkpoint(every=config.checkpoint_every, at_end=False),
            training.StopOnSignal(),
        ],
        folder=folder,
        log_every=config.log_every,
        grad_accum_steps=config.grad_accum_steps,
        prepare=prepare(config, bool(model.shapes)),
    )


def prepare(config: ml_collections.ConfigDict, has_chains: bool):
    """Work done once for all micro-batches of a step: matrices are rebuilt from their cores."""
    return models.merged if has_chains and config.grad_accum_steps > 1 else None


def train_data(
    config: ml_collections.ConfigDict, examples: Mapping[str, np.ndarray], seed: int
) -> data.TrainData:
    """Batches of encoded training examples by the config; `seed` is that of their order.

    Raises:
      ValueError: a size that must be a mistake: examples repeat in small batches alone.
    """
    count = len(examples["input_ids"])
    if config.batch_size > max(1024, 10 * count):
        raise ValueError(
            f"config.batch_size={config.batch_size} is more than ten times the {count} training "
            "examples; lower it."
        )
    return data.TrainData(examples, config.batch_size, seed=seed, lengths=config.lengths)


def eval_data(config: ml_collections.ConfigDict, examples: Mapping) -> data.EvalData:
    """Batches of encoded examples by the config."""
    return data.EvalData(examples, config.eval_batch_size, lengths=config.lengths)
