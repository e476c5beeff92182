"""A sweep whose cells take no time, and what all runs of the tests do."""

import json
import pathlib

import ml_collections
from ml_collections import config_dict

from experiments import runs, train

CALLS: list[str] = []  # names of the cells that ran, in order


def toy_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.cell = {
        "task": "sst2",
        "variant": "",
        "max_length": 8,
        "bond": config_dict.placeholder(int),
        "seed": 0,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0.1},
        "matrices": (),
    }
    config.seeds = (0, 1)
    config.axes = (
        ("variant", {"dense": {"variant": "d"}, "mpo": {"variant": "m", "matrices": (".*",)}}),
        ("optimizer.learning_rate", (1e-3, 2.8e-6)),
        ("seed", "seeds"),
    )
    return config


def toy_run(config, folder) -> int:
    """Writes a result whose numbers follow from the config."""
    folder = pathlib.Path(folder)
    CALLS.append(folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    metric = 0.5 + 0.1 * config.seed + 0.05 * (config.variant == "m")
    result = {
        "task": config.task,
        "variant": config.variant,
        "seed": config.seed,
        "metric_name": "accuracy",
        "metric": metric,
        "metrics": {"accuracy": metric, "f1": metric / 2},
        "total": 100 if config.variant == "d" else 50,
        "trained": 10,
        "relative_error": 0.0,
        "fit": {"ignored": 1},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def main(config, folder) -> int:
    """What the command line does with a config."""
    runs.show(folder, train.run(config, folder))
    return 0


def result_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def install(monkeypatch) -> None:
    """Has sweeps run toys."""
    CALLS.clear()
    monkeypatch.setattr(train, "run", toy_run)
    monkeypatch.setattr(train, "check", lambda config: None)
