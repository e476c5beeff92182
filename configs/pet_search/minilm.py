r"""all-MiniLM-L6-v2 on GLUE tasks that fit two cores: adapters by hand, searched, and random.

    python -m experiments.train --config=configs/pet_search/minilm.py:structured_2,sst2 \
        --config.data_dir=DATA --workdir=runs/search

`VARIANT,TASK`: tasks are those of `configs/mpop/minilm.py`, variants

    full, lfa           everything; the auxiliary cores of the model in MPO form (MPOP)
    bitfit              all biases
    lora_R              low rank R parallel to query and value
    bottleneck          of width 3 behind the two parts of every layer: at most as large as lora_4
    mpo                 chains of three cores, bond 4, for query and value: about lora_2
    structured_R        a search for as many parameters as lora_R has: rank 8 parallel to the
                        matrices of every layer, and all biases; ranks and bias vectors are pruned
    unstructured_R      the same super-set; entries are pruned
    structured_mpo_2    MPO adapters of three cores for the six matrices; bonds are cut
    random_*, magnitude_*
                        the same as the searches, but random groups, or the smallest, are pruned

All variants of a task see the same number of steps; the head is trained, and counts for none.
Learning rates: `configs/sweeps/pet_rates.py`.
"""

import ml_collections

from configs import common
from configs.mpop import minilm as mpop_minilm
from configs.pet_search import base

TASKS = mpop_minilm.TASKS
STEPS = 400
# Parameters of rank 1 for query and value of 6 layers of width 384.
RANK_1 = 2 * 6 * (384 + 384)
RANKS = (1, 2, 4)
# Of what is trained, by method: of all parameters, of auxiliary cores, of adapters and head.
RATES = {
    "full": 2e-4,
    "lfa": 5e-4,
    "bitfit": 4e-3,
    "lora": 4e-3,
    "bottleneck": 4e-3,
    "mpo": 4e-3,
    "structured": 4e-3,
    "unstructured": 4e-3,
    "structured_mpo": 4e-3,
}
_TWO = "layers/.*/(query|value)"
_SUPERSET = ((base.LAYERS, {"rank": 8}), (base.BIASES, {"kind": "bias"}))
_MPO_SUPERSET = ((base.LAYERS, {"kind": "mpo", "num_cores": 3, "bond": 12}),)
# What is tuned without a search.
_PLAIN = {
    "full": {"trainable": "all", "adapters": ()},
    "lfa": {"trainable": "lightweight", "adapters": (), "matrices": (base.LAYERS,)},
    "bitfit": {"adapters": ((base.BIASES, {"kind": "bias"}),)},
    **{f"lora_{rank}": {"adapters": ((_TWO, {"rank": rank}),)} for rank in (1, 2, 4, 8)},
    # 12 x (2 x 384 x 3 + 3 + 384) = 32,292 parameters; lora_4 has 36,864.
    "bottleneck": {"adapters": (("layers/.*/(out|down)", {"kind": "bottleneck", "width": 3}),)},
    # 16,896 parameters; lora_2 has 18,432.
    "mpo": {"adapters": ((_TWO, {"kind": "mpo", "num_cores": 3, "bond": 4}),)},
}
# Criterion of the search -> what names of methods begin with, ranks whose sizes are searched for.
_CRITERIA = {"taylor": ("", RANKS), "random": ("random_", RANKS), "magnitude": ("magnitude_", (2,))}


def rates(method: str, rate: float) -> dict:
    """Fields of the optimizer: one rate for all that a method trains, as `RATES` says."""
    if method == "lfa":
        return {"learning_rate": 1e-4, "role_learning_rates": {"auxiliary": rate}}
    return {"learning_rate": rate, "role_learning_rates": {"adapter": rate}}


def _variants() -> dict[str, dict]:
    found = {}
    for name, fields in _PLAIN.items():
        method = name.rstrip("0123456789").rstrip("_")
        fixed = {"series": method, "optimizer": rates(method, RATES[method])}
        found[name] = fields | fixed | {"search": {"budget": 0}}
    for criterion, (prefix, ranks) in _CRITERIA.items():
        for mode in ("structured", "unstructured"):
            for rank in ranks:
                fields = _search(mode, rank, mode=mode, criterion=criterion)
                found[f"{prefix}{mode}_{rank}"] = fields | {"series": prefix + mode}
    more = {"adapters": _MPO_SUPERSET, "series": "structured_mpo"}
    found["structured_mpo_2"] = _search("structured_mpo", 2) | more
    return found


def _search(rates_of: str, rank: int, **fields) -> dict:
    # Unstructured, "factor_mean" drops all biases first; the study was run with it.
    search = {"budget": rank * RANK_1, "balance": "factor_mean", **fields}
    return {"adapters": _SUPERSET, "search": search, "optimizer": rates(rates_of, RATES[rates_of])}


VARIANTS = _variants()


def get_config(argument: str = "structured_2,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = common.chosen("configs/pet_search/minilm.py", argument, VARIANTS, TASKS)
    config = base.get_config()
    common.take_minilm(config)
    config.batch_size, config.steps = 16, STEPS
    config.checkpoint_every = 200
    config.search.score_batches = 4
    config.task, config.variant = task, variant
    for fields in (TASKS[task], VARIANTS[variant]):
        config.update(fields)
    return config
