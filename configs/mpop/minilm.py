"""all-MiniLM-L6-v2 on GLUE tasks that fit two cores: the systems of the paper on a real encoder.

    python -m experiments.train --config=configs/mpop/minilm.py:full_lfa,sst2 --workdir=runs/lfa

`VARIANT,TASK`: variants are the keys of `VARIANTS`, tasks those of `TASKS`. All variants of one
task see the same number of training steps; `dir` and `svd` have the size that `mpop` is squeezed
to. Half a minute (dense, SST-2) to two (squeezed, RTE) for one seed on two cores.
"""

import ml_collections

from configs import common
from configs.mpop import base

LAYERS = ".*/(query|key|value|out|up|down)"
# Fraction of the dense parameters that `mpop`, `dir` and `svd` keep. The token embedding, half of
# all parameters, stays dense and frozen: the layers' matrices go down to 68 % of their dense size.
BUDGET = 0.85

# Two lengths in all, and two classes everywhere: with JAX_COMPILATION_CACHE_DIR set to a folder,
# tasks and seeds share their compiled programs.
TASKS = {
    "sst2": {"max_length": 32, "lengths": (32,), "dev_examples": 500},
    "cola": {"max_length": 32, "lengths": (32,), "dev_examples": 500},
    "mrpc": {"max_length": 64, "lengths": (64,)},
    "rte": {"max_length": 64, "lengths": (64,)},
}

STEPS = 64  # of every variant; `mpop` has 16 before its first cut and 8 in each of six phases

VARIANTS = {
    "dense": {"trainable": "all"},
    "full_lfa": {"matrices": (LAYERS,), "trainable": "lightweight"},
    "mpop": {
        "matrices": (LAYERS,),
        "trainable": "lightweight",
        "method": "squeezing",
        "squeeze": {
            "steps": 8,
            "max_phases": 6,
            # to the budget, whatever the metric does: equal sizes are compared
            "max_metric_drop": 2.0,
            "budget": BUDGET,
            "cuts_per_phase": 0,
            "multiple": 8,
        },
        "steps": 16,
    },
    "dir": {
        "matrices": (LAYERS,),
        "budget": BUDGET,
        "keep_dense": False,  # as in the paper: all chains, central cores frozen
        "trainable": "lightweight",
    },
    # The stronger baseline: matrices whose low rank would save nothing stay dense, and are trained.
    "svd": {
        "matrices": (LAYERS,),
        "settings": {"form": "low_rank"},
        "budget": BUDGET,
        "trainable": "lightweight",
    },
}


def get_config(argument: str = "dense,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = common.chosen("configs/mpop/minilm.py", argument, VARIANTS, TASKS)
    config = base.get_config()
    common.take_minilm(config)
    config.held_out_examples = 128  # of the training split, by which `mpop` measures its phases
    config.batch_size, config.steps = 16, STEPS
    config.optimizer.learning_rate = 1e-4
    config.optimizer.role_learning_rates = {"auxiliary": 5e-4}
    config.checkpoint_every = 32
    config.task, config.variant = task, variant
    for fields in (TASKS[task], VARIANTS[variant]):
        config.update(fields)
    return config
