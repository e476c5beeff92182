r"""T5 on one GLUE task as text to text, table 1: `configs/mpoe/t5.py:VARIANT,TASK`.

    python -m experiments.train --config=configs/mpoe/t5.py:mpoe8,rte \
        --config.data_dir=DATA --workdir=runs/t5/mpoe8-rte
    python -m experiments.table mpoe_table1 --list       # the command of every row and task
    python -m experiments.table mpoe_table1 --workdir=runs

Variants: those of `mpojax.methods.mpoe` for T5-base (dense, switch8, moe8, mpoe8, mpoe16, ...), the
same with `large_` before them for T5-large (large_dense, large_mpoe8). Tasks: GLUE without WNLI.
Weights come from the hub, or from --config.model=FOLDER.

Published (the paper): T5 of version 1.0, 8 experts, "MPOE++" 16, everything trained, the splits of
`mpojax.data.sources.glue.splits`, mean test score of three runs (--config.seed=0, 1, 2).

From the authors' released files, which need not be those of the tables: tasks in words, source and
target of 128 tokens, AdamW with one rate for all, linear decay, clipping at 1, dropout .1, label
smoothing .1, top-1 routing without balancing; for T5-large rate 1e-4, batch 4, warm-up 320, 3
epochs, all of which are here. For T5-base there are two files: rate 2e-6 for one epoch, and 1e-5
for three; both with batch 32 and warm-up 320. On RTE neither reaches the end of its warm-up (78
steps an epoch), so they cannot be what the tables are from.

Ours: for T5-base rate 1e-4, more epochs for small tasks (`EPOCHS`), a warm-up of at most a tenth;
for both the probability of the mask, 1 - 1/n (--config.optimizer.central_mask.rate); the weight of
the balance loss (authors: --config.balance_weight=0); the loss is a mean over tokens, not their
sum, which Adam hardly notices; targets of 16 tokens, more than any label has; evaluation every 250
steps, or 20 times a run where that is less often; no weight decay. The development split chooses
the state, the test split is reported; the authors' code chooses on the test split.

Cost (estimated): T5-base on RTE, 1,560 steps of 32 x 128 tokens: some minutes on one GPU; MNLI:
36,816 steps, hours. Experts add the rebuilding of their matrices, with 8 experts and 4,096 tokens
a step about as much as the feed-forward blocks themselves. T5-large on MNLI: 294,528 steps of 4.
Expected: the published values of table 1 where data and weights are at hand.
"""

import dataclasses
import functools
import math

import ml_collections

from configs.mpobert import recipes
from configs.mpoe import base
from mpojax.methods import mpoe

TASKS = ("mnli", "qnli", "sst2", "rte", "qqp", "cola", "mrpc", "stsb")  # in the table's order
# Training examples that become the development split.
HELD_OUT = {"sst2": 1000, "qnli": 1000, "qqp": 1000}
LARGE = "large_"
WARMUP, EVAL_EVERY = 320, 250  # steps, of all the authors' files
EPOCHS = {"rte": 20, "mrpc": 20, "stsb": 20, "cola": 10}  # of T5-base; other tasks: 3


@dataclasses.dataclass(frozen=True)
class Size:
    """Hyper-parameters of one size of T5."""

    architecture: str
    learning_rate: float
    batch_size: int
    longest_warmup: float  # fraction of the run

    def epochs(self, task: str) -> int:
        """Of a task."""
        return EPOCHS.get(task, 3) if self.architecture == "t5-base" else 3


BASE_SIZE = Size("t5-base", 1e-4, 32, 0.1)
LARGE_SIZE = Size("t5-large", 1e-4, 4, 1.0)


def get_config(argument: str = "mpoe8,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    name, _, task = argument.partition(",")
    if task not in TASKS:
        raise ValueError(
            f"configs/mpoe/t5.py:{argument}: the argument is VARIANT,TASK with a task of "
            f"{', '.join(TASKS)} and a variant such as {', '.join(mpoe.VARIANTS)}, for T5-large "
            f"with {LARGE} before it."
        )
    size, variant = read(name)
    config = base.get_config()
    settings(config)
    config.task, config.variant = task, name
    base.put(config, size.architecture, variant)
    config.batch_size = size.batch_size
    config.steps = size.epochs(task) * math.ceil(examples(task) / size.batch_size)
    config.eval_every = max(EVAL_EVERY, config.steps // 20)
    config.optimizer.learning_rate = size.learning_rate
    # As a fraction, so that a shorter run has a shorter warm-up.
    config.optimizer.warmup_steps = min(size.longest_warmup, WARMUP / config.steps)
    return config


def settings(config: ml_collections.ConfigDict) -> None:
    """Puts what all runs of T5 have in common into a config."""
    config.max_length, config.target_length = 128, 16
    config.dropout, config.label_smoothing = 0.1, 0.1
    config.keep_best = True
    config.optimizer.schedule = "linear"
    config.optimizer.clip_norm, config.optimizer.weight_decay = 1.0, 0.0


def examples(task: str) -> int:
    """Training examples of a task after its development split is taken."""
    return recipes.EXAMPLES[task] - HELD_OUT.get(task, 0)


def read(name: str) -> tuple[Size, str]:
    """(size of T5, variant of `mpoe`) of a variant of this config."""
    size = LARGE_SIZE if name.startswith(LARGE) else BASE_SIZE
    return size, name.removeprefix(LARGE)


@functools.cache
def counts(name: str) -> dict[str, int]:
    """`mpoe.counts` of a variant, from shapes alone."""
    size, variant = read(name)
    return mpoe.counts(size.architecture, variant)
