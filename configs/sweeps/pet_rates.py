r"""The learning rates of `configs/pet_search/minilm.py`: as many tried for every method.

    python -m experiments.sweep --config=configs/sweeps/pet_rates.py --workdir=runs/pet_rates \
        --config.cell.data_dir=DATA

SST-2 and MRPC, one seed that the study does not use, 500 examples held out from the training split:
the development data that the study reports have no part in the choice. Pruning at random or
by magnitude takes the rate of the search. `minilm.RATES` has the best mean over both tasks.
"""

import ml_collections

from configs.pet_search import minilm
from configs.sweeps import pet_minilm

TASKS = ("sst2", "mrpc")
# One variant for every method, and its three rates.
_UPDATES = (
    *("bitfit", "lora_2", "bottleneck", "mpo"),
    *("structured_2", "unstructured_2", "structured_mpo_2"),
)
RATES = {
    "full": (1e-4, 2e-4, 4e-4),
    "lfa": (5e-4, 1e-3, 2e-3),
    **dict.fromkeys(_UPDATES, (1e-3, 2e-3, 4e-3)),
}


def get_config() -> ml_collections.ConfigDict:
    """The sweep."""
    config = ml_collections.ConfigDict()
    config.cell = minilm.get_config("lora_1,sst2")
    config.cell.seed = 100
    config.cell.held_out_examples, config.cell.dev_split = 500, "held_out"
    fields = {name: minilm.TASKS[name] | {"task": name, "dev_examples": 0} for name in TASKS}
    variants = {}
    for name, rates in RATES.items():
        for rate in rates:
            found = minilm.VARIANTS[name]
            found = found | {"optimizer": minilm.rates(found["series"], rate)}
            variants[f"{name},{rate:g}"] = {"variant": name, **pet_minilm.dotted(found)}
    config.axes = (("task", fields), ("variant", variants))
    config.repeats = ("task",)
    return config
