"""Groups that a search kept for each layer and module, and its history: tables and a heat map."""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from experiments import plots
from mpojax import files

TABLE, HISTORY, PICTURE = "kept.csv", "search.csv", "kept.png"


def write(
    folder: pathlib.Path,
    kept: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    title: str = "",
) -> None:
    """Writes `kept.csv`, `search.csv` and, with matplotlib there, `kept.png` into a run's folder.

    Args:
      folder: of the run.
      kept: rows of `pet_masks.report`.
      history: of `pet_search.Search`.
      title: of the picture.
    """
    for name, rows in ((TABLE, kept), (HISTORY, history)):
        files.write_atomic(folder / name, _csv(rows))
    try:
        figure = draw(kept, title)
    except ImportError as error:
        logging.warning("no %s: %s", PICTURE, error)
        return
    files.write_atomic(folder / PICTURE, lambda path: figure.savefig(path, dpi=120))


def draw(rows: Sequence[Mapping[str, Any]], title: str = ""):
    """The heat map: kept fraction of the super-set by layer (up) and module (across).

    Cells give the number of parameters kept; modules that the super-set lacks are blank.
    """
    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    modules = list(dict.fromkeys(row["module"] for row in rows))
    shares = [[math.nan] * len(modules) for _ in layers]
    size = (2.5 + 0.75 * len(modules), 2.5 + 0.45 * len(layers))
    figure = plots.figure_class()(figsize=size, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        y, x = layers.index(str(row["layer"])), modules.index(row["module"])
        shares[y][x] = row["kept"] / row["total"] if row["total"] else math.nan
        dark = shares[y][x] < 0.5
        color = "white" if dark else "black"
        axes.text(x, y, f"{row['kept']:,}", ha="center", va="center", color=color, fontsize=7)
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="fraction kept")
    axes.set_xticks(range(len(modules)), modules, rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(layers)), layers)
    axes.set(ylabel="layer", title=title)
    return figure


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
