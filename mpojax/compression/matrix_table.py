"""Compressed matrices as Markdown, and how their numbers are written."""

from collections.abc import Mapping, Sequence


def matrix_table(rows: Sequence[Mapping]) -> str:
    """Markdown table of the rows of `CompressionReport.to_dict`, also when read back from JSON.

    Columns of output errors appear where a row has them.
    """
    names = ["size", "in factors", "out factors", "bonds", "parameters", "ratio", "error"]
    names += ["SVD error", "bound", "entropy"]
    outputs = ("output_error", "svd_output_error", "data_svd_output_error")
    with_outputs = any(row.get("output_error") is not None for row in rows)
    if with_outputs:
        names += ["output error", "SVD output error", "data-aware SVD output error", "method"]
    lines = [f"| matrix | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for row in rows:
        cells = [
            f"`{row['path']}`",
            f"{row['in_features']}×{row['out_features']}",
            commas(row["in_factors"]),
            commas(row["out_factors"]),
            commas(row["bonds"]),
            f"{row['dense_parameters']:,} → {row['mpo_parameters']:,}",
            f"{row['ratio']:.3f}",
            format_error(row["relative_error"]),
            format_error(row.get("svd_error")),
            format_error(row["error_bound"]),
            decimals(row["entropy"]),
        ]
        if with_outputs:
            cells += [*(format_error(row.get(name)) for name in outputs), row["method"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_error(value: float | None) -> str:
    """Four decimals, or two digits where those would be zeros; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def commas(values) -> str:
    """1,2,3."""
    return ",".join(map(str, values))


def decimals(values) -> str:
    """1.00 2.00."""
    return " ".join(f"{value:.2f}" for value in values)


def spaced(values) -> str:
    """1 2 3."""
    return " ".join(map(str, values))
