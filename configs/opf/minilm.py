r"""all-MiniLM-L6-v2 fine-tuned with over-parameterised matrices, two cores' worth of training.

    python -m experiments.train --config=configs/opf/minilm.py:dynamic,sst2 \
        --config.data_dir=DATA --workdir=runs/opf

`VARIANT,TASK`: tasks are those of `configs/mpop/minilm.py`; variants are "dynamic" and "static",
which needs `config.scoring_checkpoint`. Of the six layers' matrices three of each role become
chains.
"""

import ml_collections

from configs import common
from configs.mpop import minilm as mpop_minilm
from configs.opf import base
from mpojax.methods import opf

TASKS = mpop_minilm.TASKS


def get_config(argument: str = "dynamic,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = common.chosen("configs/opf/minilm.py", argument, opf.STRATEGIES, TASKS)
    config = base.get_config()
    common.take_minilm(config)
    config.opf.update(
        {
            "strategy": variant,
            "num_per_role": 3,
            "num_per_round": 1,
            "interval": 20.0,
            "num_inner_cores": 3,
        }
    )
    config.batch_size, config.steps = 16, 200
    config.optimizer.learning_rate = 1e-4
    config.checkpoint_every = 100
    config.task, config.variant = task, variant
    config.update(TASKS[task])
    return config
