"""Kept results of studies: what is read of their runs, their tables and figures.

`studies.toml` says of each study what this is.
"""

import itertools
import json
import pathlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.render import figures as render
from experiments.render import frames, runs
from mpojax import checks, figures, files, tables
from mpojax.checks import anything, field, integer, mapping, number, one_of, sequence, text
from mpojax.training import metrics, update_statistics

if TYPE_CHECKING:
    import pandas as pd

_NAMES = sequence(text())
_NOTE = (
    "Means over seeds ± sample standard deviations; differences are paired by seed, ± half of the "
    "95 % interval (Student's t). Fewer seeds than of others are in brackets."
)


@checks.settings()
class Column:
    """One column of a study's table.

    Attributes:
      kind: "value", the mean as `show` says; "mean" ± standard deviation; "against", difference to
        another variant on the same task, paired by seed; "slowdown", steps per second of another
        variant over its own; "moved", largest difference to the metric; "count" of runs.
      of: column of the results.
      variant: the other one; `{number}` is what follows the last underscore of its own name.
      scale: factor.
      digits: after the point.
      show: format of a value.
    """

    kind: str = field(one_of("value", "mean", "against", "slowdown", "moved", "count"), "value")
    of: str = field(text(), "")
    variant: str = field(text(), "")
    scale: float = field(number(), 1.0)
    digits: int = field(integer(0), 1)
    show: str = field(text(), "{:,.0f}")

    def cell(self, group: "pd.DataFrame", results: "pd.DataFrame") -> str:
        """The cell of a row, from its runs and those of all rows."""
        if self.kind == "count":
            return str(len(group))
        expected = results.groupby("variant")["seed"].nunique().max()
        values = self.scale * group[self.of].dropna()
        if not len(values):
            return ""
        if self.kind == "mean":
            return frames.spread(values, self.digits, expected)
        if self.kind == "moved":
            moved = (self.scale * group["metric"] - values).abs().max()
            return f"{moved:.2g}"
        if self.kind == "value":
            return self.show.format(values.mean())
        own = group["variant"].iloc[0]
        name = self.variant.format(number=own.rpartition("_")[2])
        others = results[results["variant"] == name]
        if "task" in group:
            # A variant has runs on all tasks; compared are those on the group's own.
            others = others[others["task"] == group["task"].iloc[0]]
        if self.kind == "slowdown":
            return f"{self.scale * others[self.of].max() / values.max():.1f}" if len(others) else ""
        pairs = [self.scale * pair for pair in frames.paired(group, others, self.of)]
        return "" if name == own else frames.difference(pairs, self.digits, expected)


@checks.settings()
class Study:
    """One study; its fields are explained on top of `studies.toml`."""

    folders: Sequence[str] = field(_NAMES)
    by: Sequence[str] = field(_NAMES)
    fields: Sequence[str] = field(_NAMES)
    columns: Mapping[str, Mapping] = field(mapping(mapping(anything())))
    plots: Sequence[Mapping] = field(sequence(mapping(anything())))
    order: Sequence[str] = field(_NAMES, ())
    places: Mapping[str, str] | None = field(mapping(text()), None)
    curves: Mapping[str, str] | None = field(mapping(text()), None)
    across: Mapping[str, Sequence[str]] | None = field(mapping(_NAMES), None)
    curve_plots: Sequence[Mapping] = field(sequence(mapping(anything())), ())
    note: str = field(text(), "")


def load() -> dict[str, Study]:
    """All studies by name."""
    content = pathlib.Path(__file__).with_name("studies.toml").read_text(encoding="utf-8")
    return {
        name: checks.from_mapping(Study, values, f"studies.toml, {name}")
        for name, values in tomllib.loads(content).items()
    }


