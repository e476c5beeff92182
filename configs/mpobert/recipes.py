"""How the authors' released code fine-tunes, and the paper's own grids, as data.

12 layers: the final commands. 48 layers: population-based tuning; only the ranges are known.
Everywhere: length 128, weight decay 0.01, clipping at 1, gradient accumulation, best development
state; a linear decay after the warm-up, the default of the code that they use.

Core rate: of the cores of all chains, central and auxiliary ones alike. The commands name such a
rate without saying of which cores, and the class that reads it was not released.
"""

import dataclasses
import math

import ml_collections

from mpojax.data.sources.glue import hub as glue_hub

LENGTH, WEIGHT_DECAY, CLIP_NORM = 128, 0.01, 1.0
GRAD_ACCUM_STEPS = (
    4  # micro-batches of a step, thus the effective batch is four times the listed one
)

# The grid of the paper's text.
LEARNING_RATES, BATCH_SIZES = (2e-6, 2e-4), (8, 16, 32)

# Examples of GLUE's training splits.
EXAMPLES = {task: sizes["train"] for task, sizes in glue_hub.SIZES.items() if task != "wnli"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The command of one task.

    Attributes:
      batch_size: examples of a micro-batch.
      learning_rate: peak.
      core_rate: peak for the cores of chains; None: `learning_rate`.
      warmup: steps.
      steps: of the run, or
      epochs: over the training split.
      grad_accum_steps: micro-batches of a step.
      weight_decay: decoupled.
    """

    batch_size: int
    learning_rate: float
    core_rate: float | None
    warmup: int
    steps: int | None = None
    epochs: int | None = None
    grad_accum_steps: int = GRAD_ACCUM_STEPS
    weight_decay: float = WEIGHT_DECAY

    @property
    def examples_per_step(self) -> int:
        """The effective batch."""
        return self.batch_size * self.grad_accum_steps

    def total_steps(self, examples: int) -> int:
        """Steps of a run on so many training examples."""
        if self.steps is not None:
            return self.steps
        return self.epochs * math.ceil(examples / self.examples_per_step)


RECIPES = {
    "rte": Recipe(32, 5e-6, 5e-6, 50, epochs=5),
    "cola": Recipe(32, 2e-6, 6e-6, 80, epochs=5),
    "mrpc": Recipe(32, 5e-6, None, 20, epochs=5),
    "stsb": Recipe(16, 2e-6, 2.8e-6, 214, steps=3_598),
    "sst2": Recipe(32, 2e-6, None, 500, epochs=3),
    "qqp": Recipe(128, 5e-6, 2.8e-6, 1_000, steps=14_000),
    "mnli": Recipe(32, 2e-6, None, 500, epochs=3),
    "qnli": Recipe(128, 2e-6, 2.8e-6, 500, epochs=3),
}


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What the tuning of the 48-layer models drew from for one task.

    Attributes:
      rates: least and largest learning rate; the core rate has the same range.
      batch_sizes: of a micro-batch.
      grad_accum_steps: micro-batches of a step.
      weight_decay: largest; the least is 0.
    """

    rates: tuple[float, float]
    batch_sizes: tuple[int, ...] = (16,)
    grad_accum_steps: tuple[int, ...] = (4, 8)
    weight_decay: float = 0.3


WARMUPS_48 = (0, 20, 100, 200, 500)  # chosen by task; which for which is not known
RANGES_48 = {  # none is known for MRPC
    "qqp": Ranges((2e-8, 2e-6), weight_decay=0.1),
    "sst2": Ranges((2e-8, 2e-6)),
    "rte": Ranges((2e-8, 2e-6)),
    "cola": Ranges((2e-8, 2e-6), grad_accum_steps=(1, 2), weight_decay=0.1),
    "qnli": Ranges((2e-7, 2e-5)),
    "mnli": Ranges((2e-7, 2e-5)),
    "stsb": Ranges((2e-6, 2e-4), batch_sizes=(16, 32)),
}


def apply(config: ml_collections.ConfigDict, task: str) -> None:
    """Puts the 12-layer recipe of a task into a fine-tuning config (`configs/mpop/base.py`).

    Raises:
      ValueError: a task without a recipe.
    """
    if task not in RECIPES:
        raise ValueError(f"no recipe for task={task!r}; there are {', '.join(RECIPES)}.")
    recipe = RECIPES[task]
    config.task = task
    config.max_length = LENGTH
    config.grad_accum_steps = recipe.grad_accum_steps
    config.batch_size = recipe.examples_per_step
    config.steps = recipe.total_steps(EXAMPLES[task])
    config.keep_best, config.eval_every = True, max(1, config.steps // 10)
    config.optimizer = optimizer(recipe.learning_rate, recipe.core_rate)
    config.optimizer.weight_decay = recipe.weight_decay
    # As a fraction, so that a shorter run has a shorter warm-up.
    config.optimizer.warmup_steps = recipe.warmup / config.steps


def optimizer(learning_rate: float, core_rate: float | None = None) -> ml_collections.ConfigDict:
    """What the recipes' optimizers have in common; a tenth of the run warms up."""
    core_rates = {} if core_rate is None else dict.fromkeys(("central", "auxiliary"), core_rate)
    return ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": learning_rate,
            "role_learning_rates": core_rates,
            "schedule": "linear",
            "warmup_steps": 0.1,
            "weight_decay": WEIGHT_DECAY,
            "clip_norm": CLIP_NORM,
        }
    )
