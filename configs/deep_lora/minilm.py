r"""all-MiniLM-L6-v2 tuned on few examples: deep updates against LoRA of equal rank.

    python -m experiments.train --config=configs/deep_lora/minilm.py:deep_8,sst2,16 \
        --config.data_dir=DATA --workdir=runs/deep

`VARIANT,TASK,EXAMPLES`: tasks are those of `configs/mpop/minilm.py`, examples a number or "all",
sampled by `config.seed`, variants

    deep_R      chains of five cores, the outer ones at 1/100 of the rate, as in the paper
    three_R     chains of three cores, all at one rate
    random_R    as three_R, but from a random subspace
    lora_R      LoRA of the same rank

of R in `RANKS`, parallel to query and value. All see the same number of steps.
"""

import ml_collections

from configs import common
from configs.deep_lora import base
from configs.mpop import minilm as mpop_minilm

TASKS = mpop_minilm.TASKS
RANKS = (1, 2, 4, 8, 16, 32, 64)
EXAMPLES = (16, 256, 1024)
STEPS = 200
MATRICES = "layers/.*/(query|value)"
_KINDS = {
    "deep": {"basis_rate": 0.01},
    "three": {},
    "random": {"start": "random"},
}


def get_config(argument: str = "deep_8,sst2,256") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK,EXAMPLES."""
    variant, _, rest = argument.partition(",")
    task, _, examples = rest.partition(",")
    kind, _, rank = variant.partition("_")
    known = kind in (*_KINDS, "lora") and rank.isdigit() and int(rank) in RANKS
    if not known or task not in TASKS or not (examples == "all" or examples.isdigit()):
        raise ValueError(
            f"configs/deep_lora/minilm.py:{argument}: the argument is VARIANT,TASK,EXAMPLES with a "
            f"variant of {', '.join((*_KINDS, 'lora'))} behind which _ and a rank of {RANKS} "
            f"stands, a task of {', '.join(TASKS)}, and a number or all."
        )
    config = base.get_config()
    common.take_minilm(config)
    config.batch_size, config.steps = 16, STEPS
    config.checkpoint_every = STEPS
    config.task, config.variant = task, variant
    config.train_examples = 0 if examples == "all" else int(examples)
    config.update(TASKS[task])
    if kind == "lora":
        config.method, config.adapters = "tuning", ((MATRICES, {"rank": int(rank)}),)
        config.deep_lora = {}
        # As `configs/pet_search/minilm.py` chose it for LoRA.
        config.optimizer.role_learning_rates = {"adapter": 4e-3}
        config.optimizer.learning_rate, config.optimizer.epsilon = 4e-3, 1e-8
    else:
        config.deep_lora.update({"rank": int(rank), "matrices": MATRICES, **_KINDS[kind]})
    return config
