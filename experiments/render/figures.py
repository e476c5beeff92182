"""Figures from a data frame of means: lines against a number, dots side by side, heat maps.

A sweep's `config.plots` is a tuple of dicts with the fields of `Plot`:

    {"x": "bond", "y": "metric", "lines": "form", "panels": "task", "log_x": True}
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from experiments.render import methods
from mpojax import checks, figures
from mpojax.checks import field, flag, mapping, one_of, text

if TYPE_CHECKING:
    import pandas as pd

_PANELS_PER_ROW = 2
# Log-scaled series at the same place are this factor apart, so that no bar hides another.
_DODGE = 1.025


@checks.settings()
class Plot:
    """One figure of means, with bars of one standard deviation.

    Attributes:
      x, y: axes or columns of the results (`metrics.f1` reaches into the metrics).
      lines, panels: axes; one line and one panel for each value. Rows without x, such as those of a
        dense model next to bond dimensions, are horizontal lines.
      kind: "lines", or "dots": a row for each value of `lines`, y across.
      log_x, log_y: whether the axes are logarithmic.
      size: column whose mean follows the names of dots, such as "total".
      reference: column whose mean is a line across, such as that of a teacher.
      name: of the files; by default from x and y.
      title, x_label, y_label: instead of those that follow from the columns.
      names: {value of lines: name} where the usual one does not fit.
    """

    x: str = field(text(), "")
    y: str = field(text(), "")
    lines: str = field(text(), "")
    panels: str = field(text(), "")
    kind: str = field(one_of("lines", "dots"), "lines")
    log_x: bool = field(flag(), False)
    log_y: bool = field(flag(), False)
    size: str = field(text(), "")
    reference: str = field(text(), "")
    name: str = field(text(), "")
    title: str = field(text(), "")
    x_label: str = field(text(), "")
    y_label: str = field(text(), "")
    names: Mapping[str, str] = dataclasses.field(
        default_factory=dict, metadata={"allowed": mapping(text())}
    )

    @property
    def stem(self) -> str:
        """Name of the files, without suffix."""
        name = self.name or (f"{self.y}_vs_{self.x}" if self.x else self.y)
        return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def read(entries: Sequence[Mapping], axes: Sequence[str], repeats: Sequence[str]) -> list[Plot]:
    """`config.plots`, checked.

    Raises:
      ValueError: unknown or missing fields, lines or panels that are no axes, two plots of one
        name.
      ImportError: there are plots to draw and matplotlib is not installed.
    """
    plots: list[Plot] = []
    for entry in entries:
        entry = entry.to_dict() if hasattr(entry, "to_dict") else dict(entry)
        plot = checks.from_mapping(Plot, entry, "config.plots")
        if not plot.y or not (plot.x or plot.kind == "dots"):
            raise ValueError(f"config.plots has {entry}; every plot needs x and y.")
        others = one_of("", *(axis for axis in axes if axis not in repeats))
        checks.check(
            {"lines": plot.lines, "panels": plot.panels},
            {"lines": others, "panels": others},
            "config.plots",
        )
        if plot.stem in (other.stem for other in plots):
            raise ValueError(f"config.plots: two plots are called {plot.stem}; set name=.")
        plots.append(plot)
    if plots:
        figures.require()
    return plots


def draw_all(folder: pathlib.Path, means: "pd.DataFrame", plots: Sequence[Plot]) -> None:
    """Draws every plot for which there are results as PNG and PDF.

    A plot of a column that the results lack is left out with an error in the log: the results are
    worth more than the plot.
    """
    numeric = set(means.select_dtypes("number"))
    for plot in plots if len(means) else ():
        if missing := [name for name in (plot.x, plot.y) if name and name not in numeric]:
            known = sorted(name for name in numeric if name != "n" and not name.endswith("_std"))
            logging.error(
                "plot %s: no numbers called %s in the results; they have %s",
                *(plot.stem, " or ".join(missing), ", ".join(known)),
            )
        else:
            figures.save_both(draw(plot, means), folder / plot.stem)


def draw(plot: Plot, means: "pd.DataFrame") -> Any:
    """The figure of one plot from the rows of `frames.means`."""
    panels = list(means[plot.panels].unique()) if plot.panels else [None]
    columns = min(len(panels), _PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    draw_panel, height = (_lines, 3.0) if plot.kind == "lines" else (_dots, 0.0)
    if plot.kind == "dots":
        height = 0.9 + 0.3 * means[plot.lines].nunique()
    figure, axes = figures.new(
        rows,
        columns,
        height=max(height, 1.8),
        width=figures.WIDTH if columns > 1 or plot.kind == "dots" else 5.6,
        sharex=plot.kind == "lines",
        sharey=plot.kind == "dots",
    )
    for panel, name in zip(axes, panels, strict=False):
        inside = means if name is None else means[means[plot.panels] == name]
        draw_panel(panel, plot, inside)
        if plot.reference in inside:
            look, (_, factor) = methods.look(plot.reference), _labels(panel, plot, inside)
            across = panel.axvline if plot.kind == "dots" else panel.axhline
            style = {"color": look.style["color"], "linestyle": ":", "label": look.label}
            across(inside[plot.reference].mean() * factor, **style)
        if name is not None:
            panel.set_title(methods.panel(plot.panels, name))
    for panel in axes[len(panels) :]:
        panel.remove()
    if plot.title:
        figure.suptitle(plot.title, fontsize=10.5)
    note = _note(plot, means)
    if (plot.lines and plot.kind == "lines") or plot.reference in means:
        figures.legend(figure, note)
    elif note:
        figure.supxlabel(note, fontsize=8.5)
    return figure


def _note(plot: Plot, means: "pd.DataFrame") -> str:
    """The kind of the error bars, where there are any."""
    has_bar = np.isfinite(_errors(means, plot.y))
    if not has_bar.any():
        return ""
    counts = sorted(means["n"][has_bar].astype(int).unique())
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    single = "" if has_bar.all() else "; without a bar: one run"
    return f"Means; bars: one standard deviation over {number} runs{single}"


def _labels(panel: Any, plot: Plot, means: "pd.DataFrame") -> tuple[str, float]:
    """Sets the names of the axes; returns that of y, and its factor."""
    metric = means["metric_name"].iloc[0] if "metric_name" in means else ""
    y_label, factor = methods.axis(plot.y, metric)
    x_label = plot.x_label or (methods.axis(plot.x)[0] if plot.x else "")
    names = (x_label, plot.y_label or y_label)
    if plot.kind == "dots":
        names = (names[1], "")
    panel.set(xlabel=names[0], ylabel=names[1])
    return y_label, factor


def _lines(panel: Any, plot: Plot, means: "pd.DataFrame") -> None:
    _, factor = _labels(panel, plot, means)
    groups = _groups(means, plot.lines)
    shared = means.groupby(plot.x)[plot.lines].nunique().max() if plot.lines else 1
    for index, (name, rows) in enumerate(groups):
        look = methods.look(name, index, plot.names)
        y, error = rows[plot.y] * factor, _errors(rows, plot.y) * factor
        if rows[plot.x].isna().all():
            panel.axhline(y.iloc[0], color=look.style["color"], linestyle=":", label=look.label)
            if np.isfinite(error[0]):  # at the right edge
                place = {"transform": panel.get_yaxis_transform(), "capsize": 2.5}
                bar = {"color": look.style["color"], "elinewidth": 1.0, "fmt": "none"}
                panel.errorbar([0.98 - 0.02 * index], y.iloc[:1], error[:1], **place, **bar)
            continue
        order = rows[plot.x].argsort().to_numpy()
        x = rows[plot.x].to_numpy(float)
        if shared > 1 and plot.log_x and np.isfinite(error).any():
            # Factors around 1, so that the middle of the lines stays at its place.
            x = x * _DODGE ** (index - (len(groups) - 1) / 2)
        bars = np.where(np.isfinite(error), error, 0.0)[order]
        options = {"label": look.label, "linestyle": look.line, "capsize": 2.5, **look.style}
        panel.errorbar(x[order], y.to_numpy()[order], bars, elinewidth=1.0, **options)
    if plot.log_y:
        panel.set_yscale("log")
        figures.plain_log_ticks(panel.yaxis)
    if plot.log_x:
        panel.set_xscale("log")
        figures.log_ticks(panel.xaxis, means[plot.x].dropna())
    elif means[plot.x].max() >= 1e4:
        panel.xaxis.set_major_formatter(lambda value, _: figures.thousands(value))
        panel.locator_params(axis="x", nbins=6)


def _dots(panel: Any, plot: Plot, means: "pd.DataFrame") -> None:
    _, factor = _labels(panel, plot, means)
    labels = []
    for index, (name, rows) in enumerate(_groups(means, plot.lines)):
        look = methods.look(name, index, plot.names)
        labels.append(look.label)
        if plot.size:
            labels[-1] += f" ({figures.thousands(rows[plot.size].mean())})"
        error = _errors(rows, plot.y)[0] * factor
        bar = error if np.isfinite(error) else None
        panel.errorbar(rows[plot.y].iloc[0] * factor, index, xerr=bar, capsize=3, **look.style)
    panel.set_yticks(range(len(labels)), labels)
    # From the top downwards, in the order of the rows.
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)


def _groups(means: "pd.DataFrame", column: str) -> list[tuple[Any, "pd.DataFrame"]]:
    if not column:
        return [("", means)]
    return list(means.groupby(column, sort=False))


def _errors(rows: "pd.DataFrame", column: str) -> np.ndarray:
    if f"{column}_std" in rows:
        return rows[f"{column}_std"].to_numpy(float)
    return np.full(len(rows), np.nan)


def heat(
    panel: Any,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    largest: float | None = 1.0,
    texts: Sequence[Sequence[str]] = (),
) -> None:
    """A heat map from zero with its colour bar; cells that are NaN are blank.

    Args:
      panel: axes to draw on.
      values: row by row.
      rows, columns: names.
      label: of the colour bar.
      largest: value of the brightest colour; None: the largest there is.
      texts: of the cells.
    """
    image = panel.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=largest)
    panel.figure.colorbar(image, ax=panel, label=label, pad=0.02)
    # At most 24 names fit side by side.
    interval = -(-len(columns) // 24)
    panel.set_xticks(range(0, len(columns), interval), columns[::interval], fontsize=8.5)
    panel.set_yticks(range(len(rows)), rows, fontsize=8.5)
    panel.grid(visible=False)
    brightest = np.nanmax(values) if largest is None else largest
    for y, line in enumerate(texts):
        for x, cell in enumerate(line):
            # viridis is dark up to its middle.
            color = "white" if values[y][x] < 0.5 * brightest else "black"
            panel.text(x, y, cell, ha="center", va="center", color=color, fontsize=7.5)


def save_if_possible(path: pathlib.Path, draw: Callable[[], Any]) -> None:
    """Draws a figure at the end of a run, which counts without: the log says if there is none."""
    try:
        figures.save_both(draw(), path)
    except ImportError as error:
        logging.warning("no %s: %s", path.name, error)
