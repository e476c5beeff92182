"""Files of a compression study: records, curves, tables and plots."""

import csv
import io
import json
import pathlib
import statistics

import numpy as np

from experiments import console
from mpojax import files, models, mpo
from mpojax.compression import rules as rules_lib
from mpojax.training import progress as progress_lib

_CAPS = (4, 8, 16, 32, 64, 128, 256)


def write_record(record: pathlib.Path, target: pathlib.Path, model, report) -> dict:
    """Writes and returns the facts of one compressed model: counts, bytes on disk, errors."""
    total = sum(models.count_parameters(model).values())
    facts = report.to_dict() if report else {"dense_parameters": total, "rows": []}
    facts |= {
        "parameters": total,
        "relative_error": report.relative_error if report else 0.0,
        "relative_output_error": report.output_error if report else None,
        "stored_bytes": (target / "model.safetensors").stat().st_size,
    }
    files.write_atomic(record, json.dumps(facts, indent=1) + "\n")
    return facts


def error_curves(folder: pathlib.Path, dense, variants) -> list[dict]:
    """Relative error against bond cap, MPO and low rank with equally many parameters.

    Root mean square over all matrices that the first MPO variant compresses; measured by truncating
    each matrix (float64), not read off bounds. Empty where no variant is in MPO form. Kept in
    `compression/error_vs_bond.csv`.
    """
    path = folder / "compression" / "error_vs_bond.csv"
    if path.is_file():
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        return [{key: float(value) for key, value in row.items()} for row in rows]
    targets = _curve_targets(dense, variants)
    if not targets:
        return []
    arrays = models.to_arrays(dense)
    largest = max(max(target.full.bond_dims) for target in targets)
    caps = [cap for cap in _CAPS if cap < largest]
    squares = {cap: np.zeros(2) for cap in caps}
    numbers = dict.fromkeys(caps, 0)
    with progress_lib.progress("error against bond dimension") as advance:
        for done, target in enumerate(targets, 1):
            w = np.asarray(arrays[models.dense_name(target.path)], np.float64)
            tails = mpo.low_rank_errors(w) ** 2
            for cap in caps:
                shape = target.full.with_bonds(cap)
                squares[cap] += _squared_errors(w, shape, tails)
                numbers[cap] += shape.num_params
            advance(done, len(targets), target.path)
    dense_numbers = sum(target.full.num_dense_params for target in targets)
    curve = [
        {
            "bond": cap,
            "parameters_ratio": numbers[cap] / dense_numbers,
            "mpo_error": float(np.sqrt(squares[cap][0] / len(targets))),
            "svd_error": float(np.sqrt(squares[cap][1] / len(targets))),
        }
        for cap in caps
    ]
    write_csv(path, curve)
    return curve


def _curve_targets(dense, variants):
    sizes = models.matrix_sizes(dense.config)
    for variant in variants:
        if variant.rules:
            targets = rules_lib.resolve(variant.rules, sizes, dense.shapes, None)
            targets = [target for target in targets if not target.settings.is_low_rank]
            if targets:
                return targets
    return []


def _squared_errors(w, shape, tails) -> np.ndarray:
    """Squared relative errors of the chain and of the low rank with at most as many parameters."""
    # Sequential truncation is a projection, and the central core has the norm of the whole chain.
    norm = np.linalg.norm(w)
    kept = np.linalg.norm(mpo.decompose(w, shape)[shape.central]) / norm if norm > 0 else 1.0
    rank = min(shape.num_params // sum(w.shape), len(tails) - 1)
    return np.array([max(0.0, 1.0 - kept**2), tails[rank]])


def comparison_rows(variants, compressed, results) -> list[dict]:
    """One row for each variant: counts, bytes, error and, where trained, accuracy and speed."""
    rows = []
    for variant in variants:
        facts = compressed[variant.name][1]
        row = {
            "variant": variant.name,
            "label": variant.label,
            "total_parameters": facts["parameters"],
            "stored_bytes": facts["stored_bytes"],
            "relative_weight_error": facts["relative_error"],
        }
        if facts.get("relative_output_error") is not None:
            row["relative_output_error"] = facts["relative_output_error"]
        if cells := results.get(variant.name):
            accuracies = [cell["accuracy"] for cell in cells]
            speeds = [c["steps_per_second"] for c in cells if c["steps_per_second"]]
            row |= {
                "total_parameters": cells[0]["total"],
                "trained_parameters": cells[0]["trained"],
                "accuracy": statistics.mean(accuracies),
                "accuracy_spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "seeds": len(cells),
                "steps_per_second": statistics.median(speeds) if speeds else None,
            }
        rows.append(row)
    return rows


def write_all(workdir, config, variants, compressed, results, curves, seconds: float) -> str:
    """Writes tables, plots, report and `result.json`; returns the text to print."""
    folder = workdir.path
    rows = comparison_rows(variants, compressed, results)
    write_csv(folder / "comparison.csv", rows)
    plots = console.plots(folder / "plots", rows, curves)
    table = console.text_table(rows)
    summary = "\n".join([table, "", console.where(folder, config, variants, bool(results))])
    files.write_atomic(folder / "summary.txt", summary + "\n")
    files.write_atomic(
        folder / "report.md", console.markdown(config, rows, variants, compressed, plots)
    )
    result = {
        "rows": rows,
        "error_vs_bond": curves,
        "cells": results,
        "seconds": seconds,
        "compression": {
            name: {k: v for k, v in facts.items() if k != "rows"}
            for name, (_, facts) in compressed.items()
        },
    }
    workdir.write_result(result)
    return summary


def write_csv(path: pathlib.Path, rows: list[dict]) -> None:
    """Rows of one table; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomic(path, buffer.getvalue())
