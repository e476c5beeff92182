r"""Adapters of all-MiniLM-L6-v2: by hand, searched, and random, at equal sizes.

    python -m experiments.sweep --config=configs/sweeps/pet_minilm.py --workdir=runs/pet_minilm \
        --config.cell.data_dir=DATA
    python -m experiments.sweep --config=configs/sweeps/pet_minilm.py:smoke --workdir=runs/smoke
    python -m experiments.render pet_minilm --runs=runs/pet_minilm

SST-2, CoLA, MRPC and RTE, three seeds; seeds are the slowest axis: a stopped sweep has whole seeds
first. 288 cells of 400 steps of 16 sentences: two to four minutes each on one core, a few seconds
on a GPU. `:sst2+cola` and the like run some tasks, `:smoke` all variants on SST-2 for a few steps.
Variants and sizes: `configs/pet_search/minilm.py`.
"""

import ml_collections

from configs.pet_search import minilm

_TASK = {"dev_examples": 0}  # all


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full", "smoke", or names of tasks joined by +."""
    names = tuple(minilm.TASKS) if size in ("full", "smoke") else tuple(size.split("+"))
    if not set(names) <= set(minilm.TASKS):
        raise ValueError(
            f"configs/sweeps/pet_minilm.py:{size}: the argument is full, smoke, or tasks of "
            f"{', '.join(minilm.TASKS)} joined by +."
        )
    config = ml_collections.ConfigDict()
    config.cell = minilm.get_config("lora_1,sst2")
    config.seeds = (0, 1, 2)
    tasks = {name: {"task": name, **minilm.TASKS[name], **_TASK} for name in names}
    if size == "smoke":
        config.seeds = (0,)
        config.cell.steps, config.cell.dev_examples = 12, 64
        tasks = {"sst2": {**tasks["sst2"], "dev_examples": 64}}
        config.cell.search.rounds, config.cell.search.last_round = 2, 0.5
    variants = {n: {"variant": n, **dotted(fields)} for n, fields in minilm.VARIANTS.items()}
    config.axes = (("seed", "seeds"), ("task", tasks), ("variant", variants))
    return config


def dotted(fields: dict) -> dict:
    """Fields of a variant as an axis sets them: those of search and optimizer by their paths."""
    found = {}
    for name, value in fields.items():
        nested = name in ("search", "optimizer")
        found |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    return found
