r"""Few-shot runs of one model: tasks x shots x draws x seeds, the paper's table 3 with its spread.

    python -m experiments.sweep --config=configs/sweeps/fewshot.py:mpobert12 \
        --config.cell.model=FOLDER --config.cell.data_dir=DATA --workdir=runs/fewshot/mpobert12
    python -m experiments.sweep --config=configs/sweeps/fewshot.py:minilm,sst2+rte \
        --config.cell.data_dir=DATA --workdir=runs/fewshot/minilm
    python -m experiments.sweep --config=configs/sweeps/fewshot.py:minilm,smoke \
        --config.cell.data_dir=DATA --workdir=runs/smoke

The argument is VARIANT, and optionally tasks (default: those of the table) or "smoke" (SST-2, two
draws, a few steps). What a cell is: `configs/mpobert/fewshot.py`. The summary has means over draws,
each the mean over its seeds, and the standard deviation over draws. The paper prints one number.

Cost: 2 tasks x 3 shots x 5 draws x 1 seed = 30 cells of 100 steps of 16 examples; minilm: half a
minute each on two cores, most of it the evaluation.
"""

import ml_collections

from configs.mpobert import fewshot


def get_config(argument: str = "mpobert12") -> ml_collections.ConfigDict:
    """`argument` is VARIANT; VARIANT,TASK+TASK; or VARIANT,smoke."""
    variant, _, chosen = argument.partition(",")
    tasks = tuple(chosen.split("+")) if chosen not in ("", "smoke") else ("sst2", "mnli")
    config = ml_collections.ConfigDict()
    cells = [fewshot.get_config(f"{variant},{task}") for task in tasks]  # all tasks are checked
    config.cell = cells[0]
    config.tasks = tasks
    config.shots, config.draws, config.seeds = (10, 20, 30), (0, 1, 2, 3, 4), (0,)
    if chosen == "smoke":
        config.tasks, config.draws = ("sst2",), (0, 1)
        config.cell.steps, config.cell.dev_examples = 3, 64
    config.axes = (("task", "tasks"), ("shots", "shots"), ("draw", "draws"), ("seed", "seeds"))
    config.repeats = ("draw", "seed")
    config.plots = ({"x": "shots", "y": "metric", "lines": "task"},)
    return config
