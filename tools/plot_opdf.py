"""Table and picture of the study in `configs/sweeps/opdf_minilm.py`.

    python -m tools.plot_opdf --sweep=runs/opdf_minilm --out=experiments/results/opdf_minilm

Reads the finished cells; what is not there is left out. Writes `summary.md` and `quality.png`: the
metric of every run against the parameters that its student has while it learns.
"""

import statistics
from collections.abc import Sequence

from matplotlib import figure as figure_lib

from experiments import command_line
from mpojax import files
from tools import study_tables

_ORDER = ("kd", "svd", "mpo_1", "mpo_3", "opdf_1", "opdf_3", "core_3", "raw_3", "weight_3")
_HEADERS = (
    *("", "seeds", "parameters, learning", "merged", "training MB", "time of a step / kd"),
    *("metric, percent", "against kd, paired", "against chains without alignment, paired"),
    "merging moves the metric by",
)


def variants_of(results: Sequence[dict]) -> dict[str, list[dict]]:
    """{variant: runs} in the order of the table."""
    found = study_tables.by(results, "variant")
    known = {name: place for place, name in enumerate(_ORDER)}
    return {name: found[name] for name in sorted(found, key=lambda n: (known.get(n, 99), n))}


def summary(results: Sequence[dict]) -> str:
    """One row for each variant; means over seeds ± sample standard deviations."""
    variants = variants_of(results)
    seeds = max(map(len, variants.values()))
    rows = [_row(name, runs, variants, seeds) for name, runs in variants.items()]
    teacher = results[0]["teacher_metrics"][results[0]["metric_name"]]
    head = (
        f"{results[0]['task']}, {results[0]['metric_name']}; teacher {100 * teacher:.1f}. Means "
        "over seeds ± sample standard deviations; differences are paired by seed, ± half of "
        "the 95 % interval (Student's t)."
    )
    return "\n".join([head, "", *study_tables.table(_HEADERS, rows)]) + "\n"


def _row(name: str, runs: Sequence[dict], variants: dict, seeds: int) -> tuple[str, ...]:
    plain = f"mpo_{name.rpartition('_')[2]}"
    has_plain = name.startswith(("opdf", "core", "raw", "weight")) and plain in variants
    moved = max(
        abs(value - run["unmerged_metrics"][metric])
        for run in runs
        for metric, value in run["metrics"].items()
    )
    return (
        name,
        str(len(runs)),
        f"{runs[0]['train_parameters']:,}",
        f"{runs[0]['inference_parameters']:,}",
        f"{runs[0]['training_bytes'] / 1e6:.0f}",
        _time(runs, variants.get("kd", ())),
        study_tables.spread(study_tables.percent(runs), seeds),
        _against(runs, variants.get("kd", ()), seeds) if name != "kd" else "",
        _against(runs, variants[plain], seeds) if has_plain else "",
        f"{100 * moved:.2g}",
    )


def _against(runs: Sequence[dict], others: Sequence[dict], seeds: int) -> str:
    return study_tables.difference(study_tables.pairs_of(runs, others), seeds)


def _time(runs: Sequence[dict], others: Sequence[dict]) -> str:
    # None in a run that was stopped behind its last step.
    one, other = (
        [1 / speed for run in each if (speed := run["fit"]["steps_per_second"])]
        for each in (runs, others)
    )
    return f"{min(one) / min(other):.1f}" if one and other else ""


def draw(results: Sequence[dict]) -> figure_lib.Figure:
    """Every run as a point, variants by color; a bar at each mean."""
    figure = figure_lib.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    variants = variants_of(results)
    for place, runs in enumerate(variants.values()):
        values = study_tables.percent(runs)
        color = f"C{place}"
        axes.plot([place] * len(values), values, "o", color=color, alpha=0.6)
        axes.plot(
            place, statistics.mean(values), "_", color=color, markersize=28, markeredgewidth=3
        )
        size = runs[0]["train_parameters"] / 1e6
        axes.annotate(
            f"{size:.0f} M",
            (place, min(values)),
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    axes.set_xticks(range(len(variants)), variants)
    axes.margins(y=0.15)
    axes.set(title="parameters while learning below each variant")
    axes.set_ylabel(f"{results[0]['metric_name']}, percent")
    teacher = results[0]["teacher_metrics"][results[0]["metric_name"]]
    axes.axhline(100 * teacher, color="gray", linestyle=":", label="teacher")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def main(argv) -> None:
    del argv
    results, out = study_tables.from_flags()
    text = summary(results)
    files.write_atomic(out / "summary.md", text)
    picture = draw(results)
    files.write_atomic(out / "quality.png", lambda path: picture.savefig(path, dpi=120))
    print(text)


if __name__ == "__main__":
    command_line.run(main)
