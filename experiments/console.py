"""Output of a comparison: text table, Markdown report, plots."""

import io
import pathlib
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table

from mpojax import files, tables
from mpojax.compression.report import matrix_table

_HEADERS = {
    "label": "variant",
    "total_parameters": "total parameters",
    "trained_parameters": "trained",
    "stored_bytes": "stored",
    "relative_weight_error": "weight error",
    "relative_output_error": "output error",
    "accuracy": "accuracy",
    "steps_per_second": "steps/s",
}


def cells(row: dict) -> dict[str, str]:
    """The formatted columns of one row."""
    shown = {
        "label": row["label"],
        "total_parameters": f"{row['total_parameters']:,}",
        "stored_bytes": f"{row['stored_bytes'] / 1e6:.1f} MB",
        "relative_weight_error": tables.error(row["relative_weight_error"]),
    }
    if "relative_output_error" in row:
        shown["relative_output_error"] = tables.error(row["relative_output_error"])
    if "accuracy" in row:
        spread = row["accuracy_spread"]
        shown["trained_parameters"] = f"{row['trained_parameters']:,}"
        shown["accuracy"] = f"{row['accuracy']:.4f}" + (
            "" if spread is None else f" ± {spread:.4f}"
        )
        speed = row["steps_per_second"]
        shown["steps_per_second"] = "" if speed is None else f"{speed:.2f}"
    return {key: shown[key] for key in _HEADERS if key in shown}


def text_table(rows: list[dict], width: int = 130) -> str:
    """The comparison as plain text."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    shown = [cells(row) for row in rows]
    for key in shown[0]:
        justify = "left" if key == "label" else "right"
        table.add_column(_HEADERS[key], justify=justify, no_wrap=key != "label")
    for row in shown:
        table.add_row(*row.values())
    buffer = io.StringIO()
    rich.console.Console(file=buffer, width=width, color_system=None, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())


def markdown_table(rows: list[dict]) -> str:
    """The comparison as a Markdown table."""
    shown = [cells(row) for row in rows]
    headers = [_HEADERS[key] for key in shown[0]]
    is_right = [False, *[True] * (len(headers) - 1)]
    return "\n".join(markdown_lines(headers, is_right, [list(row.values()) for row in shown]))


def markdown_lines(
    headers: Sequence[str], is_right: Sequence[bool], rows: Sequence[Sequence[str]]
) -> list[str]:
    """Lines of a Markdown table; `is_right` says which columns are aligned to the right."""
    rules = ["---:" if right else "---" for right in is_right]
    return ["| " + " | ".join(row) + " |" for row in (headers, rules, *rows)]


def where(folder: pathlib.Path, config, variants, trained: bool) -> str:
    """Says where everything is."""
    entries = [
        ("report", "report.md"),
        ("numbers", "result.json, comparison.csv, compression/*.csv"),
        ("plots", "plots/"),
        ("compressed models", "models/{" + ",".join(v.name for v in variants) + "}"),
    ]
    if trained and config.save_finetuned:
        entries.append(("fine-tuned models", f"finetuned/ (seed {config.seeds[0]})"))
    if trained:
        entries.append(("training curves", "cells/*/metrics.jsonl and TensorBoard events"))
    lines = [f"  {name + ':':<20}{place}" for name, place in entries]
    return f"Everything is in {folder}\n" + "\n".join(lines)


def markdown(config, rows, variants, compressed, plots: list[pathlib.Path]) -> str:
    """The whole report."""
    parts = [f"# Compression of {config.model}", "", markdown_table(rows), ""]
    parts += [
        "Weight error: relative Frobenius error, root mean square over the compressed matrices.",
        "Stored: size of `model.safetensors` of the compressed encoder.",
    ]
    if config.task:
        parts.append(
            f"Task `{config.task}`, split `{config.test_split}`, {config.steps} steps of "
            f"{config.batch_size} examples, seeds {tuple(config.seeds)}; spread is the sample "
            "standard deviation over seeds. Lightweight: central cores (of a low rank, its first "
            "factor) and a dense token embedding are frozen; trained are the auxiliary cores, "
            "biases, norms, position and type tables and the head."
        )
    parts += ["", *(f"![{plot.stem}](plots/{plot.name})" for plot in plots), ""]
    for variant in variants:
        facts = compressed[variant.name][1]
        if facts["rows"]:
            parts += [f"## {variant.label}", "", matrix_table(facts["rows"]), ""]
    return "\n".join(parts)


def plots(folder: pathlib.Path, rows: list[dict], curve: list[dict]) -> list[pathlib.Path]:
    """Draws error vs bond dimension and, where trained, accuracy vs parameters.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure as figure_lib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mpojax[plot]'.") from error
    paths = []
    if curve:
        figure = figure_lib.Figure(figsize=(11, 4.5), layout="constrained")
        _error_panels(figure, curve)
        paths.append(folder / "error_vs_bond.png")
        _save(figure, paths[-1])
    trained = [row for row in rows if "accuracy" in row]
    if trained:
        figure = figure_lib.Figure(figsize=(7, 4.5), layout="constrained")
        _accuracy_panel(figure.subplots(), trained)
        paths.append(folder / "accuracy_vs_parameters.png")
        _save(figure, paths[-1])
    return paths


def _save(figure, path: pathlib.Path):
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _error_panels(figure, curve):
    by_bond, by_size = figure.subplots(1, 2, sharey=True)
    mpo_error = [point["mpo_error"] for point in curve]
    svd_error = [point["svd_error"] for point in curve]
    for axes, key in ((by_bond, "bond"), (by_size, "parameters_ratio")):
        x = [point[key] for point in curve]
        axes.plot(x, mpo_error, "o-", label="MPO")
        axes.plot(x, svd_error, "s--", label="low rank (SVD), as many parameters")
        axes.axhline(0.0, color="gray", linewidth=1, label="dense")
        axes.grid(alpha=0.3)
    by_bond.set(xlabel="bond dimension (cap)", xscale="log", ylabel="relative weight error")
    by_bond.set_xticks([p["bond"] for p in curve], [f"{p['bond']:.0f}" for p in curve], minor=False)
    by_bond.minorticks_off()
    by_size.set(xlabel="parameters / dense parameters of the compressed matrices", xlim=(0, None))
    by_bond.set_title("error vs bond dimension")
    by_size.set_title("error vs parameters")
    by_bond.legend()


def _accuracy_panel(axes, rows):
    for row, marker in zip(rows, "osD^v<>P*X" * len(rows), strict=False):
        axes.errorbar(
            row["total_parameters"] / 1e6,
            row["accuracy"],
            yerr=row["accuracy_spread"],
            fmt=marker,
            capsize=4,
            markersize=8,
            label=f"{row['label']} ({row['trained_parameters'] / 1e6:.2f} M trained)",
        )
    right = 1.08 * max(row["total_parameters"] for row in rows) / 1e6
    axes.set(xlabel="parameters of the model (millions)", ylabel="accuracy", xlim=(0, right))
    axes.set_title("accuracy vs parameters")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
