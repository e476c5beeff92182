"""Common parts of the tables of studies: finished cells, means over seeds, paired differences."""

import collections
import json
import math
import pathlib
import statistics
from collections.abc import Sequence

from absl import flags
from scipy import stats  # comes with jax

from experiments import console

_SWEEP = flags.DEFINE_string("sweep", None, "Workdir of the sweep.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for table and pictures.", required=True)


def from_flags() -> tuple[list[dict], pathlib.Path]:
    """Results of the finished cells below `--sweep`, and the folder `--out`."""
    return find(pathlib.Path(_SWEEP.value).expanduser()), pathlib.Path(_OUT.value).expanduser()


def find(folder: pathlib.Path) -> list[dict]:
    """Results of the finished cells."""
    found = sorted(folder.glob("cells/*/result.json"))
    if not found:
        raise FileNotFoundError(f"no finished cell in {folder}.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def by(results: Sequence[dict], name: str) -> dict[str, list[dict]]:
    """Results by one of their fields."""
    groups = collections.defaultdict(list)
    for result in results:
        groups[result[name]].append(result)
    return dict(groups)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose first column is of words."""
    is_right = [False, *[True] * (len(headers) - 1)]
    return console.markdown_lines(headers, is_right, rows)


def percent(runs: Sequence[dict]) -> list[float]:
    """The metric of each run."""
    return [100 * run["metric"] for run in runs]


def pairs_of(runs: Sequence[dict], others: Sequence[dict]) -> list[float]:
    """Differences of the metric to other runs of the same seed, in percent."""
    known = {run["seed"]: run["metric"] for run in others}
    return [100 * (run["metric"] - known[run["seed"]]) for run in runs if run["seed"] in known]


def spread(values: Sequence[float], seeds: int) -> str:
    """Mean ± sample standard deviation; with their number where that is not `seeds`."""
    return _with_number(values, seeds, "", 1.0)


def difference(values: Sequence[float], seeds: int) -> str:
    """Mean of paired differences ± half of its 95 % interval (Student's t), as in `spread`."""
    number = len(values)
    if number < 2:
        return _with_number(values, seeds, "+", 0.0)
    return _with_number(values, seeds, "+", stats.t.ppf(0.975, number - 1) / math.sqrt(number))


def _with_number(values: Sequence[float], seeds: int, sign: str, times: float) -> str:
    if not values:
        return ""
    text = f"{statistics.mean(values):{sign}.1f}"
    text += "" if len(values) < 2 else f" ± {times * statistics.stdev(values):.1f}"
    return text if len(values) == seeds else f"{text} ({len(values)})"
