"""Plots of a sweep: one result field against another, repetitions as bands.

`config.plots` is a tuple of dicts:

    {"x": "total", "y": "metric", "lines": "form", "panels": "task"}

`x` and `y` are axes or fields of the results (`metrics.f1` reaches into the metrics). Points that
agree in every axis but those that repeat (the seed, if `config.repeats` does not say otherwise) are
one point of the plot: their mean, with a band of one sample standard deviation in y. Optional:
`lines` and `panels` (axes; one line and one panel for each value), `log_x`, `log_y`, `name` (of the
PNG file), `title`, `x_label`, `y_label`.
"""

import dataclasses
import itertools
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence

from absl import logging

from experiments import sweep_files
from mpojax import files

_LABELS = {
    "total": "parameters of the model",
    "trained": "trained parameters",
    "bond": "bond dimension (cap)",
    "relative_error": "relative weight error",
}
_COUNTS = ("total", "trained")
_PANELS_PER_ROW = 3
_MARKERS = "osD^v<>P*X"


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure; see the module for the fields."""

    x: str
    y: str
    lines: str = ""
    panels: str = ""
    log_x: bool = False
    log_y: bool = False
    name: str = ""
    title: str = ""
    x_label: str = ""
    y_label: str = ""

    @property
    def file_name(self) -> str:
        """Name of the PNG file."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name or f"{self.y}_vs_{self.x}") + ".png"


def read_plots(
    entries: Sequence[Mapping], cells: Sequence, repeats: Sequence[str] = sweep_files.REPEATS
) -> list[Plot]:
    """`config.plots`, checked.

    Raises:
      ValueError: unknown or missing fields, lines or panels that are no axes, two plots of one
        name.
      ImportError: there are plots to draw and matplotlib is not installed.
    """
    known = [field.name for field in dataclasses.fields(Plot)]
    axes = list(cells[0].values)
    plots: list[Plot] = []
    for entry in entries:
        entry = entry.to_dict() if hasattr(entry, "to_dict") else dict(entry)
        if unknown := sorted(set(entry) - set(known)):
            raise ValueError(f"config.plots has unknown fields {unknown}; known are {known}.")
        if not entry.get("x") or not entry.get("y"):
            raise ValueError(f"config.plots has {entry}; every plot needs x and y.")
        plot = Plot(**entry)
        for role in ("lines", "panels"):
            axis = getattr(plot, role)
            if axis and (axis not in axes or axis in repeats):
                raise ValueError(
                    f"config.plots: {role}={axis!r} must be one of the axes "
                    f"{[a for a in axes if a not in repeats]}."
                )
        if plot.file_name in (other.file_name for other in plots):
            raise ValueError(f"config.plots: two plots are called {plot.file_name}; set name=.")
        plots.append(plot)
    if plots:
        figure_class()
    return plots


def draw_all(
    folder: pathlib.Path,
    rows: Sequence[Mapping],
    axes: Sequence[str],
    plots: Sequence[Plot],
    repeats: Sequence[str] = sweep_files.REPEATS,
) -> None:
    """Draws every plot for which there are results into `<name>.png`.

    A plot of a field that the results lack is left out with an error in the log: the cells are
    worth more than the plot.
    """
    done = sweep_files.averaged(rows, axes, repeats[1:])
    axes = [axis for axis in axes if axis not in repeats]
    for plot in plots if done else ():
        missing = [key for key in (plot.x, plot.y) if not any(_number(r.get(key)) for r in done)]
        if missing:
            numeric = sorted({k for row in done for k, v in row.items() if _number(v)})
            logging.error(
                "plot %s: no numbers called %s in the results; they have %s",
                plot.file_name,
                " or ".join(missing),
                ", ".join(numeric),
            )
            continue
        figure = draw(plot, done, axes)
        files.write_atomic(
            folder / plot.file_name, lambda path, figure=figure: figure.savefig(path, dpi=120)
        )


