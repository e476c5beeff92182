"""Table and pictures of the study in `configs/sweeps/pet_minilm.py`.

    python -m tools.plot_pet --sweep=runs/pet_minilm --out=experiments/results/pet_minilm

Reads the finished cells; what is not there is left out. Writes `summary.md`, `quality.png` (metric
against trained parameters, one line for a method, its band the standard deviation over seeds) and
`kept.png` (mean fraction of the super-set that the structured searches kept, by layer and module).
"""

import collections
import math
import statistics
from collections.abc import Sequence

from matplotlib import figure as figure_lib

from experiments import command_line
from mpojax import files
from tools import study_tables


def summary(results: Sequence[dict]) -> str:
    """Two tables: metrics by method and task, and differences to LoRA of the same size and seed."""
    tasks, variants = study_tables.by(results, "task"), study_tables.by(results, "variant")
    names = sorted(variants, key=_order)
    seeds = max(len({run["seed"] for run in runs}) for runs in variants.values())
    metrics = [f"{task} ({runs[0]['metric_name']})" for task, runs in tasks.items()]
    whole = max(run["updates"] for run in results)
    rows, differences = [], []
    for name in names:
        runs = study_tables.by(variants[name], "task")
        size = statistics.mean(run["updates"] for run in variants[name])
        cells = [study_tables.percent(runs.get(task, ())) for task in tasks]
        cells = [study_tables.spread(cell, seeds) for cell in cells]
        share = f"{size / whole:.2%}"
        rows.append((name, f"{round(size):,}", share, _file(variants[name]), *cells))
        others = variants.get(f"lora_{name.rpartition('_')[2]}")
        if others and not name.startswith("lora"):
            others = study_tables.by(others, "task")
            cells = [study_tables.pairs_of(runs.get(t, ()), others.get(t, ())) for t in tasks]
            cells = [study_tables.difference(cell, seeds) for cell in cells]
            differences.append((name, *cells))
    parts = [
        "Searches after Lawton et al. 2023, with formulas of our own; no reproduction.",
        f"Percent, means over {seeds} seeds ± sample standard deviations; fewer seeds in brackets. "
        "Parameters are those that are trained, the head apart; the file of the adapter has the "
        "head, and after an unstructured search the indices of entries.",
        "\n".join(study_tables.table(["", "parameters", "of the largest", "file", *metrics], rows)),
        "Differences to low rank of the same size for query and value, paired by seed, ± half "
        "of the 95 % interval (Student's t):",
        "\n".join(study_tables.table(["", *tasks], differences)),
    ]
    return "\n\n".join(parts) + "\n"


def _file(runs: Sequence[dict]) -> str:
    """Mean size of the saved adapters."""
    sizes = [run["adapter_bytes"] for run in runs if "adapter_bytes" in run]
    return f"{statistics.mean(sizes) / 1000:.0f} kB" if sizes else ""


def _order(name: str) -> tuple:
    known = ("full", "lfa", "bitfit", "bottleneck", "mpo", "lora", "structured", "unstructured")
    stem = name.rstrip("0123456789").rstrip("_")
    return (known.index(stem) if stem in known else len(known), name)


def draw(results: Sequence[dict]) -> figure_lib.Figure:
    """Metric against trained parameters, the head apart; one panel for a task."""
    tasks = study_tables.by(results, "task")
    figure = figure_lib.Figure(figsize=(1.5 + 5 * len(tasks), 4.5), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    known = sorted({result["method"] for result in results}, key=_order)
    for axes, (task, inside) in zip(panels, tasks.items(), strict=True):
        methods = study_tables.by(inside, "method")
        for index, method in enumerate(known):
            if method not in methods:
                continue
            color, style = f"C{index % 10}", ("-", "--")[index // 10]
            points = []
            for runs in study_tables.by(methods[method], "variant").values():
                values = [100 * run["metric"] for run in runs]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                size = statistics.mean(run["updates"] for run in runs)
                points.append((size, statistics.mean(values), spread))
            x, y, spread = zip(*sorted(points), strict=True)
            axes.plot(x, y, style, color=color, marker="o", label=method)
            low, high = ([v + f * s for v, s in zip(y, spread, strict=True)] for f in (-1, 1))
            axes.fill_between(x, low, high, color=color, alpha=0.15)
            if len(x) == 1:
                axes.errorbar(x, y, spread, color=color, capsize=3)
        axes.set(xscale="log", xlabel="trained parameters", title=task)
        axes.set_ylabel(f"{inside[0]['metric_name']}, percent")
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize="small")
    return figure


def draw_kept(results: Sequence[dict], method: str = "structured") -> figure_lib.Figure | None:
    """Mean share kept by layer and module over all runs of a method; None without any."""
    shares = collections.defaultdict(list)
    for result in results:
        if result["method"] == method:
            for row in result["search"]["kept"]:
                shares[str(row["layer"]), row["module"]].append(row["kept"] / row["total"])
    if not shares:
        return None
    layers = list(dict.fromkeys(layer for layer, _ in shares))
    modules = list(dict.fromkeys(module for _, module in shares))
    table = [
        [
            statistics.mean(shares[layer, module]) if (layer, module) in shares else math.nan
            for module in modules
        ]
        for layer in layers
    ]
    size = (2.5 + 0.6 * len(modules), 2.5 + 0.4 * len(layers))
    figure = figure_lib.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="mean fraction kept")
    axes.set_xticks(range(len(modules)), modules, rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(layers)), layers)
    axes.set(ylabel="layer", title=f"{method} searches")
    return figure


def main(argv) -> None:
    del argv
    results, out = study_tables.from_flags()
    text = summary(results)
    files.write_atomic(out / "summary.md", text)
    pictures = {"quality.png": draw(results), "kept.png": draw_kept(results)}
    for name, figure in pictures.items():
        if figure is not None:
            files.write_atomic(out / name, lambda path, f=figure: f.savefig(path, dpi=120))
    print(text)


if __name__ == "__main__":
    command_line.run(main)
