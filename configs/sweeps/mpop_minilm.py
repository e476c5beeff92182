r"""The systems of the MPOP paper on all-MiniLM-L6-v2: SST-2, CoLA, MRPC and RTE, three seeds.

    python -m experiments.sweep --config=configs/sweeps/mpop_minilm.py --workdir=runs/mpop_minilm \
        --config.cell.data_dir=DATA
    python -m experiments.sweep --config=configs/sweeps/mpop_minilm.py:smoke --workdir=runs/smoke

Seeds are the slowest axis: a stopped sweep has whole seeds first. 60 cells of 64 steps of 16
sentences, about a minute each on two cores; `smoke` runs every variant on SST-2 for a few steps.
Variants and sizes: `configs/mpop/minilm.py`.
"""

import ml_collections

from configs.mpop import minilm


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/sweeps/mpop_minilm.py:{size}: the argument is full or smoke.")
    config = ml_collections.ConfigDict()
    config.cell = minilm.get_config("dense,sst2")
    config.seeds = (0, 1, 2)
    tasks = {name: {"task": name, **fields} for name, fields in minilm.TASKS.items()}
    variants = {name: {"variant": name, **fields} for name, fields in minilm.VARIANTS.items()}
    if size == "smoke":
        config.seeds = (0,)
        config.cell.steps, config.cell.dev_examples = 4, 64
        tasks = {"sst2": tasks["sst2"]}
        for fields in variants.values():
            if "squeeze" in fields:
                fields["steps"] = 2
                fields["squeeze"] = {**fields["squeeze"], "steps": 1, "max_phases": 2}
    config.axes = (("seed", "seeds"), ("task", tasks), ("variant", variants))
    config.plots = ({"x": "total", "y": "metric", "lines": "variant", "panels": "task"},)
    return config
