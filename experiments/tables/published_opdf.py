"""Published values of table 1 of the OPDF paper, as data. Nothing here is measured by this library.

Source: "Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation",
NeurIPS 2024; numbers are text, so that the digits are those of the paper.
"""

import statistics
from collections.abc import Sequence

from configs.opdf import bert
from experiments.tables.layout import Column, Row, Table, read_scores
from mpojax import models
from mpojax.methods import mpop, opdf

OPDF = "OPDF, NeurIPS 2024"
# L of each task: RTE, MRPC, STS-B, CoLA, SST-2, QNLI, QQP, MNLI (tables S.3 and S.4).
UNITS = {
    "theseus": tuple(task.num_inner_cores for task in bert.TASKS.values()),
    "lgtm": (3, 3, 3, 4, 3, 3, 1, 3),
    "dbkd": (4, 8, 7, 5, 8, 4, 8),  # no STS-B
    "adkd": (8, 3, 6, 1, 3, 3, 3, 4),
}
LAYERS = {"theseus": 6, "lgtm": 6, "dbkd": 4, "adkd": 6}

COLUMNS = (
    Column("rte", "RTE", "accuracy"),
    Column("mrpc", "MRPC F1", "f1", part="f1"),
    Column("mrpc", "MRPC acc", "accuracy", part="accuracy"),
    Column("stsb", "STS-B r, ρ", "pearson+spearman"),
    Column("cola", "CoLA mcc", "matthews"),
    Column("sst2", "SST-2", "accuracy"),
    Column("qnli", "QNLI", "accuracy"),
    Column("qqp", "QQP F1", "f1", part="f1"),
    Column("qqp", "QQP acc", "accuracy", part="accuracy"),
    Column("mnli", "MNLI m", "accuracy"),
)


def numbers(layers: int, num_inner_cores: int | None) -> int:
    """Of a BERT of some layers with a head of two classes; `num_inner_cores` None: dense."""
    config = models.EncoderConfig(
        *(30_522, 768, layers, 12, 3072), max_positions=512, pooling="pooler", num_labels=2
    )
    shapes = {}
    if num_inner_cores is not None:
        shapes = opdf.planned_shapes(config, opdf.Settings(num_inner_cores=num_inner_cores))
    return sum(models.count_parameters(mpop.abstract(config, shapes)).values())


def mean_numbers(layers: int, num_inner_cores: Sequence[int]) -> float:
    """Trained parameters, mean over tasks: they are affine in L."""
    first, second = (numbers(layers, num_inner_cores=u) for u in (0, 1))
    return first + (second - first) * statistics.fmean(num_inner_cores)


def counts(variant: str) -> dict[str, float]:
    """{"trainable": while training, mean over tasks; "total": after merging} of a row."""
    if variant == "dense":
        dense = numbers(12, None)
        return {"trainable": dense, "total": dense}
    host, _, how = variant.partition("_")
    layers = LAYERS[host]
    dense = numbers(layers, None)
    num_inner_cores = (0,) if how == "svd" else UNITS[host]
    return {"trainable": mean_numbers(layers, num_inner_cores) if how else dense, "total": dense}


