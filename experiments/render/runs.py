"""Tables and figures of single runs: a squeezed model's trajectory, kept adapters, routers."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.render import figures as render
from experiments.render import methods
from mpojax import figures, files, tables
from mpojax.methods.mpoe import router_statistics


def write_trajectory(folder: pathlib.Path, phases: Sequence[Mapping], metric: str) -> None:
    """Writes `trajectory` of a squeezed model as CSV, Markdown, PNG and PDF.

    Args:
      folder: of the run.
      phases: of the result.
      metric: name of the metric of the phases.
    """
    rows = trajectory_rows(phases, metric)
    files.write_atomic(folder / "trajectory.csv", tables.csv(rows))
    cells = [list(map(str, row.values())) for row in rows]
    table = tables.markdown(list(rows[0]), cells, left=2)
    files.write_atomic(folder / "trajectory.md", table + "\n")
    render.save_if_possible(folder / "trajectory", lambda: draw_trajectory(rows, metric))


def trajectory_rows(phases: Sequence[Mapping], metric: str) -> list[dict[str, Any]]:
    """One row for each phase; a column for each group with its bonds, joined by dashes."""
    rows = []
    for phase in phases:
        cuts = ", ".join(f"{cut['group']} to {cut['rung']}" for cut in phase["cuts"])
        rows.append(
            {
                "phase": phase["phase"],
                "cut": cuts or "none",
                "estimated cost": f"{sum(cut['cost'] for cut in phase['cuts']):.4g}",
                "parameters": phase["parameters"],
                metric: f"{phase['metric']:.4f}",
                "accepted": "yes" if phase["accepted"] else "no",
                "step": phase["step"],
                "compilations": phase["compilations"],
                **{f"bonds {g}": tables.joined(b, "-") for g, b in phase["bonds"].items()},
            }
        )
    return rows


def draw_trajectory(rows: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """Metric against parameters, and the largest bond of every group by phase."""
    held_out = "held-out " if metric.startswith("held-out ") else ""
    name, factor = methods.axis(metric.removeprefix(held_out))
    figure, (by_size, by_phase) = figures.new(1, 2, height=3.9)
    for accepted, marker, label in (("yes", "o-", "accepted"), ("no", "x", "reverted")):
        chosen = [row for row in rows if row["accepted"] == accepted]
        if chosen:
            size = [int(row["parameters"]) / 1e6 for row in chosen]
            values = [factor * float(row[metric]) for row in chosen]
            color = figures.COLORS["red" if accepted == "yes" else "gray"]
            by_size.plot(size, values, marker, color=color, label=f"phase, {label}")
            for row, *place in zip(chosen, size, values, strict=True):
                options = {"textcoords": "offset points", "fontsize": 8.5}
                by_size.annotate(str(row["phase"]), place, (4, 4), **options)
    by_size.invert_xaxis()
    by_size.set(xlabel="parameters of the model (millions), falling", ylabel=f"{held_out}{name}")
    kept = [row for row in rows if row["accepted"] == "yes"]
    phases = [int(row["phase"]) for row in kept]
    groups = [name for name in rows[0] if name.startswith("bonds ")]
    for index, group in enumerate(groups):
        bonds = [_largest_bond(row.get(group, "")) for row in kept]
        label = group.removeprefix("bonds ")
        by_phase.plot(phases, bonds, label=label, **figures.line_style(index))
    by_phase.set(xlabel="phase", ylabel="largest bond dimension", ylim=(0, None), xticks=phases)
    figures.legend(figure, columns=2)
    return figure


def _largest_bond(bonds: str) -> int:
    return max(map(int, filter(None, bonds.split("-"))), default=0)


def write_kept(
    folder: pathlib.Path,
    kept: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    title: str = "",
) -> None:
    """Writes `kept.csv`, `search.csv` and the heat map `kept` of a search into a run's folder.

    Args:
      folder: of the run.
      kept: rows of `pet.masks.report`.
      history: of `pet.search.Search`.
      title: of the figure.
    """
    for name, rows in (("kept.csv", kept), ("search.csv", history)):
        files.write_atomic(folder / name, tables.csv(rows))
    render.save_if_possible(folder / "kept", lambda: draw_kept(kept, title))


def draw_kept(rows: Sequence[Mapping[str, Any]], title: str = "", counts: bool = True) -> Any:
    """The heat map: kept fraction of the super-set by module (down) and layer (across).

    Cells give the number of parameters kept, where `counts`; modules that the super-set lacks are
    blank.
    """
    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    modules = list(dict.fromkeys(row["module"] for row in rows))
    kept = {(row["module"], str(row["layer"])): row for row in rows}
    values, texts = [], []
    for module in modules:
        cells = [kept.get((module, layer)) for layer in layers]
        values.append([c["kept"] / c["total"] if c and c["total"] else math.nan for c in cells])
        texts.append([f"{c['kept']:,}" if c and counts else "" for c in cells])
    height = 1.4 + 0.27 * len(modules)
    figure, (panel,) = figures.new(height=height)
    render.heat(panel, values, modules, layers, "fraction of the super-set kept", texts=texts)
    panel.set(xlabel="layer", title=title)
    return figure


def write_router(folder: pathlib.Path) -> None:
    """Draws `router` of a run with experts into its folder (process 0 only)."""
    if jax.process_index() == 0:
        rows = router_statistics.read(folder)
        render.save_if_possible(folder / "router", lambda: draw_router(rows))


def draw_router(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Loads of all experts at the last look; over the steps, entropy and load of the busiest one.

    Args:
      rows: of `router_statistics.read`.

    Raises:
      ValueError: there are none.
    """
    if not rows:
        raise ValueError(
            "no statistics of routers to draw; train a model with experts and the hook "
            "RouterStatistics"
        )
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    names = [layer.replace("layer_", "layer ").replace("_", " ") for layer in layers]
    looks = {(r["layer"], r["step"]): _loads(rows, r["layer"], r["step"]) for r in rows}
    entropies = {(row["layer"], row["step"]): row["entropy"] for row in rows}
    height = max(3.2, 1.4 + 0.22 * len(layers))
    figure, (heat, entropy, busiest) = figures.new(1, 3, height=height, width=10.0)
    last, width = max(row["step"] for row in rows), max(map(len, looks.values()))
    # Layers may differ in their number of experts.
    loads = [looks[layer, last] for layer in layers]
    values = [[*load, *[math.nan] * (width - len(load))] for load in loads]
    numbers = [str(expert) for expert in range(width)]
    render.heat(heat, values, names, numbers, "load / even load", largest=None)
    heat.set(xlabel="expert", title=f"step {last:,}")
    for index, (layer, name) in enumerate(zip(layers, names, strict=True)):
        steps = sorted(step for known, step in looks if known == layer)
        style = {"color": _color(index, len(layers)), "label": name}
        entropy.plot(steps, [entropies[layer, step] for step in steps], **style)
        busiest.plot(steps, [max(looks[layer, step]) for step in steps], **style)
    even = {"color": "gray", "linestyle": ":", "label": "even loads"}
    # The entropy of a router that chooses all experts alike: ln E.
    entropy.axhline(math.log(width), **even)
    busiest.axhline(1.0, **even)
    entropy.set(xlabel="step", ylabel="entropy of the router, nats", ylim=(0.0, None))
    busiest.set(xlabel="step", ylabel="load of the busiest expert / even load", ylim=(0.0, None))
    figures.legend(figure, columns=6)
    return figure


def _loads(rows: Sequence[Mapping[str, Any]], layer: str, step: int) -> list[float]:
    """Loads of a layer's experts at a step, as multiples of an even load."""
    found = [row for row in rows if (row["layer"], row["step"]) == (layer, step)]
    found.sort(key=lambda row: row["expert"])
    # Loads of a layer sum to 1: an even one is 1 / E.
    return [len(found) * row["load"] for row in found]


def _color(index: int, count: int) -> tuple[float, float, float]:
    """From blue at the first layer to orange at the last."""
    part = index / max(1, count - 1)
    return 0.1 + 0.85 * part, 0.3 + 0.2 * part, 0.8 - 0.7 * part
