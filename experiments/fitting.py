"""The part that all training runs share: a config's optimizer, batches, hooks and mesh."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from mpojax import data, models, training
from mpojax.methods import opdf
from mpojax.training import objectives


def make_optimizer(config: ml_collections.ConfigDict, model: models.Model, steps: int):
    """The config's optimizer; rates of roles that the model lacks are left out."""
    settings = config.optimizer.to_dict()
    roles = training.roles(model)
    rates = settings.get("role_learning_rates") or {}
    settings["role_learning_rates"] = {r: v for r, v in rates.items() if r in roles.values()}
    return training.make_optimizer(
        settings, roles, steps, models.central_cores(model), seed=config.get("seed", 0)
    )


def over_parameterised(config: ml_collections.ConfigDict, units: int) -> dict[str, Any]:
    """The config's optimizer for a model of exact chains: cores have a rate of their own.

    It falls with their number to the power `config.rate_exponent`; cores decay towards their start.
    """
    fields = config.optimizer.to_dict()
    rate = opdf.rate_factor(units, config.rate_exponent) * fields["learning_rate"]
    fields["role_learning_rates"] = {"central": rate, "auxiliary": rate}
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
      hooks: beside progress, checkpoints, signals and the clock of a schedule over seconds.
    """
    model = state.model()
    if optimizer.budget_seconds:
        hooks = [training.TimeBudget(optimizer.budget_seconds), *hooks]
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
        accumulate=config.accumulate,
        prepare=prepare(config, bool(model.shapes)),
    )


def prepare(config: ml_collections.ConfigDict, has_chains: bool):
    """What is done once for all micro-batches of a step: matrices are rebuilt from their cores."""
    return models.merged if has_chains and config.accumulate > 1 else None


def train_data(
    config: ml_collections.ConfigDict, examples: Mapping[str, np.ndarray], seed: int
) -> data.TrainData:
    """Batches of encoded training examples by the config; `seed` is that of their order."""
    return data.TrainData(examples, config.batch_size, seed=seed, lengths=config.lengths)


def eval_data(config: ml_collections.ConfigDict, examples: Mapping) -> data.EvalData:
    """Batches of encoded examples by the config."""
    return data.EvalData(examples, config.eval_batch_size, lengths=config.lengths)
