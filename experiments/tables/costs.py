"""MPOBERT's tables of costs: what pre-training took (6), and FLOPs of a forward pass (7)."""

from collections.abc import Sequence

from configs.mpobert import finetune
from experiments.tables import results, schema, scores
from experiments.tables.page import Page
from experiments.tables.schema import Row
from mpojax import mpo
from mpojax.mpo import embedding

LENGTH = 512  # tokens that table 7 counts


def table6(runs: Sequence[results.Run]) -> Page:
    """Size, depth, data and time of pre-training, and GLUE; ours from shapes and from runs."""
    table = schema.load("mpobert_table6")
    keys = [column.key for column in table.columns]
    shown, records = [], []
    for row in table.rows:
        printed = [row.scores.get(key, "") for key in keys]
        what = "published" if row.config else scores.NOT_HERE
        shown.append([row.label, what, f"{row.total} M", *printed])
        ours = _pretraining(row, runs) if row.config else {}
        if row.config:
            shown.append(["", "ours", *map(_text, ours.values()), ""])
        records.append(
            {"model": row.label, "published_total_millions": row.total}
            | {f"published_{key}": value for key, value in zip(keys, printed, strict=True)}
            | ours
        )
    columns = ["model", "", "#To", *(column.header for column in table.columns)]
    return Page(table, columns, shown, records, table.notes)


def _pretraining(row: Row, runs: Sequence[results.Run]) -> dict:
    columns = schema.load("mpobert_table6").run_columns
    ours = {
        "total": finetune.counts(row.variant)["total"],
        "depth": finetune.encoder(row.variant)[0].num_layers,
        "samples": None,
        "time": None,
        "glue_dev": scores.average(row, columns, runs) if runs else None,
    }
    for run in runs:  # the last one counts
        if run.result["task"] == "pretraining" and run.config["variant"] == row.variant:
            ours["samples"] = f"{run.config['batch_size']}x{run.result['steps']}"
            ours["time"] = f"{run.result['seconds'] / 3600:.1f} h"
    return ours


def table7() -> Page:
    """GFLOPs of one text of 512 tokens: as the paper counts, and counted alike for all."""
    table = schema.load("mpobert_table7")
    columns = ["model", "", "GLUE test", "dense", "rebuilding", "GFLOPs", "inference"]
    shown, records = [], []
    for row in table.rows:
        config, shapes = finetune.encoder(row.variant)
        dense = config.num_layers * dense_flops(config.hidden_size, LENGTH) / 1e9
        rebuild = sum(chain_multiply_adds(shape) for shape in shapes.values()) / 1e9
        # `rebuild` is from the left, as in the released code, `best` in the library's order.
        best = sum(embedding.rebuild_multiply_adds(shape) for shape in shapes.values()) / 1e9
        # The printed number has rebuilding at one FLOP per multiply-add, or not at all.
        decoded = rebuild if row.variant == "mpobert12" else 0.0
        glue, gflops, inference = row.scores.values()
        shown.append([row.label, "published", glue, "", "", gflops, inference])
        parts = {"decoded": decoded}
        if shapes:
            parts |= {"2 per multiply-add": 2 * rebuild, "in the cheaper order": 2 * best}
        for name, part in parts.items():
            numbers = [f"{value:.2f}" for value in (dense, part, dense + part)]
            shown.append(["", name, "", *numbers, ""])
        records.append(
            {
                "model": row.label,
                "published_gflops": gflops,
                "dense_gflops": dense,
                "rebuild_gmac_chain": rebuild,
                "rebuild_gmac_best": best,
                "decoded_gflops": dense + decoded,
                "consistent_gflops": dense + 2 * rebuild,
                "published_inference": inference,
            }
        )
    return Page(table, columns, shown, records, table.notes)


def dense_flops(hidden: int, length: int) -> int:
    """FLOPs of one layer and one text: 2 (12 H²) L for six matrices, 4 L² H for attention."""
    return 2 * 12 * hidden**2 * length + 4 * length**2 * hidden


def chain_multiply_adds(shape: mpo.MPOShape) -> int:
    """Multiply-adds of rebuilding a matrix core by core from the left, as the released code."""
    # What is made so far is (size, left); multiplying it with a core (left, i, j, right) takes
    # size * left * i * j * right.
    total, (_, i, j, _), *rest = 0, *shape.core_shapes
    size = i * j
    for left, i, j, right in rest:
        total += size * left * i * j * right
        size *= i * j
    return total


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else value