def collect(study: Study, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes what a study needs of its finished runs: `results.csv`, `curves.csv`, `kept.csv`.

    Raises:
      FileNotFoundError: there are none.
    """
    found = [path for name in study.folders for path in (folder / name).glob("cells/*/result.json")]
    if not found:
        raise FileNotFoundError(f"no finished cell in {folder}.")
    places = {name: name for name in study.fields} | (study.places or {})
    rows, curves, kept = [], [], []
    for path in sorted(found):
        leaves = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
        config = path.with_name("config.json")
        if config.is_file():
            leaves |= _leaves({"config": json.loads(config.read_text(encoding="utf-8"))})
        metric = leaves.get("metric_name")
        row = {name: leaves.get(place.format(metric_name=metric)) for name, place in places.items()}
        rows.append(row)
        curves += [row | point for point in _points(study.curves or {}, path.parent, leaves)]
        kept += [row | entry for entry in leaves.get("search.kept") or ()]
    for name, records in (("results", rows), ("curves", curves), ("kept", kept)):
        if records:
            frames.write(out / f"{name}.csv", frames.of(records))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _points(
    curves: Mapping[str, str], folder: pathlib.Path, leaves: Mapping[str, Any]
) -> Iterator[dict]:
    """Points of the logged metrics by tokens, and updates of auxiliary cores by layer."""
    lines = metrics.read(folder / "metrics.jsonl") if curves else []
    for (column, metric), line in itertools.product(curves.items(), lines):
        if metric in line:
            # leaves["tokens"] is of the whole run: every step reads as many.
            tokens = line["step"] * leaves["tokens"] / leaves["steps"]
            yield {"curve": column, "x": tokens, column: line[metric]}
    updates = update_statistics.read(folder) if "update" in curves else {}
    names = sorted(n for n in updates if n.startswith("layer_") and n.endswith("/auxiliary"))
    for layer, name in enumerate(names):
        yield {"curve": "update", "x": layer, "update": updates[name][-1, 0]}


def report(study: Study, out: pathlib.Path) -> str:
    """Draws and tabulates what `collect` wrote; returns the table.

    A study whose runs are gone has the means alone, in `summary.csv`: they are plotted.

    Raises:
      FileNotFoundError: there is neither.
    """
    axes, path = (*study.by, "seed"), out / "results.csv"
    if path.is_file():
        results = _ordered(study, frames.read(path))
        files.write_atomic(out / "summary.md", summary(study, results))
        frames.write(out / "summary.csv", frames.means(results, axes))
    elif not (out / "summary.csv").is_file():
        raise FileNotFoundError(f"{out} has neither results.csv nor summary.csv.")
    means = frames.read(out / "summary.csv")
    plots = render.read(study.plots, axes, frames.REPEATS)
    for column, names in (study.across or {}).items():
        # Rows without x become horizontal lines, see `figures.Plot`.
        means.loc[means[column].isin(names), plots[0].x] = float("nan")
    render.draw_all(out, means, plots)
    if (out / "curves.csv").is_file():
        curves = frames.means(frames.read(out / "curves.csv"), (*axes, "curve", "x"))
        for plot in render.read(study.curve_plots, axes, frames.REPEATS):
            render.draw_all(out, curves[curves["curve"] == plot.y], [plot])
    if (out / "kept.csv").is_file():
        figures.save_both(_kept(frames.read(out / "kept.csv")), out / "kept")
    return (out / "summary.md").read_text(encoding="utf-8")


def _ordered(study: Study, results: "pd.DataFrame") -> "pd.DataFrame":
    """Rows as the study lists its variants; other columns by number, or as they come."""
    keys = {}
    for name in study.by:
        values = list(dict.fromkeys(results[name]))
        if set(values) & set(study.order):
            # What the order does not name comes last.
            values = sorted(values, key=lambda v: [*study.order, v].index(v))
        elif not isinstance(values[0], str):
            values = sorted(values)
        keys[f"by {name}"] = results[name].map({value: i for i, value in enumerate(values)})
    return results.assign(**keys).sort_values([*keys, "seed"]).drop(columns=list(keys))


def _kept(kept: "pd.DataFrame") -> Any:
    """Mean fraction of the super-set that structured searches kept."""
    kept = kept[kept["method"] == "structured"]
    means = kept.groupby(["module", "layer"], sort=False)[["kept", "total"]].mean().reset_index()
    return runs.draw_kept(means.to_dict("records"), "structured searches", counts=False)


def summary(study: Study, results: "pd.DataFrame") -> str:
    """The table of a study, as Markdown."""
    columns = {
        header: checks.from_mapping(Column, fields, f"column {header!r}")
        for header, fields in study.columns.items()
    }
    rows = []
    for _, group in results.groupby(list(study.by), sort=False):
        names = [str(group[name].iloc[0]) for name in study.by]
        rows.append([*names, *(column.cell(group, results) for column in columns.values())])
    table = tables.markdown([*study.by, *columns], rows, left=len(study.by))
    return "\n\n".join(filter(None, [study.note.strip(), _NOTE, table])) + "\n"
