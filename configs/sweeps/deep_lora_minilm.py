r"""Deep updates of all-MiniLM-L6-v2 against LoRA of equal rank, for few examples.

    python -m experiments.sweep --config=configs/sweeps/deep_lora_minilm.py \
        --workdir=runs/deep_lora_minilm --config.cell.data_dir=DATA

SST-2 and MRPC; 16, 256 and 1,024 examples; ranks 1 to 64; three seeds, which also draw the
examples. 360 cells of 200 steps of 16 sentences, one to two minutes each on idle cores; seeds are
the slowest axis. `:smoke` runs all variants of rank 8 on 16 examples of SST-2 for a few steps.
"""

import ml_collections

from configs.deep_lora import minilm

_KINDS = ("deep", "three", "lora")
# Fields in which variants differ.
_FIELDS = ("method", "variant", "adapters", "deep_lora", "optimizer")


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/sweeps/deep_lora_minilm.py:{size}: must be full or smoke.")
    is_smoke = size == "smoke"
    ranks = (8,) if is_smoke else minilm.RANKS
    examples = (16,) if is_smoke else minilm.EXAMPLES
    tasks = ("sst2",) if is_smoke else ("sst2", "mrpc")
    config = ml_collections.ConfigDict()
    config.cell = minilm.get_config("deep_8,sst2,16")
    config.seeds = (0,) if is_smoke else (0, 1, 2)
    if is_smoke:
        config.cell.steps, config.cell.dev_examples = 12, 64
    variants = {}
    for name in (f"{kind}_{rank}" for rank in ranks for kind in _KINDS):
        if name != "deep_1":  # its bases need an even rank
            made = minilm.get_config(f"{name},sst2,16")
            variants[name] = {field: made[field] for field in _FIELDS}
    shown = ("task", "max_length", "lengths")
    by_task = {task: minilm.get_config(f"lora_1,{task},16") for task in tasks}
    config.axes = (
        ("seed", "seeds"),
        ("task", {task: {name: made[name] for name in shown} for task, made in by_task.items()}),
        ("train_examples", examples),
        ("variant", variants),
    )
    return config