def draw(plot: Plot, rows: Sequence[Mapping], axes: Sequence[str]):
    """The figure of one plot from the rows of finished cells; `axes` tell points apart."""
    panels = _values(rows, plot.panels)
    columns = min(len(panels), _PANELS_PER_ROW)
    height = math.ceil(len(panels) / columns)
    figure = figure_class()(figsize=(1.5 + 5.0 * columns, 4.5 * height), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False).flat
    lines = _values(rows, plot.lines)
    for panel_axes, panel in itertools.zip_longest(grid, panels):
        if panel is None and plot.panels:  # the rest of the last row
            panel_axes.remove()
            continue
        inside = [row for row in rows if not plot.panels or row[plot.panels] == panel]
        for index, line in enumerate(lines):
            chosen = [row for row in inside if not plot.lines or row[plot.lines] == line]
            _draw_line(panel_axes, points(chosen, plot, axes), index, str(line))
        _dress(panel_axes, plot, inside)
        if plot.panels:
            panel_axes.set_title(f"{plot.panels}: {panel}")
    if plot.title:
        figure.suptitle(plot.title)
    return figure


def _dress(axes, plot: Plot, rows: Sequence[Mapping]) -> None:
    """Labels, scales and legend of one panel."""
    names = sorted({row["metric_name"] for row in rows if row.get("metric_name")})
    label = ", ".join(names) if plot.y == "metric" and names else plot.y.replace("_", " ")
    axes.set_ylabel(plot.y_label or _LABELS.get(plot.y, label))
    axes.set_xlabel(plot.x_label or _LABELS.get(plot.x, plot.x.replace("_", " ")))
    axes.grid(alpha=0.3)
    if plot.log_x:
        axes.set_xscale("log")
        ticks = sorted({row[plot.x] for row in rows if _number(row.get(plot.x))})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    elif plot.x in _COUNTS:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    if plot.log_y:
        axes.set_yscale("log")
    if plot.lines and axes.get_legend_handles_labels()[0]:
        axes.legend(title=plot.lines, fontsize="small")


def points(
    rows: Sequence[Mapping], plot: Plot, axes: Sequence[str]
) -> list[tuple[float, float, float | None]]:
    """One point for the cells that agree in every axis, by ascending x.

    Returns:
      (mean x, mean y, sample standard deviation of y or None); cells without both numbers are left
      out.
    """
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row in rows:
        if _number(row.get(plot.x)) and _number(row.get(plot.y)):
            key = tuple(str(row[axis]) for axis in axes)
            groups.setdefault(key, []).append((float(row[plot.x]), float(row[plot.y])))
    made = []
    for group in groups.values():
        xs, ys = zip(*group, strict=True)
        spread = statistics.stdev(ys) if len(ys) > 1 else None
        made.append((statistics.fmean(xs), statistics.fmean(ys), spread))
    return sorted(made, key=lambda point: point[0])


def _draw_line(axes, data, index: int, label: str) -> None:
    if not data:
        return
    x, y, spread = zip(*data, strict=True)
    color, marker = f"C{index % 10}", _MARKERS[index % len(_MARKERS)]
    axes.plot(x, y, color=color, marker=marker, label=label)
    if any(s is None for s in spread):
        return
    if len(x) == 1:  # a band of one point is invisible
        axes.errorbar(x, y, yerr=spread, color=color, capsize=4)
        return
    low = [mean - s for mean, s in zip(y, spread, strict=True)]
    high = [mean + s for mean, s in zip(y, spread, strict=True)]
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _values(rows: Sequence[Mapping], axis: str) -> list:
    return list(dict.fromkeys(row[axis] for row in rows)) if axis else [None]


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def figure_class():
    """`matplotlib.figure.Figure`, which needs no display; raises a helpful ImportError."""
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mpojax[plot]'.") from error
    return figure.Figure
