"""The nine GLUE tasks (Wang et al. 2018, arXiv:1804.07461) from a folder in GLUE's own layout.

What tells the tasks apart is data: the table `TASKS`. Classes stand in the order of TensorFlow
Datasets, so that class numbers agree whatever the data is read from.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from mpojax.data import readers, text_classification


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that make up one split, one after another.

    Attributes:
      files: names within the folder of the task.
      header: names of the columns of files without a header line.
      ids: a file of (first id, second id) lines; "" = none. With `inside`, only the examples in it
        count, otherwise only the others.
    """

    files: tuple[str, ...]
    header: tuple[str, ...] | None = None
    ids: str = ""
    inside: bool = True

    def present(self, folder: pathlib.Path) -> bool:
        names = self.files + ((self.ids,) if self.ids else ())
        return all((folder / name).is_file() for name in names)


def _sources(**splits: str) -> dict[str, tuple[Source, ...]]:
    return {split: (Source((name,)),) for split, name in splits.items()}


_USUAL = _sources(train="train.tsv", dev="dev.tsv", test="test.tsv")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """Layout, classes and metrics of one task.

    Attributes:
      folder: name of its folder in GLUE's download.
      columns: of the text and, for pairs, of the second text.
      label: column of the label.
      label_names: of the classes; empty for a regression.
      values: how the classes are written in the files; () = as in `label_names`.
      metrics: the main one first.
      splits: {split: layouts it may have, the first complete one is read}.
      dev_split: see `text_classification.TextTask`.
      score_range: of a regression's labels.
      skip_broken: rows with missing fields are left out, with a warning.
      features: names of the two columns in TensorFlow Datasets; () = as in `columns`.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    values: tuple[str, ...] = ()
    splits: Mapping[str, tuple[Source, ...]] = dataclasses.field(default_factory=lambda: _USUAL)
    dev_split: str = "dev"
    score_range: tuple[float, float] | None = None
    skip_broken: bool = False
    features: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "classification" if self.label_names else "regression"

    def file_names(self) -> tuple[str, ...]:
        """Names of the files that tell the folder of a task from others."""
        sources = [source for split in self.splits.values() for source in split]
        return tuple(name for source in sources for name in source.files)


_COLA = ("source", "label", "star", "sentence")
_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        folder="CoLA",
        columns=("sentence",),
        label="label",
        label_names=("unacceptable", "acceptable"),
        values=("0", "1"),
        metrics=("matthews",),
        splits={
            # GLUE's files, or those of the public corpus, whose two dev files make up GLUE's.
            "train": (Source(("train.tsv",), _COLA), Source(("in_domain_train.tsv",), _COLA)),
            "dev": (
                Source(("dev.tsv",), _COLA),
                Source(("in_domain_dev.tsv", "out_of_domain_dev.tsv"), _COLA),
            ),
            "test": (Source(("test.tsv",)),),
        },
    ),
    "sst2": GlueTask(
        folder="SST-2",
        columns=("sentence",),
        label="label",
        label_names=("negative", "positive"),
        values=("0", "1"),
        metrics=("accuracy",),
    ),
    "mrpc": GlueTask(
        folder="MRPC",
        columns=("#1 String", "#2 String"),
        label="Quality",
        label_names=("not_equivalent", "equivalent"),
        values=("0", "1"),
        metrics=("accuracy", "f1"),
        splits={
            # GLUE's dev set is a part of the original training file, listed in dev_ids.tsv.
            "train": (
                Source(("train.tsv",)),
                Source(("msr_paraphrase_train.txt",), ids="dev_ids.tsv", inside=False),
            ),
            "dev": (
                Source(("dev.tsv",)),
                Source(("val.tsv",)),
                Source(("msr_paraphrase_train.txt",), ids="dev_ids.tsv"),
            ),
            "test": (Source(("test.tsv",)), Source(("msr_paraphrase_test.txt",))),
        },
        features=_PAIR,
    ),
    "stsb": GlueTask(
        folder="STS-B",
        columns=_PAIR,
        label="score",
        label_names=(),
        metrics=("spearman", "pearson"),
        score_range=(0.0, 5.0),
    ),
    "qqp": GlueTask(
        folder="QQP",
        columns=("question1", "question2"),
        label="is_duplicate",
        label_names=("not_duplicate", "duplicate"),
        values=("0", "1"),
        metrics=("accuracy", "f1"),
        skip_broken=True,  # the first release has a few questions with line breaks inside
    ),
    "mnli": GlueTask(
        folder="MNLI",
        columns=_PAIR,
        label="gold_label",
        label_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        splits=_sources(
            train="train.tsv",
            dev_matched="dev_matched.tsv",
            dev_mismatched="dev_mismatched.tsv",
            test_matched="test_matched.tsv",
            test_mismatched="test_mismatched.tsv",
        ),
        dev_split="dev_matched",
        features=("premise", "hypothesis"),
    ),
    "qnli": GlueTask(
        folder="QNLI",
        columns=("question", "sentence"),
        label="label",
        label_names=_ENTAILMENT,
        metrics=("accuracy",),
    ),
    "rte": GlueTask(
        folder="RTE",
        columns=_PAIR,
        label="label",
        label_names=_ENTAILMENT,
        metrics=("accuracy",),
    ),
    "wnli": GlueTask(
        folder="WNLI",
        columns=_PAIR,
        label="label",
        label_names=_ENTAILMENT[::-1],
        values=("0", "1"),
        metrics=("accuracy",),
    ),
}


def load(name: str, folder: str | os.PathLike) -> text_classification.TextTask:
    """One task from its folder of TSV files, e.g. `glue/RTE`.

    The training and development files are needed; the test file is read where it is there, and its
    labels too.

    Raises:
      FileNotFoundError: a needed file is missing; names those that were looked for.
      ValueError: a column is missing, a row is broken, a label is unknown or out of range, a file
        holds no examples; names the file and the line.
    """
    task, folder = TASKS[name], pathlib.Path(folder)
    splits = {}
    for split, sources in task.splits.items():
        source = next((source for source in sources if source.present(folder)), None)
        if source is not None:
            splits[split] = _read_split(task, folder, source, labelled=_needed(split))
        elif _needed(split):
            raise FileNotFoundError(_missing(folder, split, sources))
    return text_classification.TextTask(
        name, splits, task.label_names, task.kind, task.metrics, task.dev_split
    )


def _needed(split: str) -> bool:
    return not split.startswith("test")


def _missing(folder: pathlib.Path, split: str, sources: tuple[Source, ...]) -> str:
    layouts = [
        " and ".join(source.files + ((source.ids,) if source.ids else ())) for source in sources
    ]
    there = sorted(path.name for path in folder.iterdir())
    return f"{folder} needs {', or '.join(layouts)} for the split {split!r}; found {there}"


def _read_split(
    task: GlueTask, folder: pathlib.Path, source: Source, labelled: bool
) -> text_classification.Split:
    parts = [_read_file(task, folder, name, source, labelled) for name in source.files]
    columns = list(zip(*parts, strict=True))
    texts, pairs = [None if c[0] is None else [t for part in c for t in part] for c in columns[:2]]
    labels = None if columns[2][0] is None else np.concatenate(columns[2])
    return text_classification.Split(texts, labels, pairs)


def _read_file(task: GlueTask, folder: pathlib.Path, name: str, source: Source, labelled: bool):
    """(texts, pairs or None, labels or None) of one file."""
    ids = ("#1 ID", "#2 ID") if source.ids else ()
    path = folder / name
    table = readers.read(path, (*task.columns, task.label, *ids), source.header, task.skip_broken)
    if table.skipped:
        logging.warning(
            "%s: rows on lines %s have missing fields and are left out", path, table.skipped
        )
    if not len(table):
        raise ValueError(f"{path} holds no examples")
    texts = table.texts(task.columns[0])
    pairs = table.texts(task.columns[1]) if len(task.columns) > 1 else None
    labels = None
    if labelled or task.label in table.header:
        if task.kind == "regression":
            labels = table.scores(task.label, *task.score_range)
        else:
            labels = table.classes(task.label, task.values or task.label_names)
    if not source.ids:
        return texts, pairs, labels
    listed = _id_pairs(folder / source.ids)
    kept = [
        place
        for place, pair in enumerate(zip(table[ids[0]], table[ids[1]], strict=True))
        if (pair in listed) == source.inside
    ]
    if not kept:
        raise ValueError(
            f"{path} holds no examples of this split: no row fits the ids in {folder / source.ids}"
        )
    return [texts[i] for i in kept], [pairs[i] for i in kept], labels[kept]


def _id_pairs(path: pathlib.Path) -> set[tuple[str, str]]:
    table = readers.read(path, header=("first", "second"))
    return set(zip(table["first"], table["second"], strict=True))
