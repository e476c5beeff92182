"""Report of a compression: variants of one model in a table, their errors against bond caps."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from experiments.render import figures as render
from experiments.render import frames, methods
from mpojax import figures, files, models, mpo, tables
from mpojax.compression import report as report_lib
from mpojax.compression import rules as rules_lib
from mpojax.training import progress as progress_lib
from mpojax.training import workdir as workdir_lib

if TYPE_CHECKING:
    import pandas as pd

_CAPS = (4, 8, 16, 32, 64, 128, 256)
# {header: cell of a row}; a column is shown where a row has its field.
_COLUMNS = {
    "variant": ("label", str),
    "total parameters": ("total_parameters", "{:,.0f}".format),
    "trained": ("trained_parameters", "{:,.0f}".format),
    "stored": ("stored_bytes", lambda value: f"{value / 1e6:.1f} MB"),
    "weight error": ("relative_weight_error", tables.error),
    "output error": ("relative_output_error", tables.error),
    "similarity": ("similarity", "{:.4f}".format),
    "accuracy": ("accuracy", "{:.4f}".format),
    "steps/s": ("steps_per_second", "{:.2f}".format),
}


def error_curve(
    folder: pathlib.Path, dense: models.Model, variants: Sequence[Sequence[tuple[str, dict]]]
) -> "pd.DataFrame":
    """Relative error against bond cap, MPO and low rank with equally many parameters.

    Root mean square over all matrices that the first MPO variant compresses; measured by truncating
    each matrix (float64), not read off bounds. Kept in `compression/error_vs_bond.csv`.

    Args:
      folder: of the run.
      dense: the model.
      variants: rules of each.

    Returns:
      Columns bond, parameters_ratio, mpo_error, svd_error; empty where no variant is an MPO.
    """
    path = folder / "compression" / "error_vs_bond.csv"
    if path.is_file():
        return frames.read(path)
    targets = _targets(dense, variants)
    arrays = models.to_arrays(dense)
    largest = max((max(target.full.bond_dims) for target in targets), default=0)
    caps = [cap for cap in _CAPS if cap < largest]
    squares, parameters = np.zeros((len(caps), 2)), np.zeros(len(caps))
    with progress_lib.progress("error against bond dimension") as advance:
        for done, target in enumerate(targets, 1):
            w = np.asarray(arrays[models.dense_name(target.path)], np.float64)
            # Entry r: squared relative error of the best matrix of rank r.
            tails = mpo.low_rank_errors(w) ** 2
            shapes = [target.full.with_bonds(cap) for cap in caps]
            squares += [_squared_errors(w, shape, tails) for shape in shapes]
            parameters += [shape.num_params for shape in shapes]
            advance(done, len(targets), target.path)
    if not caps:
        return frames.of([])
    size = sum(target.full.num_dense_params for target in targets)
    errors = np.sqrt(squares / len(targets))
    names = ("bond", "parameters_ratio", "mpo_error", "svd_error")
    columns = zip(caps, parameters / size, *errors.T, strict=True)
    curve = frames.of(dict(zip(names, row, strict=True)) for row in columns)
    frames.write(path, curve)
    return curve


def _targets(dense: models.Model, variants: Sequence) -> list:
    sizes = dense.config.matrix_sizes()
    for rules in filter(None, variants):
        targets = rules_lib.resolve(rules, sizes, dense.shapes, None)
        if targets := [target for target in targets if not target.settings.is_low_rank]:
            return targets
    return []


def _squared_errors(w: np.ndarray, shape: mpo.MPOShape, tails: np.ndarray) -> tuple[float, float]:
    """Squared relative errors of the MPO and of the low rank with at most as many parameters."""
    # Sequential truncation is a projection, and the central core has the norm of the whole MPO.
    norm = np.linalg.norm(w)
    kept = np.linalg.norm(mpo.decompose(w, shape)[shape.central]) / norm if norm > 0 else 1.0
    # r (in + out) <= parameters of the chain
    rank = min(shape.num_params // sum(w.shape), len(tails) - 1)
    # |W - W'|^2 = |W|^2 - |W'|^2, relative; rounding may go below 0.
    return max(0.0, 1.0 - kept**2), tails[rank]


def rows_of(
    variants: Sequence, compressed: Mapping[str, dict], results: Mapping[str, Sequence[dict]]
) -> list[dict[str, Any]]:
    """One row for each variant: counts, bytes, error and, where trained, accuracy and speed."""
    rows = []
    for variant in variants:
        compression, cells = compressed[variant.name], results.get(variant.name)
        row = {
            "variant": variant.name,
            "label": variant.label,
            "total_parameters": compression["parameters"],
            "stored_bytes": compression["stored_bytes"],
            "relative_weight_error": compression["relative_error"],
        }
        measured = ("relative_output_error", "similarity")
        row |= {n: v for n in measured if (v := compression.get(n)) is not None}
        if cells:
            metrics = np.array([cell["metric"] for cell in cells])
            speeds = [s for cell in cells if (s := cell["fit"]["steps_per_second"])]
            row |= {
                "total_parameters": cells[0]["total"],
                "trained_parameters": cells[0]["trained"],
                "accuracy": metrics.mean(),
                "accuracy_spread": metrics.std(ddof=1) if len(cells) > 1 else None,
                "seeds": len(cells),
                "steps_per_second": float(np.median(speeds)) if speeds else None,
            }
        rows.append(row)
    return rows


def cells_of(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, Callable]] = _COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the table of the rows; `columns` as those of this module."""
    headers = [h for h, (name, _) in columns.items() if any(name in row for row in rows)]
    return headers, [[_cell(row, *columns[header]) for header in headers] for row in rows]