_NOTES = {
    "BERT-base": "The mean of the printed scores is 82.60, not 83.4: that AD-KD +OPDF equals its "
    "teacher rests on this figure; by the mean it is .8 above.",
    "Theseus": "66 is the count cut off instead of rounded, as in the next two rows. CoLA: re-run "
    "by the authors.",
    "Theseus +OPDF": "#Pr: 160 is nearest to six layers at L = 3, 162.5 M; the published L of each "
    "task have a mean of 171.5 M (shown).",
    "LGTM": "STS-B and CoLA: re-run by the authors.",
    "LGTM +OPDF": "#Pr: 163 is six layers at L = 3, 162.5 M; the published L of each task have a "
    "mean of 159.5 M. One of the authors' logs (seed 42) ends at just this pair of MRPC.",
    "DBKD +SVD": "#Pr: four layers at L = 0 have 68.7 M.",
    "DBKD +OPDF": "#Pr: 83 is nearest to four layers at L = 1, 84.6 M; the published L are 4 to 8, "
    "a mean of 168.8 M.",
    "AD-KD +SVD": "The mean of the printed scores is 82.45.",
    "AD-KD +OPDF": "#Pr: the published L of each task have a mean of 183.4 M.",
}
# Label, config, variant, scores in the order of the columns, average, #Pr, #To.
_ROWS = (
    (
        "BERT-base",
        "dense",
        "70.5 86.5 81.8 86.6 54.2 92.0 91.2 88.0 91.0 84.2",
        "83.4",
        "110",
        "110",
    ),
    ("Theseus", "theseus", "65.5 85.3 79.6 86.2 39.2 90.4 88.7 86.1 89.6 81.5", "79.2", "66", "66"),
    (
        *("Theseus +SVD", "theseus_svd", "65.5 85.4 80.0 86.5 43.1 90.6 88.6 86.2 89.7 80.3"),
        *("79.6", "90", "66"),
    ),
    (
        *("Theseus +OPDF", "theseus_opdf", "66.2 85.9 80.5 88.6 45.2 91.3 89.0 86.8 90.2 81.4"),
        *("80.5", "160", "66"),
    ),
    ("LGTM", "", "63.3 86.3 80.1 82.9 33.9 91.1 89.3 88.0 91.1 82.2", "78.8", "67", "67"),
    ("LGTM +SVD", "", "64.7 86.8 81.9 83.1 37.4 91.2 88.6 86.5 89.4 79.3", "78.9", "91", "67"),
    ("LGTM +OPDF", "", "66.9 87.8 82.4 83.3 38.9 91.5 88.7 87.0 90.2 80.9", "79.8", "163", "67"),
    ("DBKD", "", "61.2 83.3 75.5 - 25.2 88.1 86.1 85.3 88.7 76.1", "74.4", "53", "53"),
    ("DBKD +SVD", "", "64.7 86.5 78.6 - 26.4 88.8 85.8 85.5 89.0 76.5", "75.8", "69", "53"),
    ("DBKD +OPDF", "", "69.1 88.4 83.3 - 27.2 89.8 86.5 86.9 90.2 77.7", "77.6", "83", "53"),
    ("AD-KD", "", "68.8 88.7 84.3 89.3 53.1 91.5 90.8 85.9 89.5 81.7", "82.4", "67", "67"),
    ("AD-KD +SVD", "", "69.4 89.3 85.8 88.8 53.5 89.9 90.1 86.4 89.8 81.5", "82.6", "91", "67"),
    ("AD-KD +OPDF", "", "71.7 90.3 86.8 88.9 55.0 91.3 91.1 86.8 90.0 82.1", "83.4", "182", "67"),
)


def _row(label, variant, scores, average, trained, total) -> Row:
    teacher = variant == "dense"
    file = "configs/mpop/bert.py" if teacher else "configs/opdf/bert.py"
    return Row(
        label,
        file if variant else "",
        variant,
        read_scores(COLUMNS, scores),
        trained,
        total,
        average,
        _NOTES.get(label, ""),
        runner="finetune" if teacher else "distill",
    )


TABLE1 = Table(
    "opdf_table1",
    "OPDF table 1: BERT-base into students of six (DBKD: four) layers, GLUE",
    OPDF,
    COLUMNS,
    tuple(_row(*row) for row in _ROWS),
    has_average=True,
    counts=counts,
    notes=(
        "#Pr: while training; #To: after merging. avg: the mean of all printed scores (10; DBKD "
        "9).",
        "Published: test is one half of GLUE's development set, means of five seeds without a "
        "spread; Theseus selects on the whole development set. MNLI: published is the mean of "
        "both parts. Ours: whole development set, last state; MNLI matched alone.",
        "Settings of Theseus: the first of those in the authors' code and logs. LGTM, DBKD and "
        "AD-KD are no methods of this library; a student of logits and hidden states is "
        "`configs/opdf/base.py`.",
    ),
)
SCORES = {TABLE1.name: TABLE1}
