r"""Learning rates of the tuned half of `configs/compress_minilm.py`: one grid for every model.

    python -m experiments.sweep --config=configs/sweeps/compress_minilm_rates.py:runs/minilm_45 \
        --workdir=runs/minilm_45_rates --config.cell.data_dir=DATA

The argument is a finished workdir of the study, whose models are tuned as there, with a seed that
the study does not use; 1,000 examples of the training split are held out to choose by, the
development set has no part in it.
"""

import ml_collections

from configs import compress_minilm

MODELS = ("dense", "best", "whitened", "svd")
RATES = (3e-5, 1e-4, 3e-4)


def get_config(folder: str = "runs/minilm_45") -> ml_collections.ConfigDict:
    """`folder` is a workdir of `experiments.compress` with that config."""
    config = ml_collections.ConfigDict()
    config.cell = compress_minilm.get_config().cell
    config.cell.seed = 100
    config.cell.held_out_examples, config.cell.dev_split = 1000, "held_out"
    models = {
        name: {"variant": name, "model": f"{folder}/models/{name}", "trainable": "all"}
        for name in MODELS
    }
    rates = {f"{rate:g}": {"optimizer.learning_rate": rate} for rate in RATES}
    config.axes = (("variant", models), ("rate", rates))
    return config
