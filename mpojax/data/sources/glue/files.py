"""The nine GLUE tasks (Wang et al. 2018, arXiv:1804.07461) from a folder of files.

The folder is in GLUE's own layout, or holds files of the hub's data set nyu-mll/glue: train,
validation and test as .tsv, .csv, .jsonl or .parquet, with a column `label` of class numbers. What
tells the tasks apart is data: the table `TASKS`. Classes stand in the order of TensorFlow Datasets
and of the hub, so that class numbers agree whatever the data is read from.
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import files
from mpojax.data.sources import readers, tables
from mpojax.data.text import classification as text_classification


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
      features: names of the two columns in TensorFlow Datasets and on the hub; () = as in
        `columns`.
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

    @property
    def hub_columns(self) -> tuple[str, ...]:
        """Names of all columns in files of the hub, but for that of the row number, `idx`."""
        return (*(self.features or self.columns), _HUB_LABEL)

    def source(self, folder: pathlib.Path, split: str) -> Source | None:
        """The files of a split in a folder, None where there are none."""
        own = (source for source in self.splits[split] if source.present(folder))
        return next(own, None) or _hub_source(folder, split)

    def is_in(self, folder: pathlib.Path) -> bool:
        """True if a folder holds files of the task, by their names."""
        sources = [source for split in self.splits.values() for source in split]
        names = [name for source in sources for name in source.files]
        hub = any(_hub_source(folder, split) for split in self.splits)
        return hub or any((folder / name).is_file() for name in names)

    def fits(self, folder: pathlib.Path) -> bool:
        """True if a folder of any name holds files of the task, by their names and columns."""
        sources = [self.source(folder, split) for split in self.splits if _needed(split)]
        return any(_has_columns(self, folder, source) for source in sources if source)


def hub_split(split: str) -> str:
    """Name of a split at the hub and in TensorFlow Datasets: validation_matched for dev_matched."""
    return re.sub("^dev", "validation", split)


def _hub_source(folder: pathlib.Path, split: str) -> Source | None:
    name = hub_split(split)
    shards = sorted(path.name for path in folder.glob(f"{name}-*-of-*.parquet"))
    whole = [name + suffix for suffix in readers.SUFFIXES if (folder / (name + suffix)).is_file()]
    # One file of any kind stands for all; of Parquet there may be several shards.
    found = whole[:1] or shards
    return Source(tuple(found)) if found else None


_HUB_LABEL = "label"
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
        # On the hub 0 is not_entailment here, but entailment in RTE and QNLI.
        label_names=_ENTAILMENT[::-1],
        values=("0", "1"),
        metrics=("accuracy",),
    ),
}


def load(name: str, folder: str | os.PathLike) -> text_classification.TextTask:
    """One task from its folder of files, e.g. `glue/RTE`.

    The training and development files are needed; the test file is read where it is there, and its
    labels too, unless it has -1 in their place.

    Raises:
      FileNotFoundError: a needed file is missing; names those that were looked for.
      ValueError: a column is missing, a row is broken, a label is unknown or out of range, a file
        holds no examples; names the file and the line.
    """
    task, folder = TASKS[name], files.at(folder)
    splits = {}
    for split, sources in task.splits.items():
        source = task.source(folder, split)
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
    texts, labels, pairs = zip(*parts, strict=True)
    return text_classification.Split(
        list(itertools.chain(*texts)),
        None if labels[0] is None else np.concatenate(labels),
        None if pairs[0] is None else list(itertools.chain(*pairs)),
    )


def _read_file(task: GlueTask, folder: pathlib.Path, name: str, source: Source, labelled: bool):
    """(texts, labels or None, second texts or None) of one file."""
    ids = ("#1 ID", "#2 ID") if source.ids else ()
    path = folder / name
    if _is_of_hub(task, path, source):
        *columns, label = task.hub_columns
        table = readers.read(path, task.hub_columns, quoting="auto")
    else:
        columns, label = task.columns, task.label
        table = readers.read(path, (*columns, label, *ids), source.header, task.skip_broken)
    if table.skipped:
        logging.warning(
            "%s: rows on lines %s have missing fields and are left out", path, table.skipped
        )
    if not len(table):
        raise ValueError(f"{path} holds no examples")
    texts, labels, pairs = columns_of(task, table, columns, label, labelled=labelled)
    if not source.ids:
        return texts, labels, pairs
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
    return [texts[i] for i in kept], labels[kept], [pairs[i] for i in kept]


def columns_of(
    task: GlueTask, table: tables.Table, columns: Sequence[str], label: str, *, labelled: bool
):
    """(texts, labels or None, second texts or None) of a table.

    Args:
      columns, label: names of the texts and of the label in the table.
      labelled: whether labels are needed; else they may be missing, or -1.
    """
    texts, labels = table.texts(columns[0]), None
    pairs = table.texts(columns[1]) if len(columns) > 1 else None
    if labelled or (label in table.header and not any(table.unlabelled(label))):
        if task.kind == "regression":
            labels = table.scores(label, *task.score_range)
        else:
            labels = table.classes(label, _written(task, table[label]))
    return texts, labels, pairs


def _is_of_hub(task: GlueTask, path: pathlib.Path, source: Source) -> bool:
    """True if a file has the columns of the hub, not those of GLUE's own file of that name."""
    if path.suffix not in (".tsv", ".txt"):
        return True
    header = readers.read_header(path)
    is_own = source.header is None and {*task.columns, task.label} <= set(header)
    return set(task.hub_columns) <= set(header) and ("idx" in header or not is_own)


def _has_columns(task: GlueTask, folder: pathlib.Path, source: Source) -> bool:
    try:
        header = readers.read_header(folder / source.files[0])
    except (ImportError, ValueError):  # perhaps a file of something else, which may be damaged
        return False
    if source.header and len(header) == len(source.header):
        return header[source.header.index(task.label)] in task.values
    return any(set(names) <= {*header} for names in (task.hub_columns, (*task.columns, task.label)))


def _written(task: GlueTask, labels: Sequence) -> tuple[str, ...]:
    """The classes as a column writes them: by number, by name, or as GLUE's own files do."""
    found = {str(label).strip() for label in labels}
    if all(map(tables.is_whole_number, found)):
        return tuple(map(str, range(len(task.label_names))))
    return task.label_names if found & {*task.label_names} else task.values or task.label_names


def _id_pairs(path: pathlib.Path) -> set[tuple[str, str]]:
    table = readers.read(path, header=("first", "second"))
    return set(zip(table["first"], table["second"], strict=True))
