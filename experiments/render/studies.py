"""The studies whose results are kept: what is read of their runs, their tables and figures."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.render import figures as render
from experiments.render import frames, runs
from experiments.render.figures import Plot
from mpojax import figures, files, tables
from mpojax.training import metrics, update_statistics

if TYPE_CHECKING:
    import pandas as pd

# Cell of a table, from the rows of one group and from all rows.
Cell = Callable[["pd.DataFrame", "pd.DataFrame"], str]


@dataclasses.dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
      folders: of its sweeps, below the folder of its runs.
      by: columns that tell the rows of the table apart, seeds are repetitions of one row.
      fields: {column: where it stands in `result.json`, or behind `config.` in `config.json`}.
      columns: {header: cell}; columns that are not in `by`.
      plots: of the means over seeds.
      order: variants as they are listed; others follow.
      across: those whose figures are horizontal lines, {column: values}.
      curves: {column: metric in `metrics.jsonl`}, by tokens, means over seeds.
      curve_plots: of these.
      note: above the table.
    """

    folders: Sequence[str]
    by: Sequence[str]
    fields: Mapping[str, str]
    columns: Mapping[str, Cell]
    plots: Sequence[Plot]
    order: Sequence[str] = ()
    across: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curve_plots: Sequence[Plot] = ()
    note: str = ""


