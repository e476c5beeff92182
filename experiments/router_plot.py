"""Draws where the routers of experts send tokens, from a run's `router.csv`.

    python -m experiments.router_plot --run=runs/mpoe

Writes `router.png` there: the load of every expert in every layer at the last look (1 = even), and
over the steps the entropy of the routers' probabilities and the load of the busiest expert.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging

from experiments import command_line, plots
from mpojax import files
from mpojax.methods.mpoe import router_statistics

NAME = "router.png"
_MOST_TICKS = 24


def draw(rows: Sequence[dict[str, Any]]):
    """The figure of the rows of `router_statistics.read`.

    Raises:
      ValueError: there are none.
    """
    if not rows:
        raise ValueError(
            "no statistics of routers to draw; train a model with experts and the hook "
            "RouterStatistics"
        )
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    height = 2.0 + 0.25 * len(layers)
    figure = plots.figure_class()(figsize=(15.0, max(4.5, height)), layout="constrained")
    heat, entropy, busiest = figure.subplots(1, 3)
    _draw_loads(figure, heat, rows, layers)
    for index, layer in enumerate(layers):
        inside = [row for row in rows if row["layer"] == layer]
        steps = sorted({row["step"] for row in inside})
        style = {"color": _color(index, len(layers)), "label": layer, "linewidth": 1.2}
        entropy.plot(steps, [_at(inside, step)[0]["entropy"] for step in steps], **style)
        busiest.plot(steps, [max(_even(_at(inside, step))) for step in steps], **style)
    experts = max(row["expert"] for row in rows) + 1
    entropy.axhline(math.log(experts), color="gray", linestyle=":", label="even")
    busiest.axhline(1.0, color="gray", linestyle=":", label="even")
    entropy.set(xlabel="step", ylabel="entropy of the router, nats", ylim=(0.0, None))
    busiest.set(xlabel="step", ylabel="load of the busiest expert / even load", ylim=(0.0, None))
    for axes in (entropy, busiest):
        axes.grid(alpha=0.3)
    busiest.legend(fontsize="x-small", ncols=1 + len(layers) // 16)
    return figure


def _draw_loads(figure, axes, rows: Sequence[dict], layers: Sequence[str]) -> None:
    last = max(row["step"] for row in rows)
    loads = [_even(_at([r for r in rows if r["layer"] == layer], last)) for layer in layers]
    width = max(map(len, loads))
    # Layers may differ in their number of experts.
    table = [[*load, *[math.nan] * (width - len(load))] for load in loads]
    image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0.0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="load / even load")
    axes.set_yticks(range(len(layers)), layers, fontsize="x-small")
    every = -(-width // _MOST_TICKS)
    axes.set_xticks(range(0, width, every))
    axes.set(xlabel="expert", title=f"step {last:,}")


def _at(rows: Sequence[dict], step: int) -> list[dict]:
    return sorted((row for row in rows if row["step"] == step), key=lambda row: row["expert"])


def _even(rows: Sequence[dict]) -> list[float]:
    """Loads of a layer's experts, as multiples of an even load."""
    return [len(rows) * row["load"] for row in rows]


def _color(index: int, count: int) -> tuple[float, float, float]:
    """From blue at the first layer to orange at the last."""
    share = index / max(1, count - 1)
    return 0.1 + 0.85 * share, 0.3 + 0.2 * share, 0.8 - 0.7 * share


def save(folder: pathlib.Path) -> pathlib.Path:
    """Draws the picture of a run into its folder; returns its path."""
    figure = draw(router_statistics.read(folder))
    files.write_atomic(folder / NAME, lambda path: figure.savefig(path, dpi=120))
    return folder / NAME


def save_if_possible(folder: pathlib.Path) -> None:
    """The same at the end of a run, which counts without a picture: the log says if there is none.

    Process 0 draws.
    """
    if jax.process_index() != 0:
        return
    try:
        save(folder)
    except ImportError as error:
        logging.warning("no %s: %s", NAME, error)


def main(argv):
    del argv
    save(pathlib.Path(flags.FLAGS.run).expanduser())


if __name__ == "__main__":
    # Here, not above: runs that draw their routers have flags of their own.
    flags.DEFINE_string("run", None, "Folder of the run.", required=True)
    command_line.run(main)
