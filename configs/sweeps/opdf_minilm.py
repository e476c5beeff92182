r"""A three-layer student of a fine-tuned all-MiniLM-L6-v2: over-parameterised or not, equal steps.

    python -m experiments.train --config=configs/mpop/minilm.py:dense,sst2 --config.steps=400 \
        --config.data_dir=DATA --config.save_model=True --workdir=runs/teacher
    python -m experiments.sweep --config=configs/sweeps/opdf_minilm.py --workdir=runs/opdf_minilm \
        --config.cell.data_dir=DATA --config.cell.teacher=runs/teacher/model

SST-2, five seeds of the order of batches, the slowest axis; `:mrpc` and the like take another task
of `configs/opdf/minilm.py`, where the variants are, too.
"""

import ml_collections

from configs.opdf import minilm


def get_config(task: str = "sst2") -> ml_collections.ConfigDict:
    """The sweep on one task."""
    config = ml_collections.ConfigDict()
    config.cell = minilm.get_config(f"kd,{task}")
    config.cell.dev_examples = 0
    config.seeds = (0, 1, 2, 3, 4)
    variants = {
        name: {"variant": name, **{f"opdf.{field}": value for field, value in fields.items()}}
        for name, fields in minilm.VARIANTS.items()
    }
    config.axes = (("seed", "seeds"), ("variant", variants))
    config.plots = ({"x": "train_parameters", "y": "metric", "lines": "variant"},)
    return config
