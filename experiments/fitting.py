"""The part that all training runs share: a config's optimizer, batches, hooks and mesh."""

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from mpojax import data, models, training


def make_optimizer(config: ml_collections.ConfigDict, model: models.Model, steps: int):
    """The config's optimizer; rates of roles that the model lacks are left out."""
    settings = config.optimizer.to_dict()
    roles = training.roles(model)
    rates = settings.get("role_learning_rates") or {}
    settings["role_learning_rates"] = {r: v for r, v in rates.items() if r in roles.values()}
    return training.make_optimizer(settings, roles, steps)


def fit(
    config: ml_collections.ConfigDict,
    examples: Mapping[str, np.ndarray],
    state: training.TrainState,
    optimizer,
    *,
    kind: str,
    steps: int,
    folder: pathlib.Path,
    label: str,
    hooks: Sequence[training.Hook],
    seed: int,
) -> training.FitResult:
    """`training.fit` with the config's data, mesh and bookkeeping.

    Args:
      examples: encoded training examples.
      state, optimizer: see `training.fit`.
      kind: of the task, see `training.objective`.
      steps: at which the run ends, those of earlier starts included.
      label: of the progress bar.
      hooks: beside progress, checkpoints and signals.
      seed: of the order of the examples.
    """
    has_chains = bool(state.model().shapes)
    return training.fit(
        state,
        training.objective(kind),
        data.TrainData(examples, config.batch_size, seed=seed, lengths=config.lengths),
        optimizer=optimizer,
        steps=steps,
        mesh=training.make_mesh(config.mesh.to_dict()),
        hooks=[
            training.Progress(label),
            *hooks,
            training.Checkpoint(every=config.checkpoint_every, at_end=False),
            training.StopOnSignal(),
        ],
        folder=folder,
        log_every=config.log_every,
        accumulate=config.accumulate,
        # With several micro-batches every matrix is rebuilt once for all of them.
        prepare=models.merged if has_chains and config.accumulate > 1 else None,
    )


def eval_data(config: ml_collections.ConfigDict, examples: Mapping) -> data.EvalData:
    """Batches of encoded examples by the config."""
    return data.EvalData(examples, config.eval_batch_size, lengths=config.lengths)
