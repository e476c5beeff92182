r"""The tuned half of `configs/compress_minilm.py`: its models, tuned alike, each at its own rate.

    python -m experiments.compress --config=configs/compress_minilm.py --config.budget=0.45 \
        --config.calibration.data_dir=DATA --config.cell.data_dir=DATA --config.seeds=0 \
        --config.cell.steps=0 --config.compare=dense,best,whitened,svd --workdir=runs/minilm_45
    python -m experiments.sweep --config=configs/sweeps/compress_minilm.py:runs/minilm_45 \
        --workdir=runs/minilm_45_tuned --config.cell.data_dir=DATA

The argument is the finished workdir of the study. With `,rates` behind it one grid of learning
rates is tried for every model instead, with a seed that the study does not use; 1,000 examples of
the training split are held out to choose by, the development set has no part in it.

Runs go seed by seed, so that a sweep that is stopped has whole ones.
Cost: two minutes a run on two idle cores; twelve runs, of other sizes nine.
"""

import ml_collections

from configs import compress_minilm

GRID = (3e-5, 1e-4, 3e-4)
# The best of the grid for each model, at 45 %; all sizes take them.
RATES = {"dense": 3e-4, "best": 1e-4, "whitened": 1e-4, "svd": 1e-4}


def get_config(argument: str = "runs/minilm_45") -> ml_collections.ConfigDict:
    """`argument` is a workdir of `experiments.compress` with that config, or WORKDIR,rates."""
    folder, _, what = argument.partition(",")
    if what not in ("", "rates"):
        raise ValueError(
            f"configs/sweeps/compress_minilm.py:{argument}: behind the folder only ',rates' is "
            "allowed."
        )
    config = ml_collections.ConfigDict()
    config.cell = compress_minilm.get_config().cell
    models = {
        name: {"variant": name, "model": f"{folder}/models/{name}", "trainable": "all"}
        for name in RATES
    }
    if what == "rates":
        config.cell.seed = 100
        config.cell.held_out_examples, config.cell.dev_split = 1000, "held_out"
        grid = {f"{rate:g}": {"optimizer.learning_rate": rate} for rate in GRID}
        config.axes = (("variant", models), ("rate", grid))
        return config
    for name, rate in RATES.items():
        models[name]["optimizer.learning_rate"] = rate
    config.seeds = (0, 1, 2)
    config.skip = ()  # ({"variant": "dense"},) at the second size: it is the same there
    config.axes = (("seed", "seeds"), ("variant", models))
    return config
