"""Pictures and a table of the study in `configs/sweeps/mpoe_sharing.py`.

    python -m tools.plot_mpoe --runs=runs/mpoe --out=experiments/results/mpoe_sharing

Reads the finished cells of the sweeps `main`, `masks` and `experts` below --runs; what is not there
is left out. Writes `summary.md`, `perplexity.png` (test perplexity by kind, mask and number of
experts) and `curves.png` (perplexity on held-out Wikipedia articles by tokens).
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from absl import flags
from matplotlib import figure as figure_lib

from experiments import command_line, console
from mpojax import files
from mpojax.training import metrics

_RUNS = flags.DEFINE_string("runs", "runs/mpoe", "Folder with the sweeps' workdirs.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for pictures and table.", required=True, allow_override=True
)

_SWEEPS = ("main", "masks", "experts")
_HEADERS = (
    *("", "seeds", "parameters", "parameter + optimizer MB"),
    *("dev perplexity", "test perplexity", "test, per word", "test - dense, paired"),
    *("masked steps", "load of busiest / even"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished cell."""

    folder: pathlib.Path
    result: dict

    @property
    def kind(self) -> str:
        return self.result["variant"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    def metric(self, name: str) -> float:
        return self.result["metrics"][name]

    def curve(self) -> tuple[list[float], list[float]]:
        """(tokens seen, perplexity on the development split)."""
        name = "dev/perplexity"
        lines = [x for x in metrics.read(self.folder / "metrics.jsonl") if name in x]
        per_step = self.result["tokens"] / self.result["steps"]
        return [x["step"] * per_step for x in lines], [x[name] for x in lines]


def find(folder: pathlib.Path) -> dict[str, list[Run]]:
    """{kind: finished cells, one for each seed} of all sweeps, in order."""
    runs: dict[str, list[Run]] = {}
    for sweep in _SWEEPS:
        for path in sorted((folder / sweep).glob("cells/*/result.json")):
            run = Run(path.parent, json.loads(path.read_text(encoding="utf-8")))
            runs.setdefault(run.kind, []).append(run)
    order = ("dense", "Switch", "MPOE", "without sharing", "without mask")
    named = [kind for kind in order if kind in runs]
    return {kind: runs[kind] for kind in [*named, *sorted(runs.keys() - set(named), key=_natural)]}


def _natural(kind: str) -> list:
    return [float(word) if word[:1].isdigit() else word for word in kind.replace(",", "").split()]


def summary(runs: dict[str, list[Run]]) -> str:
    """The table, as Markdown."""
    rows = []
    dense = {run.seed: run for run in runs.get("dense", ())}
    for kind, own in runs.items():
        first = own[0].result
        size = (first["parameter_bytes"] + first["optimizer_bytes"]) / 1e6
        paired = [
            run.metric("test_perplexity") - dense[run.seed].metric("test_perplexity")
            for run in own
            if run.seed in dense
        ]
        routed = [run.result["training"] for run in own]
        cells = [
            kind,
            str(len(own)),
            f"{first['total']:,}",
            f"{size:.1f}",
            *(_spread([r.metric(n) for r in own]) for n in ("perplexity", "test_perplexity")),
            _spread([run.metric("test_word_perplexity") for run in own], digits=0),
            _spread(paired, signed=True) if kind != "dense" else "",
            _mean(routed, "mask_rate"),
            _mean(routed, "router/max_load"),
        ]
        rows.append(cells)
    lines = console.markdown_lines(_HEADERS, [False, *[True] * (len(_HEADERS) - 1)], rows)
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int = 2, signed: bool = False) -> str:
    if not values:
        return ""
    sign = "+" if signed else ""
    text = f"{statistics.fmean(values):{sign},.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):,.{digits}f}"


def _mean(facts: Iterable[dict], name: str) -> str:
    values = [each[name] for each in facts if name in each]
    return f"{statistics.fmean(values):.3f}" if values else ""


def draw_bars(runs: dict[str, list[Run]]) -> figure_lib.Figure:
    """Test perplexity of every kind: a dot for each seed, a bar at the mean."""
    figure = figure_lib.Figure(figsize=(8.0, 0.5 + 0.35 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for place, (kind, own) in enumerate(runs.items()):
        values = [run.metric("test_perplexity") for run in own]
        axes.plot(values, [place] * len(values), "o", color=f"C{place % 10}", markersize=4)
        axes.plot([statistics.fmean(values)] * 2, [place - 0.3, place + 0.3], color="black")
        axes.text(1.01, place, kind, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set(
        yticks=[], xlabel="perplexity per token on the test text", ylim=(len(runs) - 0.4, -0.6)
    )
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_curves(runs: dict[str, list[Run]]) -> figure_lib.Figure:
    """Development perplexity by tokens, one line for each kind: the mean over seeds."""
    figure = figure_lib.Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for kind, own in runs.items():
        curves = [run.curve() for run in own]
        values = [statistics.fmean(each) for each in zip(*(v for _, v in curves), strict=True)]
        axes.plot(curves[0][0], values, label=kind, linewidth=1.3)
    axes.set(xlabel="tokens", ylabel="perplexity per token, held-out Wikipedia", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return figure


def main(_) -> None:
    runs = find(pathlib.Path(_RUNS.value).expanduser())
    if not runs:
        raise SystemExit(f"error: no finished cells of {', '.join(_SWEEPS)} below {_RUNS.value}.")
    out = pathlib.Path(_OUT.value).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    table = summary(runs)
    files.write_atomic(out / "summary.md", table)
    for name, figure in (("perplexity", draw_bars(runs)), ("curves", draw_curves(runs))):
        figure.savefig(out / f"{name}.png", dpi=130)
    print(table)
    print(f"written: {out}")


if __name__ == "__main__":
    command_line.run(main)
