"""Finished runs on disk: found, and matched to the config of a row."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from mpojax.training import workdir as workdir_lib

# Fields in which a run may differ from the row without being another experiment.
_FREE = (
    "seed",
    "model",
    "start_from",
    "data_dir",
    "eval_batch_size",
    "lengths",
    "accumulate",
    "mesh",
    "checkpoint_every",
    "log_every",
    "save_model",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder, the config it recorded, and its result."""

    folder: pathlib.Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """Ours for one cell of a table.

    Attributes:
      mean, spread: of the metric over seeds; the sample standard deviation, None for one seed.
      seeds: how many.
      trained, total: mean counts.
      examples: that they were measured on; None where the runs do not say.
      differs: fields in which the runs differ from the row's config, as text; empty for the row as
        it is.
    """

    mean: float
    spread: float | None
    seeds: int
    trained: float
    total: float
    examples: int | None
    differs: tuple[str, ...]


def find(folder: str | os.PathLike) -> list[Run]:
    """Every finished run at or below a folder, in the order of their paths.

    A run is a folder with `result.json` and `config.json`; other files of these names (of sweeps,
    of other experiments) are passed over.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--workdir={folder}: there is no such folder.")
    runs = []
    for path in sorted(folder.rglob("result.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            logging.info("%s: passed over (%s)", path, error)
            continue
        needed = ("task", "variant", "architecture")
        if isinstance(config, dict) and all(key in config for key in needed) and "task" in result:
            runs.append(Run(path.parent, config, result))
    return runs


def score(runs: Sequence[Run], config: ml_collections.ConfigDict, metric: str) -> Score | None:
    """Mean over the seeds of the runs of one row and task; None where there are none.

    Runs are those of the same architecture, variant and task. Where several kinds of them are
    there (another number of steps, say), those with the row's own config count, else the kind
    that differs least; kinds are never mixed. Of two runs with one seed the later path counts.
    """
    row = workdir_lib.plain(config)
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        same = all(run.config[key] == row[key] for key in ("architecture", "variant", "task"))
        if same and _value(run, metric) is not None:
            kinds.setdefault(workdir_lib.fingerprint(_fixed(run.config)), []).append(run)
    if not kinds:
        return None
    differences = {
        kind: workdir_lib.differences(_fixed(row), _fixed(same[0].config))
        for kind, same in kinds.items()
    }
    kind = min(kinds, key=lambda kind: (len(differences[kind]), -len(kinds[kind])))
    chosen = list({run.config.get("seed"): run for run in kinds[kind]}.values())
    values = [_value(run, metric) for run in chosen]
    return Score(
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
        statistics.fmean(run.result.get("trained", math.nan) for run in chosen),
        statistics.fmean(run.result.get("total", math.nan) for run in chosen),
        chosen[0].result.get("dev_examples"),
        tuple(map(_reworded, differences[kind])),
    )


def _reworded(difference: str) -> str:
    """`steps: 800 there, 2 here` -> `steps: 800 in the row, 2 in the run`."""
    return difference.replace(" there, ", " in the row, ", 1).removesuffix(" here") + " in the run"


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _FREE}
    # Where a run started decides much; under which path that lay, nothing.
    return kept | {"start_from": "a tuned model" if config.get("start_from") else ""}


def _value(run: Run, metric: str) -> float | None:
    metrics = run.result.get("metrics")
    if isinstance(metrics, Mapping) and isinstance(metrics.get(metric), int | float):
        return float(metrics[metric])
    if run.result.get("metric_name") == metric:
        return float(run.result["metric"])
    return None