def collect(study: Study, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes what a study needs of its finished runs: `results.csv`, `curves.csv`, `kept.csv`.

    Raises:
      FileNotFoundError: there are none.
    """
    found = [path for name in study.folders for path in (folder / name).glob("cells/*/result.json")]
    if not found:
        raise FileNotFoundError(f"no finished cell in {folder}.")
    rows, curves, kept = [], [], []
    for path in sorted(found):
        leaves = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
        config = path.with_name("config.json")
        if config.is_file():
            leaves |= _leaves({"config": json.loads(config.read_text(encoding="utf-8"))})
        rows.append({name: leaves.get(place) for name, place in study.fields.items()})
        curves += [rows[-1] | point for point in _curve(study, path.parent, leaves)]
        kept += [rows[-1] | row for row in leaves.get("search.kept") or ()]
    for name, records in (("results", rows), ("curves", curves), ("kept", kept)):
        if records:
            frames.write(out / f"{name}.csv", frames.of(records))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _curve(study: Study, folder: pathlib.Path, leaves: Mapping[str, Any]) -> Iterator[dict]:
    """Points of the logged metrics by tokens, and updates of auxiliary cores by layer."""
    lines = metrics.read(folder / "metrics.jsonl") if study.curves else []
    per_step = leaves["tokens"] / leaves["steps"] if study.curves else 0
    for (column, metric), line in itertools.product(study.curves.items(), lines):
        if metric in line:
            yield {"curve": column, "x": line["step"] * per_step, column: line[metric]}
    updates = update_statistics.read(folder) if "update" in study.curves else {}
    names = sorted(n for n in updates if n.startswith("layer_") and n.endswith("/auxiliary"))
    for layer, name in enumerate(names):
        yield {"curve": "update", "x": layer, "update": updates[name][-1, 0]}


def report(study: Study, out: pathlib.Path) -> str:
    """Draws and tabulates what `collect` wrote; returns the table.

    A study whose runs are gone has the means alone, in `summary.csv`: they are drawn.

    Raises:
      FileNotFoundError: there is neither.
    """
    axes, path = (*study.by, "seed"), out / "results.csv"
    if path.is_file():
        results = _ordered(study, frames.read(path))
        files.write_atomic(out / "summary.md", summary(study, results))
        means = frames.means(results, axes)
        frames.write(out / "summary.csv", means)
    elif not (out / "summary.csv").is_file():
        raise FileNotFoundError(f"{out} has neither results.csv nor summary.csv.")
    means = frames.read(out / "summary.csv")
    for column, names in study.across.items():
        means.loc[means[column].isin(names), study.plots[0].x] = float("nan")
    render.draw_all(out, means, study.plots)
    if study.curve_plots and (out / "curves.csv").is_file():
        curves = frames.read(out / "curves.csv")
        drawn = frames.means(curves, (*axes, "curve", "x"))
        for plot in study.curve_plots:
            render.draw_all(out, drawn[drawn["curve"] == plot.y], [plot])
    if (out / "kept.csv").is_file():
        figures.save_both(_kept(frames.read(out / "kept.csv")), out / "kept")
    return (out / "summary.md").read_text(encoding="utf-8")


def _ordered(study: Study, results: "pd.DataFrame") -> "pd.DataFrame":
    """Rows as the study lists its variants; other columns by number, or as they come."""
    keys = {}
    for name in study.by:
        values = list(dict.fromkeys(results[name]))
        if name in ("variant", "scaling"):
            values = sorted(values, key=lambda v: ([*study.order, v].index(v), values.index(v)))
        elif not isinstance(values[0], str):
            values = sorted(values)
        keys[f"by {name}"] = results[name].map({value: i for i, value in enumerate(values)})
    return results.assign(**keys).sort_values([*keys, "seed"]).drop(columns=list(keys))


def _kept(kept: "pd.DataFrame") -> Any:
    """Mean fraction of the super-set that structured searches kept."""
    kept = kept[kept["method"] == "structured"]
    means = kept.groupby(["module", "layer"], sort=False)[["kept", "total"]].mean().reset_index()
    return runs.draw_kept(means.to_dict("records"), "structured searches", counts=False)


def summary(study: Study, results: "pd.DataFrame") -> str:
    """The table of a study, as Markdown."""
    rows = []
    for _, group in results.groupby(list(study.by), sort=False):
        names = [str(group[name].iloc[0]) for name in study.by]
        rows.append([*names, *(cell(group, results) for cell in study.columns.values())])
    table = tables.markdown([*study.by, *study.columns], rows, left=len(study.by))
    return "\n\n".join(filter(None, [study.note, table])) + "\n"


def first(column: str, form: str = "{:,.0f}", scale: float = 1.0) -> Cell:
    """A number that is the same for all seeds, or its mean."""

    def cell(group, results):
        value = group[column].mean() * scale
        return "" if value != value else form.format(value)

    return cell


def mean(column: str, digits: int = 1, scale: float = 1.0) -> Cell:
    """Mean ± sample standard deviation; fewer seeds than others have in brackets."""

    def cell(group, results):
        expected = results.groupby("variant")["seed"].nunique().max()
        return frames.spread(scale * group[column].dropna(), digits, expected)

    return cell


def against(other: Callable[[str], str], column: str, digits: int = 1, scale: float = 1.0) -> Cell:
    """Difference to another variant on the same task, paired by seed."""

    def cell(group, results):
        name = other(group["variant"].iloc[0])
        others = results[results["variant"] == name]
        if "task" in group:
            others = others[others["task"] == group["task"].iloc[0]]
        if name == group["variant"].iloc[0] or not len(others):
            return ""
        expected = results.groupby("variant")["seed"].nunique().max()
        pairs = [scale * value for value in frames.paired(group, others, column)]
        return frames.difference(pairs, digits, expected)

    return cell


def _seeds(group, results) -> str:
    return str(len(group))


def _moved(group, results) -> str:
    """By how much merging moves the metric, at most."""
    moved = (group["metric"] - group["unmerged"]).abs().max()
    return f"{100 * moved:.2g}"


def _slowdown(group, results) -> str:
    """Time of a step over that of the dense student."""
    plain = results[results["variant"] == "kd"]["steps_per_second"].max()
    ratio = plain / group["steps_per_second"].max()
    return "" if ratio != ratio else f"{ratio:.1f}"


def _without_alignment(variant: str) -> str:
    is_aligned = variant.startswith(("opdf", "core", "raw", "weight"))
    return f"mpo_{variant.rpartition('_')[2]}" if is_aligned else variant


def _same_size_lora(variant: str) -> str:
    return variant if variant.startswith("lora") else f"lora_{variant.rpartition('_')[2]}"


_PAIRED = (
    "Means over seeds ± sample standard deviations; differences are paired by seed, ± half of the "
    "95 % interval (Student's t). Fewer seeds than of others are in brackets."
)
_RUN = {name: name for name in ("variant", "seed", "metric_name", "metric", "total")}
_METRIC = {"metric, %": mean("metric", scale=100)}

STUDIES: Mapping[str, Study] = {
    "mpop_minilm": Study(
        folders=("",),
        by=("task", "variant"),
        fields=_RUN | {"task": "task", "trained": "trained", "relative_error": "relative_error"},
        columns={
            "seeds": _seeds,
            "parameters": first("total"),
            "trained": first("trained"),
            "weight error": first("relative_error", "{:.4f}"),
            **_METRIC,
        },
        plots=(
            Plot(
                y="metric",
                lines="variant",
                panels="task",
                kind="dots",
                size="total",
                name="quality",
            ),
        ),
        order=("dense", "full_lfa", "mpop", "dir", "svd"),
    ),
    "mpobert_sharing": Study(
        folders=("main", "depths"),
        by=("variant", "num_layers"),
        fields={
            **{name: name for name in ("variant", "seed", "num_layers", "total")},
            "mlm_loss": "metrics.mlm_loss",
            "mlm_accuracy": "metrics.mlm_accuracy",
        },
        columns={
            "parameters": first("total"),
            "MLM loss": mean("mlm_loss", 4),
            "MLM accuracy, %": mean("mlm_accuracy", 2, 100),
            "seeds": _seeds,
        },
        plots=(
            Plot(x="num_layers", y="mlm_loss", lines="variant", log_x=True, name="loss_vs_layers"),
            Plot(x="total", y="mlm_loss", lines="variant", log_x=True, name="loss_vs_parameters"),
        ),
        order=("MPOBERT", "all shared", "shared in 3 blocks", "unshared", "unshared, 3 layers"),
        curves={"mlm_loss": "dev/mlm_loss"},
        curve_plots=(
            Plot(
                x="x",
                y="mlm_loss",
                lines="variant",
                panels="num_layers",
                name="loss_vs_tokens",
                x_label="tokens",
            ),
        ),
    ),
    "mpobert_starts": Study(
        folders=("starts",),
        by=("scaling", "num_layers"),
        fields={
            **{name: name for name in ("variant", "seed", "num_layers", "total")},
            "scaling": "config.start.scaling",
            "mlm_loss": "metrics.mlm_loss",
        },
        columns={"MLM loss": mean("mlm_loss", 3)},
        plots=(Plot(y="mlm_loss", lines="scaling", panels="num_layers", kind="dots", name="loss"),),
        curves={"loss": "loss", "gradient_norm": "gradient_norm", "update": ""},
        curve_plots=tuple(
            Plot(x="x", y=y, lines="scaling", panels="num_layers", log_y=log, name=y, **labels)
            for y, log, labels in (
                ("loss", False, {"x_label": "tokens", "y_label": "training loss, nats"}),
                ("gradient_norm", True, {"x_label": "tokens"}),
                ("update", True, {"x_label": "layer", "y_label": "update / auxiliary cores"}),
            )
        ),
    ),
    "mpoe_sharing": Study(
        folders=("main", "masks", "experts"),
        by=("variant",),
        fields={
            **{name: name for name in ("variant", "seed", "total")},
            "parameter_bytes": "parameter_bytes",
            "optimizer_bytes": "optimizer_bytes",
            "mask_rate": "training.mask_rate",
            "max_load": "training.router/max_load",
            **{
                n: f"metrics.{n}" for n in ("perplexity", "test_perplexity", "test_word_perplexity")
            },
        },
        columns={
            "seeds": _seeds,
            "parameters": first("total"),
            "parameter MB": first("parameter_bytes", "{:.1f}", 1e-6),
            "optimizer MB": first("optimizer_bytes", "{:.1f}", 1e-6),
            "dev perplexity": mean("perplexity", 2),
            "test perplexity": mean("test_perplexity", 2),
            "test, per word": mean("test_word_perplexity", 0),
            "test - dense, paired": against(lambda name: "dense", "test_perplexity", 2),
            "masked steps": first("mask_rate", "{:.3f}"),
            "load of busiest / even": first("max_load", "{:.3f}"),
        },
        plots=(
            Plot(
                y="test_perplexity",
                lines="variant",
                kind="dots",
                size="total",
                name="perplexity",
                names={
                    "MPOE": "MPOE, 8 experts, masked 7/8 of the time",
                    **{
                        f"MPOE, n 8, p_b {p}": f"MPOE, 8 experts, masked {t}"
                        for p, t in (("0.5", "half of the time"), ("1", "always"))
                    },
                    "MPOE, n 4, p_b 0.75": "MPOE, 4 experts, masked 3/4 of the time",
                    "MPOE, n 16, p_b 0.9375": "MPOE, 16 experts, masked 15/16 of the time",
                },
            ),
        ),
        order=("dense", "Switch", "MPOE", "without sharing", "without mask"),
        curves={"perplexity": "dev/perplexity"},
        curve_plots=(
            Plot(
                x="x", y="perplexity", lines="variant", log_y=True, name="curves", x_label="tokens"
            ),
        ),
        note=_PAIRED,
    ),
    "opdf_minilm": Study(
        folders=("",),
        by=("variant",),
        fields=_RUN
        | {name: name for name in ("task", "train_parameters", "inference_parameters")}
        | {
            "training_bytes": "training_bytes",
            "steps_per_second": "fit.steps_per_second",
            "unmerged": "unmerged_metrics.accuracy",
            "teacher": "teacher_metrics.accuracy",
        },
        columns={
            "seeds": _seeds,
            "parameters, learning": first("train_parameters"),
            "merged": first("inference_parameters"),
            "training MB": first("training_bytes", "{:.0f}", 1e-6),
            "time of a step / kd": _slowdown,
            **_METRIC,
            "against kd, paired": against(lambda name: "kd", "metric", scale=100),
            "against chains without alignment, paired": against(
                _without_alignment, "metric", scale=100
            ),
            "merging moves the metric by": _moved,
        },
        plots=(
            Plot(
                y="metric",
                lines="variant",
                kind="dots",
                size="train_parameters",
                reference="teacher",
                name="quality",
                names={
                    **{f"mpo_{n}": f"MPO, {n} inner cores, not aligned" for n in (1, 3)},
                    **{f"opdf_{n}": f"MPO, {n} inner cores, aligned (OPDF)" for n in (1, 3)},
                    "core_3": "the same, signs fixed alone",
                    "raw_3": "the same, gauges not fixed",
                    "weight_3": "the same, matrices aligned",
                },
            ),
        ),
        order=("kd", "svd", "mpo_1", "mpo_3", "opdf_1", "opdf_3", "core_3", "raw_3", "weight_3"),
        note=_PAIRED,
    ),
    "pet_minilm": Study(
        folders=("",),
        by=("task", "method", "variant"),
        fields=_RUN | {name: name for name in ("task", "method", "updates", "adapter_bytes")},
        columns={
            "seeds": _seeds,
            "parameters": first("updates"),
            "file": first("adapter_bytes", "{:.0f} kB", 1e-3),
            **_METRIC,
            "against low rank of the size, paired": against(_same_size_lora, "metric", scale=100),
        },
        plots=(
            Plot(
                x="updates",
                y="metric",
                lines="method",
                panels="task",
                log_x=True,
                name="quality",
                names={"mpo": "MPO adapters"},
            ),
        ),
        across={"method": ("full", "lfa")},
        note=(
            "Searches after Lawton et al. 2023, with formulas of our own; no reproduction.\n\n"
            f"{_PAIRED} Parameters are those that are trained, the head apart; the file of the "
            "adapter has the head, and after an unstructured search the indices of entries."
        ),
    ),
}
