"""Results as data frames: finished runs, means over repetitions, paired differences."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from scipy import stats  # comes with jax

from mpojax import files, tables

if TYPE_CHECKING:
    import pandas as pd

# Axes that repeat a measurement, where a sweep's config does not name others in `repeats`: means
# and standard deviations are taken over the first, after means over the rest.
REPEATS = ("seed",)
# Columns of a summary, where there are such; the CSV files have all.
_SHOWN = ("metric_name", "n", "metric", "total", "trained", "relative_error")


def of(records: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """The data frame of records.

    Raises:
      ImportError: pandas is not installed.
    """
    return require().DataFrame(list(records))


def read(path: pathlib.Path) -> "pd.DataFrame":
    """The data frame that `write` wrote."""
    return require().read_csv(path, dtype={"variant": str}, keep_default_na=True)


def require() -> Any:
    """The module pandas.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables need pandas: pip install -e '.[plot]'.") from error
    return pandas


def write(path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a frame as comma-separated values, cells without a value empty."""
    files.write_atomic(path, frame.apply(_integers).to_csv(index=False, lineterminator="\n"))


def _integers(column: "pd.Series") -> "pd.Series":
    """The column with integers in place of 16.0, which missing values make of 16."""
    has_gaps = column.dtype == float and column.isna().any()
    return column.astype("Int64") if has_gaps and not (column.dropna() % 1).any() else column


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The `result.json` of a run; None where there is none (or none that can be read)."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        logging.warning("%s is not valid JSON (%s); it is left out", path, error)
        return None
    return content if isinstance(content, dict) else None


def scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """The scalar fields of a result, and those of its table `metrics` as `metrics.<name>`."""
    metrics = result.get("metrics")
    nested = metrics.items() if isinstance(metrics, Mapping) else ()
    flat = {**result, **{f"metrics.{name}": value for name, value in nested}}
    return {k: v for k, v in flat.items() if v is None or isinstance(v, bool | int | float | str)}


def means(
    frame: "pd.DataFrame", axes: Sequence[str], repeats: Sequence[str] = REPEATS
) -> "pd.DataFrame":
    """Mean, sample standard deviation and number of repetitions.

    Args:
      frame: a row for each finished run.
      axes: columns that tell runs apart, those that repeat a measurement among them.
      repeats: these. Deviations are over the first, of means over the rest.

    Returns:
      A row for each combination of the other axes: axes, `n`, `metric_name`, and for every numeric
      column its mean and `<column>_std` (NaN for one repetition).
    """
    others = [axis for axis in axes if axis not in repeats]
    if len(repeats) > 1:
        inner = [axis for axis in axes if axis not in repeats[1:]]
        # Means over the inner repetitions: one row for each value of the first.
        frame = _groups(frame, inner, axes)[0]
    found, groups, numeric = _groups(frame, others, axes)
    names = [name for name in ("metric_name", *numeric) if name in found]
    found = found[[*others, *names]]
    found.insert(len(others), "n", groups.size().to_numpy())
    for name in numeric:
        found.insert(found.columns.get_loc(name) + 1, f"{name}_std", groups[name].std().to_numpy())
    return found


def _groups(frame: "pd.DataFrame", by: Sequence[str], axes: Sequence[str]) -> tuple:
    """Groups of rows that agree in columns.

    Returns:
      The first row of each group, with means in numeric columns (none where a row has no number);
      the groups; names of the numeric columns that have a mean.
    """
    # As texts: None and NaN are values like others.
    keys = [np.array([str(v) for v in frame[name]]) for name in by] or [np.zeros(len(frame))]
    groups = frame.groupby(keys, sort=False)
    first = groups.head(1).reset_index(drop=True)
    means = {
        # `count` leaves NaN out, `size` does not: a mean of a part would pass for that of all.
        name: groups[name].mean().where(groups[name].count() == groups.size()).to_numpy()
        for name in frame.select_dtypes("number")
        if name not in axes
    }
    means = {name: values for name, values in means.items() if not np.isnan(values).all()}
    return first.assign(**means), groups, list(means)


def summary(means: "pd.DataFrame", axes: Sequence[str], repeats: Sequence[str] = REPEATS) -> str:
    """The means as a Markdown table, with a line about what deviations are of."""
    left = [axis for axis in axes if axis not in repeats]
    names = left + [name for name in _SHOWN if name in means]
    records = means.apply(_integers).to_dict("records")
    rows = [[_cell(row, name) for name in names] for row in records]
    first, *rest = (f"{axis}s" for axis in repeats)
    inner = f" (each the mean over its {' and '.join(rest)})" if rest else ""
    table = tables.markdown(names, rows, left=len(left) + ("metric_name" in means))
    return f"{table}\n\nMeans over {first}{inner} ± sample standard deviation."


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, spread = row.get(name), row.get(f"{name}_std")
    if value is None or str(value) in ("nan", "<NA>"):
        return ""
    if name in ("total", "trained"):
        return f"{value:,.0f}"
    if not isinstance(value, float):
        return str(value)
    has_spread = name == "metric" and str(spread) not in ("None", "nan", "<NA>")
    return f"{value:.4f}" + (f" ± {spread:.4f}" if has_spread else "")


def spread(values: Sequence[float], digits: int = 1, expected: int = 0, sign: str = "") -> str:
    """Mean ± sample standard deviation; with their number where that is not `expected`.

    >>> spread([0.5, 0.75], digits=2)
    '0.62 ± 0.18'
    """
    values = np.asarray(values, float)
    stddev = values.std(ddof=1) if len(values) > 1 else None
    return _with_error(values, stddev, digits, expected, sign)


def difference(values: Sequence[float], digits: int = 1, expected: int = 0) -> str:
    """Mean of paired differences ± half of its 95 % interval (Student's t), as in `spread`.

    >>> difference([1.0, 2.0, 3.0])
    '+2.0 ± 2.5'
    """
    values = np.asarray(values, float)
    number, half = len(values), None
    if number > 1:
        # t_{0.975, n - 1} s / sqrt(n)
        half = stats.t.ppf(0.975, number - 1) * values.std(ddof=1) / math.sqrt(number)
    return _with_error(values, half, digits, expected, "+")


def _with_error(values: np.ndarray, error: float | None, digits: int, expected: int, sign: str):
    if not len(values):
        return ""
    text = f"{values.mean():{sign},.{digits}f}"
    text += "" if error is None else f" ± {error:,.{digits}f}"
    return text if expected in (0, len(values)) else f"{text} ({len(values)})"


def paired(
    frame: "pd.DataFrame", others: "pd.DataFrame", value: str, on: str = "seed"
) -> list[float]:
    """Differences of a column to the rows of other runs that have the same seed."""
    # An inner join: seeds that only one side has drop out.
    both = frame[[on, value]].merge(others[[on, value]], on=on, suffixes=("", "_other"))
    return (both[value] - both[f"{value}_other"]).tolist()
