"""Training: config -> state -> step -> hooks, with one loop."""

from mpojax.training.checkpoints import Checkpoints
from mpojax.training.dry_run import Report, abstract_state, dry_run
from mpojax.training.evaluation import Evaluator, NonFiniteOutputError, accuracy, classify, score
from mpojax.training.hooks import (
    Call,
    Checkpoint,
    Evaluate,
    Hook,
    Progress,
    StopOnSignal,
    restore_best,
)
from mpojax.training.loop import FitResult, Loop, fit
from mpojax.training.metrics import MetricsWriter
from mpojax.training.objectives import objective
from mpojax.training.optimizer import default_config, make_optimizer
from mpojax.training.sharding import Rules, make_mesh, state_shardings
from mpojax.training.sharding_rules import model_rules, sharding_table
from mpojax.training.state import TrainState, roles
from mpojax.training.step import NonFiniteLossError, TrainStep
from mpojax.training.tasks.labelled import evaluator
from mpojax.training.tasks.language_modeling import language_model_loss
from mpojax.training.update_statistics import UpdateStatistics
from mpojax.training.workdir import Workdir

__all__ = [
    "Call",
    "Checkpoint",
    "Checkpoints",
    "Evaluate",
    "Evaluator",
    "FitResult",
    "Hook",
    "Loop",
    "MetricsWriter",
    "NonFiniteLossError",
    "NonFiniteOutputError",
    "Progress",
    "Report",
    "Rules",
    "StopOnSignal",
    "TrainState",
    "TrainStep",
    "UpdateStatistics",
    "Workdir",
    "abstract_state",
    "accuracy",
    "classify",
    "default_config",
    "dry_run",
    "evaluator",
    "fit",
    "language_model_loss",
    "make_mesh",
    "make_optimizer",
    "model_rules",
    "objective",
    "restore_best",
    "roles",
    "score",
    "sharding_table",
    "state_shardings",
]
