"""Pictures and a table of the study in `configs/sweeps/mpobert_sharing.py`.

    python -m tools.plot_sharing --runs=runs/sharing --out=experiments/results/mpobert_sharing

Reads the finished cells of the sweeps `main`, `depths` and `starts` below --runs; what is not there
is left out. Writes `loss_vs_tokens.png`, `loss_vs_parameters.png`, `starts.png` and `summary.md`.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable

from absl import flags
from matplotlib import figure as figure_lib

from experiments import command_line, console
from mpojax import files
from mpojax.training import metrics, update_statistics

_RUNS = flags.DEFINE_string("runs", "runs/sharing", "Folder with the sweeps' workdirs.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for pictures and table.", required=True, allow_override=True
)

_COLORS = {
    "MPOBERT": "C0",
    "all shared": "C1",
    "unshared": "C2",
    "shared in 3 blocks": "C3",
    "unshared, 3 layers": "C4",
}
_START_COLORS = {"none": "C0", "paper_text": "C3", "paper_algorithm": "C1", "theory": "C2"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished cell."""

    folder: pathlib.Path
    kind: str
    scaling: str
    layers: int
    seed: int
    total: int
    loss: float
    accuracy: float
    tokens_per_step: int

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """(tokens seen, values) of a logged metric."""
        lines = [x for x in metrics.read(self.folder / "metrics.jsonl") if name in x]
        return [x["step"] * self.tokens_per_step for x in lines], [x[name] for x in lines]


def find(folder: pathlib.Path) -> list[Run]:
    """The finished cells of one sweep."""
    runs = []
    for path in sorted(folder.glob("cells/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        runs.append(
            Run(
                path.parent,
                config["variant"],
                config["start"]["scaling"],
                result["num_layers"],
                result["seed"],
                result["total"],
                result["metrics"]["mlm_loss"],
                result["metrics"]["mlm_accuracy"],
                config["batch_size"] * config["length"],
            )
        )
    return runs


def main(argv):
    del argv
    root, out = pathlib.Path(_RUNS.value), pathlib.Path(_OUT.value)
    sweeps = {name: find(root / name) for name in ("main", "depths", "starts")}
    equal_depth = sweeps["main"] + sweeps["depths"]
    if equal_depth:
        _save(out / "loss_vs_tokens.png", lambda f: _by_tokens(f, equal_depth), (11, 7))
        _save(out / "loss_vs_parameters.png", lambda f: _by_parameters(f, equal_depth), (7, 4.5))
    if sweeps["starts"]:
        _save(out / "starts.png", lambda f: _starts(f, sweeps["starts"]), (12, 7))
    files.write_atomic(out / "summary.md", summary(equal_depth, sweeps["starts"]))


def _save(path: pathlib.Path, draw: Callable, size: tuple[float, float]) -> None:
    figure = figure_lib.Figure(figsize=size, layout="constrained")
    draw(figure)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _by_tokens(figure, runs: list[Run]) -> None:
    depths = sorted({run.layers for run in runs if run.kind in ("MPOBERT", "all shared")})
    panels = figure.subplots(2, (len(depths) + 1) // 2, sharex=True, sharey=True).flat
    for panel in panels[len(depths) :]:
        panel.set_axis_off()
    for panel, depth in zip(panels, depths, strict=False):
        here = [r for r in runs if depth in (r.layers, 12 if r.kind.endswith("3 layers") else None)]
        for run in here:
            tokens, losses = run.curve("dev/mlm_loss")
            label = run.kind if run.seed == 0 else None
            color = _COLORS[run.kind]
            panel.plot([t / 1e6 for t in tokens], losses, color=color, label=label, linewidth=1.2)
        panel.set(title=f"{depth} layers", xlabel="tokens (millions)", ylabel="MLM loss, held out")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")


def _by_parameters(figure, runs: list[Run]) -> None:
    axes = figure.subplots()
    for kind, color in _COLORS.items():
        points = []
        for layers in sorted({run.layers for run in runs if run.kind == kind}):
            same = [run for run in runs if (run.kind, run.layers) == (kind, layers)]
            points.append((same[0].total / 1e6, statistics.fmean(run.loss for run in same), layers))
        if points:
            x, y, depths = zip(*points, strict=True)
            axes.plot(x, y, "o-", color=color, label=kind)
            for place in zip(x, y, depths, strict=True):
                axes.annotate(f" {place[2]}", place[:2], fontsize="small")
    axes.set(
        xlabel="parameters (millions)",
        xscale="log",
        ylabel="MLM loss, held out",
        title="labels: number of layers; 12 layers: mean over the seeds",
    )
    axes.grid(alpha=0.3)
    axes.legend()


def _starts(figure, runs: list[Run]) -> None:
    depths = sorted({run.layers for run in runs})
    panels = figure.subplots(len(depths), 3, squeeze=False)
    for row, depth in zip(panels, depths, strict=True):
        for run in (run for run in runs if run.layers == depth):
            style = {"color": _START_COLORS[run.scaling], "label": run.scaling, "linewidth": 1.2}
            for panel, name in zip(row, ("loss", "gradient_norm"), strict=False):
                tokens, values = run.curve(name)
                panel.plot([t / 1e3 for t in tokens], values, **style)
            found = update_statistics.read(run.folder)
            names = sorted(name for name in found if name.endswith("/auxiliary"))
            ratios = [found[name][-1, 0] for name in names if name.startswith("layer_")]
            row[2].plot(range(len(ratios)), ratios, **style)
        row[0].set(title=f"{depth} layers", xlabel="thousand tokens", ylabel="training loss")
        row[1].set(xlabel="thousand tokens", ylabel="gradient norm", yscale="log")
        row[2].set(xlabel="layer", ylabel="update / auxiliary cores, last step", yscale="log")
        for panel in row:
            panel.grid(alpha=0.3)
        row[0].legend(fontsize="small")


def summary(runs: list[Run], starts: list[Run]) -> str:
    """Tables of final losses."""
    lines = ["# What layers share", ""]
    rows = []
    for layers, kind in sorted({(run.layers, run.kind) for run in runs}):
        same = [run for run in runs if (run.layers, run.kind) == (layers, kind)]
        rows.append(
            [
                kind,
                str(layers),
                f"{same[0].total:,}",
                _spread([run.loss for run in same], 4),
                _spread([100 * run.accuracy for run in same], 2),
                str(len(same)),
            ]
        )
    headers = ["kind", "layers", "parameters", "MLM loss", "MLM accuracy, %", "seeds"]
    lines += console.markdown_lines(headers, [False, *[True] * 5], rows)
    if starts:
        rows = []
        for run in starts:
            norms = run.curve("gradient_norm")[1]
            losses = run.curve("dev/mlm_loss")[1]
            rows.append(
                [
                    run.scaling,
                    str(run.layers),
                    f"{losses[0]:.3f}",
                    f"{run.loss:.3f}",
                    f"{max(norms):.2f}",
                    f"{norms[-1]:.2f}",
                ]
            )
        headers = [
            "scaling",
            "layers",
            "loss at first look",
            "at the end",
            "largest gradient",
            "last",
        ]
        lines += ["", *console.markdown_lines(headers, [False, *[True] * 5], rows)]
    return "\n".join(lines) + "\n"


def _spread(values: Iterable[float], digits: int) -> str:
    values = list(values)
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    command_line.run(main)
