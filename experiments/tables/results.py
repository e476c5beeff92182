"""Finished runs on disk: found, and matched to the config of a row."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from configs.mpoe import base as mpoe_base
from configs.mpop import base
from mpojax import files
from mpojax.training import workdir as workdir_lib

# Fields in which a run may differ from the row without being another experiment.
_FREE = (
    *("seed", "draw", "model", "init_checkpoint", "teacher", "scoring_checkpoint", "data_dir"),
    *("eval_batch_size", "lengths", "grad_accum_steps", "mesh", "checkpoint_every", "log_every"),
    *("save_model", "tokenizer", "remat", "router_every"),
)
# The same of `experts`: how, not what, is computed.
_FREE_OF_EXPERTS = ("dispatch", "structure", "remat")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder, the config it recorded, and its result."""

    folder: pathlib.Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    def of_task(self, task: str) -> Mapping[str, Any]:
        """The result on one task; the whole result of a run with one."""
        return self.result.get("tasks", {}).get(task, self.result)

    def value(self, task: str, metric: str) -> float | None:
        """A metric, or with "a+b" the mean of several; None where it was not measured."""
        if "+" in metric:
            parts = [self.value(task, part) for part in metric.split("+")]
            return None if None in parts else statistics.fmean(parts)
        result = self.of_task(task)
        metrics = result.get("metrics")
        if isinstance(metrics, Mapping) and isinstance(metrics.get(metric), int | float):
            return float(metrics[metric])
        return float(result["metric"]) if result.get("metric_name") == metric else None


@dataclasses.dataclass(frozen=True)
class Score:
    """Ours for one cell of a table.

    Attributes:
      mean, stddev: of the metric over seeds (of few-shot runs over draws, each the mean over its
        seeds); the sample standard deviation, None for one.
      seeds: how many; of few-shot runs with several draws, how many draws.
      trained, total: mean counts.
      examples: that they were measured on; None where the runs do not say.
      differs: fields in which the runs differ from the row's config, as text; empty for the row as
        it is.
      settings: how many settings of the fields that the row leaves open were tried; these are the
        best.
    """

    mean: float
    stddev: float | None
    seeds: int
    trained: float
    total: float
    examples: int | None
    differs: tuple[str, ...]
    settings: int = 1


