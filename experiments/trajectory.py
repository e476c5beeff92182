"""The way of a squeezed model as table and plot: bonds, parameters and metric of every phase."""

import pathlib

from experiments import console, study_files
from mpojax import files


def write(folder: pathlib.Path, phases: list[dict], metric: str) -> None:
    """Writes `trajectory.csv`, `trajectory.md` and `trajectory.png`."""
    rows = table(phases, metric)
    study_files.write_csv(folder / "trajectory.csv", rows)
    columns = list(rows[0])
    cells = [[str(row[name]) for name in columns] for row in rows]
    lines = console.markdown_lines(columns, [False] * len(columns), cells)
    files.write_atomic(folder / "trajectory.md", "\n".join(lines) + "\n")
    plot(folder / "trajectory.png", phases, metric)


def table(phases: list[dict], metric: str) -> list[dict]:
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
                **{f"bonds {g}": "-".join(map(str, b)) for g, b in phase["bonds"].items()},
            }
        )
    return rows


def plot(path: pathlib.Path, phases: list[dict], metric: str) -> None:
    """Metric against parameters, and the largest bond of every group by phase.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure as figure_lib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mpojax[plot]'.") from error
    figure = figure_lib.Figure(figsize=(12, 4.5), layout="constrained")
    by_size, by_phase = figure.subplots(1, 2)
    kept = [phase for phase in phases if phase["accepted"]]
    lost = [phase for phase in phases if not phase["accepted"]]
    size = [phase["parameters"] / 1e6 for phase in kept]
    by_size.plot(size, [phase["metric"] for phase in kept], "o-", label="accepted")
    if lost:
        size = [phase["parameters"] / 1e6 for phase in lost]
        by_size.plot(size, [phase["metric"] for phase in lost], "x", label="reverted")
    by_size.invert_xaxis()
    by_size.set(xlabel="parameters of the model (millions), falling", ylabel=metric)
    by_size.legend()
    for group, marker in zip(kept[0]["bonds"], "osD^v<>PX*" * len(phases), strict=False):
        bonds = [max(phase["bonds"].get(group, [0]), default=0) for phase in kept]
        numbers = [phase["phase"] for phase in kept]
        by_phase.plot(numbers, bonds, f"{marker}-", label=group, alpha=0.8)
    by_phase.set(xlabel="phase", ylabel="largest bond dimension", ylim=(0, None))
    by_phase.set_xticks([phase["phase"] for phase in kept])
    by_phase.legend(fontsize="small")
    for axes in (by_size, by_phase):
        axes.grid(alpha=0.3)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120))
