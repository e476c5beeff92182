r"""One model on eight GLUE tasks at once: `configs/mpobert/multitask.py:VARIANT[,TASK+TASK...]`.

    python -m experiments.train --config=configs/mpobert/multitask.py:mpobert12 \
        --config.model=FOLDER --config.data_dir=DATA --workdir=runs/multitask/mpobert12
    python -m experiments.train --config=configs/mpobert/multitask.py:minilm,sst2+mrpc+rte \
        --config.data_dir=DATA --config.batch_size=32 --config.grad_accum_steps=1 \
        --config.steps=500 --workdir=runs/multitask/minilm

Table 2 of the paper. Variants: those of `configs/mpobert/finetune.py`, which says where each model
comes from, and minilm. Tasks: the eight of the table. FOLDER is the `model` folder of a
pre-training run, or any other that this library loads, with its tokenizer; it may be left out as
for single tasks. The paper does not say how it trained on several tasks: batch, length and schedule
are those of its single tasks, rates and number of epochs are ours.

Cost (estimated): 22,245 steps of 128 x 128 tokens, a few hours on one GPU for 12 layers. Expected:
the averages of table 2, one run each: 83.0 (bert12), 84.4 (mpobert48), 82.0 (mpobert12), 80.5
(albert12).
"""

import math

import ml_collections

from configs.mpobert import recipes, systems
from configs.mpop import base

TASKS = ("mnli", "qnli", "sst2", "rte", "qqp", "cola", "mrpc", "stsb")  # in the table's order
BATCH_SIZE = 32  # of a micro-batch
EPOCHS = 3  # over all tasks together
_OF_ONE_TASK = ("task", "metric", "squeeze", "search")


def get_config(argument: str = "mpobert12") -> ml_collections.ConfigDict:
    """`argument` is VARIANT, or VARIANT and the tasks: mpobert12,sst2+rte."""
    variant, _, chosen = argument.partition(",")
    tasks = tuple(chosen.split("+")) if chosen else TASKS
    unknown = [task for task in tasks if task not in TASKS]
    if variant not in systems.SYSTEMS or unknown:
        raise ValueError(
            f"configs/mpobert/multitask.py:{argument}: the argument is VARIANT or "
            f"VARIANT,TASK+TASK with a variant of {', '.join(systems.SYSTEMS)} and tasks of "
            f"{', '.join(TASKS)} (others with --config.tasks and --config.steps)."
        )
    config = base.get_config()
    for name in _OF_ONE_TASK:
        del config[name]
    config.tasks = tasks
    # A task's share of every batch is proportional to (its examples) ** exponent: 1 = by size, 0 =
    # equal shares.
    config.exponent = 1.0
    # {task: the metric that counts in the average}, where it is not the task's first: in the paper
    # the F1 of MRPC.
    config.metrics = {"mrpc": "f1"} if "mrpc" in tasks else {}
    config.max_length, config.lengths = recipes.LENGTH, (32, 64, recipes.LENGTH)
    config.grad_accum_steps = recipes.GRAD_ACCUM_STEPS
    config.batch_size = BATCH_SIZE * recipes.GRAD_ACCUM_STEPS
    examples = sum(recipes.EXAMPLES[task] for task in tasks)
    config.steps = EPOCHS * math.ceil(examples / config.batch_size)
    config.keep_best, config.eval_every = True, max(1, config.steps // 10)
    systems.put(config, variant)
    config.optimizer = systems.optimizer(variant)
    return config