def _cell(row: Mapping[str, Any], name: str, show: Callable[[Any], str]) -> str:
    value, spread = row.get(name), row.get("accuracy_spread")
    if value is None:
        return ""
    return show(value) + (f" ± {spread:.4f}" if name == "accuracy" and spread else "")


def write(
    workdir: workdir_lib.Workdir,
    config: ml_collections.ConfigDict,
    variants: Sequence,
    compressed: Mapping[str, dict],
    results: Mapping[str, Sequence[dict]],
    curve: "pd.DataFrame",
    seconds: float,
) -> str:
    """Writes tables, figures, report and `result.json`; returns the text to print.

    Args:
      workdir: of the run.
      config: of the run.
      variants: of the config.
      compressed: {variant: record of its compression}.
      results: {variant: results of its training, one for each seed}.
      curve: of `error_curve`.
      seconds: that the run took.
    """
    folder, rows = workdir.path, rows_of(variants, compressed, results)
    files.write_atomic(folder / "comparison.csv", tables.csv(rows))
    headers, cells = cells_of(rows)
    plots = draw(folder / "plots", rows, curve)
    text = tables.text(headers, cells, 130, wrap=("variant",))
    summary = "\n".join([text, "", contents(folder, variants, bool(results))])
    files.write_atomic(folder / "summary.txt", summary + "\n")
    page = markdown(config, tables.markdown(headers, cells), variants, compressed, plots)
    files.write_atomic(folder / "report.md", page)
    workdir.write_result(
        {
            "rows": rows,
            "error_vs_bond": curve.to_dict("records"),
            "cells": results,
            "seconds": seconds,
            "compression": {
                name: {k: v for k, v in compression.items() if k != "rows"}
                for name, compression in compressed.items()
            },
        }
    )
    return summary


def contents(folder: pathlib.Path, variants: Sequence, trained: bool) -> str:
    """Says where everything is, and what can be done next."""
    names = ",".join(variant.name for variant in variants)
    entries = {
        "report": "report.md",
        "numbers": "result.json, comparison.csv, compression/*.csv",
        "plots": "plots/",
        "compressed models": f"models/{{{names}}}",
    }
    if trained:
        entries["fine-tuned models"] = "cells/*/model"
        entries["training curves"] = "cells/*/metrics.jsonl and TensorBoard events"
    cut = [variant for variant in variants if variant.rules and not variant.is_uncut]
    entries["next"] = f'model = mpojax.load("{folder / "models" / (cut or variants)[0].name}")'
    lines = [f"  {name + ':':<20}{place}" for name, place in entries.items()]
    return f"Everything is in {folder}\n" + "\n".join(lines)


def markdown(
    config: ml_collections.ConfigDict,
    table: str,
    variants: Sequence,
    compressed: Mapping[str, dict],
    plots: Sequence[str],
) -> str:
    """The whole report."""
    parts = [f"# Compression of {config.model}", table]
    parts.append(
        "Weight error: relative Frobenius error, root mean square over the compressed matrices.\n"
        "Stored: size of `model.safetensors` of the compressed model."
    )
    if cell := config.get("cell"):
        parts.append(
            f"Task `{cell.task}`, {cell.steps} steps of {cell.batch_size} examples, seeds "
            f"{tuple(config.seeds)}; spread is the sample standard deviation over seeds. "
            "Lightweight: central cores (of a low rank, its first factor) and a dense token "
            "embedding are frozen; trained are the auxiliary cores, biases, norms, position and "
            "type embeddings and the head."
        )
    parts += [f"![{plot}](plots/{plot}.png)" for plot in plots]
    for variant in variants:
        if rows := compressed[variant.name]["rows"]:
            parts += [f"## {variant.label}", report_lib.matrix_table(rows)]
    return "\n\n".join(parts) + "\n"


def draw(
    folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], curve: "pd.DataFrame"
) -> list[str]:
    """Draws error against bond dimension and, where trained, accuracy against parameters.

    Returns:
      Names of the figures.
    """
    made = {}
    if len(curve):
        made["error_vs_bond"] = draw_errors(curve)
    if trained := [row for row in rows if row.get("accuracy") is not None]:
        made["accuracy_vs_parameters"] = draw_accuracy(trained)
    for name, figure in made.items():
        figures.save_both(figure, folder / name)
    return list(made)


def draw_errors(curve: "pd.DataFrame") -> Any:
    """Errors of weights against the bond cap, and against parameters."""
    figure, (by_bond, by_size) = figures.new(1, 2, sharey=True, height=3.5)
    looks = {"mpo_error": methods.look("mpo"), "svd_error": methods.look("svd")}
    labels = {"mpo_error": "MPO", "svd_error": "low rank (SVD) with as many parameters"}
    for axes, name in ((by_bond, "bond"), (by_size, "parameters_ratio")):
        for column, look in looks.items():
            axes.plot(curve[name], curve[column], label=labels[column], **look.style)
        axes.axhline(0.0, color="black", linestyle=":", label="dense")
    by_bond.set(xlabel="bond dimension (cap)", xscale="log", ylabel="relative error of the weights")
    figures.log_ticks(by_bond.xaxis, curve["bond"])
    by_size.set(xlabel="parameters / dense parameters", xlim=(0, None), ylim=(-0.03, 1.05))
    figures.legend(figure)
    return figure


def draw_accuracy(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy of each variant against its parameters."""
    frame = frames.of(rows).rename(
        columns={"accuracy": "metric", "accuracy_spread": "metric_std", "seeds": "n"}
    )
    frame["metric_name"] = "accuracy"
    names = {
        row["variant"]: f"{row['label']} ({figures.thousands(row['trained_parameters'])} trained)"
        for row in rows
    }
    plot = render.Plot(x="total_parameters", y="metric", lines="variant", names=names)
    return render.draw(plot, frame)
