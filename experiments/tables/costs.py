"""MPOBERT's tables of costs: what pre-training took (6), and FLOPs of a forward pass (7)."""

from collections.abc import Sequence

from configs.mpobert import finetune
from experiments.tables import published_mpobert, results, scores
from experiments.tables.layout import Row
from experiments.tables.page import Page
from mpojax import mpo
from mpojax.mpo import embedding

LENGTH = 512  # tokens that table 7 counts


def table6(runs: Sequence[results.Run]) -> Page:
    """Size, depth, data and time of pre-training, and GLUE; ours from shapes and from runs."""
    columns = ["model", "", "#To", "depth", "samples", "time", "GLUE dev", "GLUE test"]
    shown, records, notes = [], [], []
    for label, variant, total, *rest in published_mpobert.COSTS:
        what = "published" if variant else "published only"
        shown.append([label, what, f"{total} M", *rest])
        ours = _pretraining(variant, runs) if variant else {}
        if variant:
            names = ("total", "depth", "samples", "time", "glue_dev")
            shown.append(["", "ours", *(_text(ours[name]) for name in names), ""])
        keys = ("depth", "samples", "time", "glue_dev", "glue_test")
        printed = dict(zip(keys, rest, strict=True))
        records.append(
            {"model": label, "published_total_millions": total}
            | {f"published_{key}": value for key, value in printed.items()}
            | ours
        )
    notes += [
        "Samples: rows of a step x steps. Ours of MPOBERT48+: from the last pre-training run (by "
        "path) below --workdir; GLUE dev: mean of eight tasks over our runs of table 1; test "
        "labels are not public.",
        "ALBERT-xxlarge has one stored layer, which runs 12 times; its shapes give 223 M.",
        "MPOBERT48+: the GLUE mean of table 1's test row is 81.61, against BERT-large's 81.6; that "
        "of its development row is 85.15, not 85.6. #To without adapters: see table 1.",
        "published only: this library has no such model.",
    ]
    title = "MPOBERT table 6: cost and data of pre-training"
    source = published_mpobert.MPOBERT
    return Page("mpobert_table6", title, source, columns, shown, records, notes)


def _pretraining(variant: str, runs: Sequence[results.Run]) -> dict:
    config, _ = finetune.encoder(variant)
    found = [
        run
        for run in runs
        if run.result["task"] == "pretraining" and run.config["variant"] == variant
    ]
    row = Row("", "configs/mpobert/finetune.py", variant, {}, tuned=published_mpobert.TUNED)
    ours = {
        "total": finetune.counts(variant)["total"],
        "depth": config.num_layers,
        "samples": None,
        "time": None,
        "glue_dev": scores.average(row, published_mpobert.GLUE, runs) if runs else None,
    }
    if found:
        batch, seconds = found[-1].config["batch_size"], found[-1].result["seconds"]
        ours["samples"] = f"{batch}x{found[-1].result['steps']}"
        ours["time"] = f"{seconds / 3600:.1f} h"
    return ours


def table7() -> Page:
    """GFLOPs of one text of 512 tokens: as the paper counts, and counted alike for all."""
    columns = ["model", "", "GLUE test", "dense", "rebuilding", "GFLOPs", "inference"]
    shown, records = [], []
    for label, variant, glue, printed, inference in published_mpobert.FLOPS:
        config, shapes = finetune.encoder(variant)
        dense = config.num_layers * dense_flops(config.hidden_size, LENGTH) / 1e9
        rebuild = sum(chain_multiply_adds(shape) for shape in shapes.values()) / 1e9
        best = sum(embedding.rebuild_multiply_adds(shape) for shape in shapes.values()) / 1e9
        # What the printed number counts: rebuilding at one FLOP per multiply-add, or not at all.
        decoded = rebuild if variant == "mpobert12" else 0.0
        shown.append([label, "published", glue, "", "", printed, inference])
        for name, part in (
            ("decoded", decoded),
            ("2 per multiply-add", 2 * rebuild),
            ("in the cheaper order", 2 * best),
        ):
            numbers = [f"{value:.2f}" for value in (dense, part, dense + part)]
            if name == "decoded" or shapes:
                shown.append(["", name, "", *numbers, ""])
        records.append(
            {
                "model": label,
                "published_gflops": printed,
                "dense_gflops": dense,
                "rebuild_gmac_chain": rebuild,
                "rebuild_gmac_best": best,
                "decoded_gflops": dense + decoded,
                "consistent_gflops": dense + 2 * rebuild,
                "published_inference": inference,
            }
        )
    notes = [
        f"Dense: layers x (2 x 12 H² x {LENGTH} + 4 x {LENGTH}² H): one text of {LENGTH} tokens, 2 "
        "FLOP per multiply-add, neither embeddings nor heads. Rebuilding: all matrices of all "
        "layers from their cores, once for a batch.",
        "decoded: the count that gives the printed number. It has MPOBERT12's rebuilding at 1 per "
        "multiply-add, in the order of the chain, and leaves MPOBERT48's out.",
        "Rebuilding does not grow with the batch: it costs as much as "
        f"{break_even('mpobert12'):.0f} tokens at H = 768 and {break_even('mpobert48'):.0f} at H "
        "= 1024, and nothing where weights are rebuilt beforehand.",
        "GLUE test: the averages of table 1, of nine tasks, but BERT12's, of eight: 80.17 with "
        "SQuAD. Inference: the paper gives no unit and no batch.",
    ]
    title = "MPOBERT table 7: FLOPs of a forward pass"
    source = published_mpobert.MPOBERT
    return Page("mpobert_table7", title, source, columns, shown, records, notes)


def dense_flops(hidden: int, length: int) -> int:
    """Of one layer and one text: six matrices (12 H²) for every token, and attention."""
    return 2 * 12 * hidden**2 * length + 4 * length**2 * hidden


def chain_multiply_adds(shape: mpo.MPOShape) -> int:
    """Multiply-adds of rebuilding a matrix core by core from the left, as the released code."""
    total, (_, i, j, _), *rest = 0, *shape.core_shapes
    size = i * j
    for left, i, j, right in rest:
        total += size * left * i * j * right
        size *= i * j
    return total


def break_even(variant: str) -> float:
    """Tokens whose dense multiply-adds are those of rebuilding a layer."""
    _, shapes = finetune.encoder(variant)
    layer = [shape for path, shape in shapes.items() if path.startswith("layers/0/")]
    dense = sum(shape.num_dense_params for shape in layer)
    return sum(embedding.rebuild_multiply_adds(shape) for shape in layer) / dense


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else value
