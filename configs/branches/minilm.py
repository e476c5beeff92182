r"""all-MiniLM-L6-v2 fine-tuned with larger matrices than are left: sums, and chains.

    python -m experiments.train --config=configs/branches/minilm.py:majority_3,sst2 \
        --config.data_dir=DATA --workdir=runs/majority

`VARIANT,TASK`: tasks are those of `configs/mpop/minilm.py`, variants

    dense, dense_sgd    the plain model, with AdamW and with momentum
    majority_K          K kernels under random weights
    branches            a dense and a block-diagonal branch, with momentum
    gradients           the matrix alone, its gradients multiplied: the same but for clipping
    search              as branches, but their scales are trained, too, for the other two

`configs/opf/minilm.py` has the chains, with the same steps, batches and rate of AdamW. Rates are
ours.
"""

import ml_collections

from configs import common
from configs.branches import base
from configs.mpop import minilm as mpop_minilm

TASKS = mpop_minilm.TASKS
STEPS = 200
_SGD = {"name": "sgd", "learning_rate": 0.1, "beta1": 0.9}
VARIANTS = {
    "dense": {"method": "tuning", "branches": {}},
    "dense_sgd": {"method": "tuning", "branches": {}, "optimizer": _SGD},
    "majority_2": {"branches": {"kernels": 2}},
    "majority_3": {"branches": {"kernels": 3}},
    "majority_5": {"branches": {"kernels": 5}},
    "branches": {"branches": {"form": "branches"}, "optimizer": _SGD},
    "gradients": {"branches": {"form": "gradients"}, "optimizer": _SGD},
    "search": {"branches": {"form": "search"}, "optimizer": _SGD},
}


def get_config(argument: str = "majority_3,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = common.chosen("configs/branches/minilm.py", argument, VARIANTS, TASKS)
    config = base.get_config()
    common.take_minilm(config)
    config.batch_size, config.steps = 16, STEPS
    config.optimizer.learning_rate = 1e-4
    config.checkpoint_every = 100
    config.task, config.variant = task, variant
    fields = VARIANTS[variant]
    if fields["branches"] == {}:
        config.branches = {}
    for each in (TASKS[task], fields):
        config.update(each)
    return config