def find(folder: str | os.PathLike) -> list[Run]:
    """Every finished run at or below a folder, in the order of their paths.

    A run is a folder with `result.json` and `config.json`; other files of these names (of sweeps,
    of other experiments) are passed over.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    folder = files.at(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"--workdir={folder}: there is no such folder.")
    runs = []
    for path in sorted(folder.rglob("result.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        except (ConnectionError, PermissionError):  # what is passed over would be missed
            raise
        except (OSError, json.JSONDecodeError) as error:
            logging.info("%s: passed over (%s)", path, error)
            continue
        is_run = isinstance(config, dict) and {"variant", "architecture"} <= set(config)
        if is_run and "task" in result:
            runs.append(Run(path.parent, workdir_lib.renamed(config), result))
    return runs


def score(
    runs: Sequence[Run],
    config: ml_collections.ConfigDict,
    metric: str,
    task: str = "",
    tuned: Sequence[str] = (),
    split: str = "dev",
    model: Mapping[str, int] | None = None,
    total: Callable[[], int] | None = None,
) -> Score | None:
    """Mean over the seeds of the runs of one row and task; None where there are none.

    Runs are those of the same architecture, variant, task and shots. A model of other sizes than
    the row's makes another kind, whatever its config calls it. Where several kinds of them
    are there (another number of steps, say), those with the row's own config count, else the kind
    that differs least; kinds are never mixed. Of two runs with one seed the later path counts.

    Args:
      runs: of any kind.
      config: of the row.
      metric: of the task.
      task: of a row with several tasks; else the config names it.
      tuned: fields of the config that the row leaves open: the best of all settings counts.
      split: that the metric is of.
      model: sizes of the row's model, see `loading.sizes`; None where they are unknown.
      total: number of its parameters, by which runs are compared that recorded no sizes.
    """
    row = workdir_lib.plain(config)
    task = task or _tasks(row)[0]
    same = [r for r in runs if _is_same(r, row, task) and r.value(task, metric) is not None]
    wanted = _fixed(row, tuned)
    differences = [
        (
            *workdir_lib.differences(wanted, _fixed(run.config, tuned)),
            *_other_model(run.result, model or {}, total),
        )
        for run in same
    ]
    kinds = _kinds(same, differences)
    if not kinds:
        return None
    # The fewest differences, then the most runs.
    differs, chosen = min(kinds, key=lambda kind: (len(kind[0]), -len(kind[1])))
    settings: dict[str, list[Run]] = {}
    for run in chosen:
        open_fields = {name: run.config.get(name) for name in tuned}
        settings.setdefault(workdir_lib.fingerprint(open_fields), []).append(run)
    found = [_summarised(same, task, metric, split) for same in settings.values()]
    best = max(found, key=lambda score: score.mean)
    return dataclasses.replace(best, differs=tuple(map(_reworded, differs)), settings=len(found))


def _kinds(
    runs: Sequence[Run], changes: Sequence[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], list[Run]]]:
    """Runs grouped by how they differ from the row, and by the sizes of their models.

    Runs that recorded no sizes, as those of older versions, belong to the others that differ alike,
    unless these are of several models.
    """
    recorded: dict[tuple[str, ...], set[str]] = {}
    for run, differs in zip(runs, changes, strict=True):
        recorded.setdefault(differs, set()).update(_sizes_of(run))
    kinds: dict[tuple[tuple[str, ...], frozenset[str]], list[Run]] = {}
    for run, differs in zip(runs, changes, strict=True):
        several = len(recorded[differs]) > 1
        key = differs, frozenset(_sizes_of(run) if several else ())
        kinds.setdefault(key, []).append(run)
    return [(differs, same) for (differs, _), same in kinds.items()]


def _sizes_of(run: Run) -> list[str]:
    """The sizes that a run recorded, as one text; nothing where it recorded none."""
    found = run.result.get("model")
    return [workdir_lib.fingerprint(found)] if isinstance(found, Mapping) else []


def _other_model(
    result: Mapping[str, Any], model: Mapping[str, int], total: Callable[[], int] | None
) -> list[str]:
    """Differences between a run's model and the row's: the name in a config proves nothing."""
    found = result.get("model")
    if isinstance(found, Mapping):
        both = [name for name in model if name in found]
        return workdir_lib.differences(
            {name: model[name] for name in both}, {name: found[name] for name in both}
        )
    if total is None or not isinstance(result.get("counts"), Mapping):
        return []
    wanted, there = total(), result["counts"].get("total")
    # Heads for other numbers of labels are far smaller.
    if isinstance(there, int) and abs(there - wanted) > 0.01 * wanted:
        return [f"parameters: {wanted:,} there, {there:,} here"]
    return []


def _is_same(run: Run, row: Mapping[str, Any], task: str) -> bool:
    """True if a run is one of a row and task, maybe with other hyper-parameters."""
    if any(run.config[key] != row[key] for key in ("architecture", "variant")):
        return False
    if run.config.get("shots", 0) != row.get("shots", 0):
        return False
    if bool(run.config.get("tasks")) != bool(row.get("tasks")):
        return False
    return task in _tasks(run.config)


def _tasks(config: Mapping[str, Any]) -> tuple[str | None, ...]:
    """The tasks of a run, its task, or the name of its texts."""
    return tuple(config.get("tasks") or ()) or (config.get("task") or config.get("dataset"),)


def _summarised(runs: Sequence[Run], task: str, metric: str, split: str) -> Score:
    """Score of runs that differ in seed and draw alone."""
    # Of equal keys the last one stays.
    chosen = {(run.config.get("draw", 0), run.config.get("seed")): run for run in runs}
    draws: dict[int, list[float]] = {}
    for (draw, _), run in chosen.items():
        draws.setdefault(draw, []).append(run.value(task, metric))
    means = [statistics.fmean(values) for values in draws.values()]
    # Several draws: the spread is over draws; one: over its seeds.
    values = means if len(means) > 1 else next(iter(draws.values()))
    results = [run.result for run in chosen.values()]
    return Score(
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
        statistics.fmean(result.get("trained", math.nan) for result in results),
        statistics.fmean(result.get("total", math.nan) for result in results),
        next(iter(chosen.values())).of_task(task).get(f"{split}_examples"),
        (),
    )


def _reworded(difference: str) -> str:
    """`steps: 800 there, 2 here` -> `steps: 800 in the row, 2 in the run`."""
    return difference.replace(" there, ", " in the row, ", 1).removesuffix(" here") + " in the run"


def _fixed(config: Mapping[str, Any], tuned: Sequence[str] = ()) -> dict[str, Any]:
    # Fields that came later than a run had their defaults in it.
    method = workdir_lib.method_of(config)
    config = {**_defaults("dataset" in config), "method": method, **config}
    kept = {key: value for key, value in config.items() if key not in (*_FREE, *tuned)}
    if "experts" in kept:
        experts = kept["experts"].items()
        kept["experts"] = {name: v for name, v in experts if name not in _FREE_OF_EXPERTS}
    # Where a run started decides much; under which path that lay, nothing.
    return kept | {"init_checkpoint": "a tuned model" if config.get("init_checkpoint") else ""}


@functools.cache
def _defaults(is_language_model: bool) -> dict[str, Any]:
    return workdir_lib.plain((mpoe_base if is_language_model else base).get_config())
