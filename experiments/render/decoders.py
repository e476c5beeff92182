"""Report of a comparison of decoders: a table, perplexity against size, how the best was chosen."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from experiments.render import comparison, frames, methods
from mpojax import compression, figures, files, tables
from mpojax.compression import report as report_lib
from mpojax.training import workdir as workdir_lib

# Methods of this library, whose speed is measured next to the dense model's and of which a text is
# shown; the first such model is the one to go on with.
OURS = ("best", "experts")
# Perplexities are plotted up to so many times the dense model's.
_SHOWN = 50.0
# Perplexities of fewer tokens say that a run works, and little about the models.
_FEW_TOKENS = 2_000
_COLUMNS = {
    "variant": ("label", str),
    "budget": ("budget", str),
    "parameters": ("parameters", "{:,.0f}".format),
    "of matrices": ("matrices_ratio", lambda value: f"{100 * value:.1f} %"),
    "stored": ("stored_bytes", lambda value: f"{value / 1e6:.1f} MB"),
    "perplexity": ("perplexity", lambda value: f"{value:,.2f}" if value < 1e5 else f"{value:.1e}"),
    "decode tokens/s": ("decode_shown", str),
    "prefill tokens/s": ("prefill_shown", str),
    "seconds": ("seconds", "{:.0f}".format),
}


def write(
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    rows: Sequence[dict],
    seconds: float,
) -> str:
    """Writes tables, the figure, the report and `result.json`; returns the text to print."""
    folder = workdir.path
    slim = [{k: v for k, v in row.items() if k != "rows"} for row in rows]
    headers, cells = comparison.cells_of([_with_speed(row) for row in slim], _COLUMNS)
    draw(folder / "plots", slim)
    best = next((row for row in rows if row.get("method") in OURS), rows[-1])
    place = folder / "models" / best["variant"]
    protocol = f"perplexity: {rows[0]['protocol']}, on {config.evaluation.texts}"
    if rows[0].get("tokens", _FEW_TOKENS) < _FEW_TOKENS:
        protocol += (
            f". Too few tokens to compare models by: measure {_FEW_TOKENS:,} or more "
            "(--config.evaluation.num_windows)"
        )
    summary = [
        tables.text(headers, cells, 130, wrap=("variant",)),
        "",
        *(f"{row['variant']}: {row['sample']!r}" for row in rows if row.get("sample")),
        *(f"{row['variant']}: {_choice(row)}" for row in rows if row.get("choice")),
        *(f"{row['variant']}: {note}" for row in rows for note in row.get("notes", ())),
        protocol,
        f"everything is in {folder}: report.md, result.json, plots/, models/",
        f'next: model = mpojax.load("{place}")',
    ]
    files.write_atomic(folder / "summary.txt", "\n".join(summary) + "\n")
    parts = [f"# Compression of {config.model}", tables.markdown(headers, cells), protocol]
    parts.append("![perplexity against size](plots/perplexity.png)")
    for row in rows:
        if row.get("rows"):
            parts.append(f"## {row['label']}, {row['budget']}")
            parts += [_choice(row)] if row.get("choice") else []
            parts += row.get("notes", ())
            parts.append(report_lib.matrix_table(row["rows"]))
    files.write_atomic(folder / "report.md", "\n\n".join(parts) + "\n")
    workdir.write_result({"rows": slim, "seconds": seconds})
    return "\n".join(summary)


def _with_speed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its speeds as a table shows them, in brackets over those of the dense model."""
    found = dict(row)
    for name in ("decode", "prefill"):
        if name in row:
            ratio = row.get(f"{name}_ratio")
            times = "" if ratio is None else f" ({ratio:.2f}x)"
            digits = 0 if row[name] >= 100 else 1
            found[f"{name}_shown"] = f"{row[name]:,.{digits}f}{times}"
    return found


def _choice(row: Mapping[str, Any]) -> str:
    """How the method of a record chose, in a line."""
    return str(compression.Choice(**row["choice"]))


def draw(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Perplexity against parameters, a line for each method, the dense model dotted.

    A method that broke down would press all others together: what is beyond `_SHOWN` times the
    dense model's stands at the upper edge, as an arrow with its number.
    """
    dense, *others = rows
    frame = frames.of(others)
    edge = _SHOWN * dense["perplexity"]
    frame = frame.assign(shown=frame["perplexity"].clip(upper=edge))
    figure, (axes,) = figures.new(1, 1, height=3.6, width=6.0)
    beyond: dict[float, int] = {}  # numbers at the edge, by size: one below the other
    for index, (method, part) in enumerate(frame.groupby("method", sort=False)):
        part = part.sort_values("parameters")
        look = methods.look(method, index, {method: part["label"].iloc[0]})
        axes.plot(part["parameters"] / 1e6, part["shown"], label=look.label, **look.style)
        for _, row in part[part["perplexity"] > edge].iterrows():
            place = row["parameters"] / 1e6, edge
            line = beyond[place[0]] = beyond.get(place[0], 0) + 1
            axes.plot(*place, **look.style | {"marker": "^", "markersize": 9})
            note = {"xytext": (0, -4 - 11 * line), "textcoords": "offset points", "ha": "center"}
            color = look.style["color"]
            axes.annotate(f"{row['perplexity']:.1e}", place, **note, color=color, fontsize=8)
    axes.axhline(dense["perplexity"], color="black", linestyle=":", label="dense")
    axes.plot(dense["parameters"] / 1e6, dense["perplexity"], marker="o", color="black")
    axes.set(xlabel="parameters (millions)", ylabel="perplexity", yscale="log")
    figures.plain_log_ticks(axes.yaxis)
    axes.margins(x=0.1)
    figures.legend(figure)
    figures.save_both(figure, folder / "perplexity")
