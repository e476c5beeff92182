"""Tables of a sweep: one row for each cell, and means over seeds."""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from absl import logging

from experiments import console, study_files
from mpojax import files

# Axes that repeat a measurement, where a sweep's config does not name others in `repeats`: means
# and standard deviations are taken over the first, after means over the rest.
REPEATS = ("seed",)
# Columns of `summary.md`, where there are such; the CSV files have all.
_SHOWN = ("metric_name", "n", "metric", "total", "trained", "relative_error")


def read_result(folder: pathlib.Path) -> dict | None:
    """The `result.json` of a cell; None where there is none (or none that can be read)."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        logging.warning("%s is not valid JSON (%s); it is left out", path, error)
        return None
    return content if isinstance(content, dict) else None


def rows(cells: Sequence, folder: pathlib.Path) -> list[dict]:
    """One row for each cell: name, state ("done", "failed", "open"), axes, scalar result fields.

    Fields of the table `metrics` are called `metrics.<name>`. An axis of the same name as a field
    keeps its own value.
    """
    made = []
    for cell in cells:
        result = read_result(folder / cell.name)
        failed = (folder / cell.name / "failed.json").is_file()
        state = "done" if result is not None else "failed" if failed else "open"
        made.append({"cell": cell.name, "state": state} | {**scalars(result or {}), **cell.values})
    columns = list(dict.fromkeys(key for row in made for key in row))
    first = ["cell", "state", *cells[0].values]
    columns = first + [column for column in columns if column not in first]
    return [{column: row.get(column) for column in columns} for row in made]


def scalars(result: Mapping) -> dict:
    """The scalar fields of a result, and those of its table `metrics`."""
    flat = {key: value for key, value in result.items() if _is_scalar(value)}
    metrics = result.get("metrics")
    if isinstance(metrics, Mapping):
        flat |= {f"metrics.{key}": v for key, v in metrics.items() if _is_scalar(v)}
    return flat


def averaged(rows: Sequence[Mapping], axes: Sequence[str], over: Sequence[str]) -> list[dict]:
    """Finished cells that agree in all other axes as one row: the means of their numbers.

    Args:
      rows: of `rows`.
      axes: names of all axes.
      over: those that are averaged; with none the finished cells come back as they are.
    """
    done = [dict(row) for row in rows if row["state"] == "done"]
    if not over:
        return done
    made = []
    for group in _groups(done, [axis for axis in axes if axis not in over]):
        entry = dict(group[0])
        for field in entry:
            values = [row[field] for row in group if _is_number(row[field])]
            if field not in axes and len(values) == len(group):
                entry[field] = statistics.fmean(values)
        made.append(entry)
    return made


def summary(
    rows: Sequence[Mapping], axes: Sequence[str], repeats: Sequence[str] = REPEATS
) -> list[dict]:
    """Mean, sample standard deviation and number of finished repetitions.

    Args:
      rows: of `rows`.
      axes: names of all axes.
      repeats: those that repeat a measurement. Deviations are over the first of them, of means over
        the rest.

    Returns:
      One row for each combination of the other axes that has a finished cell: axes, `n`,
      `metric_name`, and for every numeric field its mean and `<field>_std` (None for one
      repetition).
    """
    others = [axis for axis in axes if axis not in repeats]
    made = []
    for group in _groups(averaged(rows, axes, repeats[1:]), others):
        entry = {axis: group[0][axis] for axis in others} | {"n": len(group)}
        if "metric_name" in group[0]:
            entry["metric_name"] = group[0]["metric_name"]
        for field in group[0]:
            values = [row[field] for row in group if _is_number(row[field])]
            if field in (*axes, *repeats) or len(values) < len(group):
                continue
            entry[field] = statistics.fmean(values)
            entry[f"{field}_std"] = statistics.stdev(values) if len(values) > 1 else None
        made.append(entry)
    return made


def _groups(rows: Sequence[Mapping], axes: Sequence[str]) -> list[list[Mapping]]:
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[axis]) for axis in axes), []).append(row)
    return list(groups.values())


def write_tables(
    folder: pathlib.Path,
    rows: Sequence[Mapping],
    axes: Sequence[str],
    repeats: Sequence[str] = REPEATS,
) -> None:
    """Writes `results.csv`, `summary.csv` and `summary.md`."""
    study_files.write_csv(folder / "results.csv", rows)
    means = summary(rows, axes, repeats)
    study_files.write_csv(folder / "summary.csv", means)
    files.write_atomic(folder / "summary.md", markdown(rows, means, axes, repeats))


def markdown(
    rows: Sequence[Mapping],
    means: Sequence[Mapping],
    axes: Sequence[str],
    repeats: Sequence[str] = REPEATS,
) -> str:
    """The summary as a Markdown page: a table, and what is not finished."""
    done = sum(row["state"] == "done" for row in rows)
    lines = [f"# Sweep: {done} of {len(rows)} cells finished", ""]
    if means:
        keys = [axis for axis in axes if axis not in repeats]
        keys += [key for key in _SHOWN if any(key in entry for entry in means)]
        is_right = [_is_number(means[0].get(key)) for key in keys]
        cells = [[_shown(entry, key) for key in keys] for entry in means]
        lines += console.markdown_lines(keys, is_right, cells)
        first, *rest = (f"{axis}s" for axis in repeats)
        inner = f" (each the mean over its {' and '.join(rest)})" if rest else ""
        lines += ["", f"Means over {first}{inner} ± sample standard deviation."]
    for state in ("failed", "open"):
        names = [row["cell"] for row in rows if row["state"] == state]
        if names:
            lines += ["", f"{state.capitalize()}: " + ", ".join(f"`{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def _shown(entry: Mapping, key: str) -> str:
    value, spread = entry.get(key), entry.get(f"{key}_std")
    if value is None:
        return ""
    if key in ("total", "trained"):
        return f"{value:,.0f}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None and key == "metric" else "")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scalar(value) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
