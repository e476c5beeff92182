r"""The search behind the 48-layer rows: learning rate x core rate x batch, for one task.

    python -m experiments.sweep --config=configs/sweeps/mpobert48.py:mpobert48,rte \
        --config.cell.data_dir=DATA --workdir=runs/search/mpobert48-rte
    python -m experiments.table mpobert_table1 --workdir=runs    # the best of a search counts

The argument is VARIANT,TASK: mpobert48 or mpobert48plus, and a task of
`configs/mpobert/finetune.py`, which says where the model comes from. The authors tuned populations;
of each task the ranges are known that they drew from (`configs/mpobert/recipes.py`), not what came
out, thus this is a grid over the ranges: both ends and the middle of the rates, every batch. MRPC
and SQuAD have no range; they take those of RTE and MNLI. Weight decay and warm-up, which they drew
as well, are axes of one value: --config.weight_decays=0.0,0.15,0.3 --config.warmups=0.0,0.1.

Cost: 3 x 3 x 2 cells (RTE: 200 steps of 64 x 128 tokens each; STS-B: 36 cells).
"""

import math

import ml_collections

from configs import common
from configs.mpobert import finetune

VARIANTS = ("mpobert48", "mpobert48plus")


def get_config(argument: str = "mpobert48,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    file = "configs/sweeps/mpobert48.py"
    _, task = common.chosen(file, argument, VARIANTS, finetune.TASKS)
    config = ml_collections.ConfigDict()
    config.cell = finetune.get_config(argument)
    recipe = finetune.ranges(task)
    low, high = recipe.rates
    rates = (low, config.cell.optimizer.learning_rate, high)
    config.learning_rates = rates
    config.weight_decays = (config.cell.optimizer.weight_decay,)
    config.warmups = (config.cell.optimizer.warmup_steps,)
    config.seeds = (config.cell.seed,)
    config.axes = (
        ("optimizer.learning_rate", "learning_rates"),
        ("core_rate", {f"{rate:g}": _core_rate(rate) for rate in rates}),
        (
            "batch",
            {
                f"{size}x{grad_accum_steps}": _batch(config.cell, size, grad_accum_steps)
                for size in recipe.batch_sizes
                for grad_accum_steps in recipe.grad_accum_steps
            },
        ),
        ("optimizer.weight_decay", "weight_decays"),
        ("optimizer.warmup_steps", "warmups"),
        ("seed", "seeds"),
    )
    config.plots = (
        {"x": "optimizer.learning_rate", "y": "metric", "lines": "core_rate", "log_x": True},
    )
    return config


def _core_rate(rate: float) -> dict:
    return {f"optimizer.role_learning_rates.{role}": rate for role in ("central", "auxiliary")}


def _batch(cell: ml_collections.ConfigDict, size: int, grad_accum_steps: int) -> dict:
    """Fields of a batch of `grad_accum_steps` micro-batches; the examples of the cell in all."""
    steps = math.ceil(cell.steps * cell.batch_size / (size * grad_accum_steps))
    return {
        "batch_size": size * grad_accum_steps,
        "grad_accum_steps": grad_accum_steps,
        "steps": steps,
        "eval_every": max(1, steps // 10),
    }
