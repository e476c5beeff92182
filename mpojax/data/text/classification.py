"""Labelled text in memory: splits and tasks."""

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import checks
from mpojax.data.sources import readers, tables
from mpojax.data.text import task as task_lib
from mpojax.data.tokenizers import tokenizer as tokenizer_lib

# Metrics of each kind of task that says nothing else, the main one first.
DEFAULT_METRICS = {
    "classification": ("accuracy",),
    "regression": ("spearman", "pearson"),
    "span": ("f1", "exact_match"),
}
METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "span": ("f1", "exact_match"),
}


@dataclasses.dataclass(frozen=True)
class Split(task_lib.Examples):
    """One split: N texts, maybe N second texts, and N labels (int32 classes or float32 scores).

    `labels` is None for a published test split without labels.
    """

    texts: Sequence[str]
    labels: np.ndarray | None
    pairs: Sequence[str] | None = None

    def __post_init__(self):
        columns = {"texts": self.texts, "pairs": self.pairs, "labels": self.labels}
        task_lib.check_lengths(columns)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, chosen: np.ndarray) -> "Split":
        columns = (self.texts, self.labels, self.pairs)
        return Split(*(task_lib.chosen_of(column, chosen) for column in columns))

    def encode(self, tokenizer: tokenizer_lib.Tokenizer, max_length: int) -> dict[str, np.ndarray]:
        """Token arrays (N, max_length) and, where known, `labels` (N,)."""
        arrays = tokenizer.encode(self.texts, self.pairs, max_length)
        if self.labels is not None:
            arrays["labels"] = self.labels
        return arrays


@dataclasses.dataclass(frozen=True)
class TextTask(task_lib.Task):
    """A labelled data set and how models are judged on it.

    Attributes:
      label_names: of the classes, in the order of their numbers; empty unless a classification.
      kind: "classification" (integer labels), "regression" (one score per example) or "span" (the
        answer is a part of the second text).
      metrics: names of its official metrics, the main one first; () = the usual one of the kind.
      dev_split: the split by which models are compared during development.
    """

    label_names: tuple[str, ...]
    kind: str = "classification"
    metrics: tuple[str, ...] = ()
    dev_split: str = "dev"

    def __post_init__(self):
        where = f"task {self.name!r}"
        checks.check({"kind": self.kind}, {"kind": checks.one_of(*METRICS)}, where)
        if bool(self.label_names) != (self.kind == "classification"):
            raise ValueError(
                f"task {self.name!r} is a {self.kind}: label_names={self.label_names} must "
                + ("name its classes" if self.kind == "classification" else "be empty")
            )
        metrics = tuple(self.metrics) or DEFAULT_METRICS[self.kind]
        unknown = [metric for metric in metrics if metric not in METRICS[self.kind]]
        if unknown:
            raise ValueError(
                f"metrics {unknown} of task {self.name!r}: a {self.kind} has "
                f"{list(METRICS[self.kind])}"
            )
        if "f1" in metrics and self.kind == "classification" and len(self.label_names) != 2:
            raise ValueError(
                f"task {self.name!r} has the classes {list(self.label_names)}: the metric 'f1' "
                "needs two, the second one counting as positive"
            )
        object.__setattr__(self, "metrics", metrics)

    @property
    def num_labels(self) -> int:
        """Outputs of a model's head: classes, 1 for a score, 2 (start, end) for a span."""
        return {"classification": len(self.label_names), "regression": 1, "span": 2}[self.kind]


def few_shot(
    task: TextTask,
    split: Split,
    shots: int,
    subset_seed: int = 0,
) -> Split:
    """`shots` examples of every class of a split; of a task without classes, `shots` in all.

    A pure function of the task's name, the split, `shots` and `subset_seed`. Of one
    seed, more shots give the same examples and further ones; seeds are independent.

    Args:
      task: of the split.
      split: labelled examples.
      shots: at least 1.
      subset_seed: which of the random subsets, from 0.

    Raises:
      ValueError: a number out of range, no labels, or a class with too few examples.
    """
    checks.check_value("shots", shots, checks.integer(1))
    checks.check_value("subset_seed", subset_seed, checks.integer(0))
    if split.labels is None:
        raise ValueError(f"the split of task {task.name!r} has no labels to draw examples by")
    groups = {"all": np.arange(len(split))}
    if task.kind == "classification":
        groups = {
            name: np.flatnonzero(split.labels == number)
            for number, name in enumerate(task.label_names)
        }
    few = {name: len(places) for name, places in groups.items() if len(places) < shots}
    if few:
        raise ValueError(
            f"shots={shots}: task {task.name!r} has too few examples of {few}; ask for at most "
            f"{min(few.values())}"
        )
    word = int.from_bytes(hashlib.sha256(task.name.encode("utf-8")).digest()[:8], "big")
    chosen = [
        # A prefix of one permutation: more shots keep the examples of fewer.
        np.random.default_rng([word, subset_seed, number]).permutation(places)[:shots]
        for number, places in enumerate(groups.values())
    ]
    return split.select(np.sort(np.concatenate(chosen)))


def from_arrays(
    name: str, splits: Mapping[str, tuple[Sequence[str], Sequence[int | str]]]
) -> TextTask:
    """A task from {split: (texts, labels)}; labels are strings or integers 0..C-1.

    >>> task = from_arrays("mood", {"train": (["good", "bad"], ["pos", "neg"])})
    >>> task.label_names, task["train"].labels
    (('neg', 'pos'), array([1, 0], dtype=int32))

    Raises:
      ValueError: a label is missing (None, not a number, nothing); names the split and the index.
    """
    classes = {
        split: [
            tables.label_text(label, f"task {name!r}, split {split!r}: labels[{i}]")
            for i, label in enumerate(labels)
        ]
        for split, (_, labels) in splits.items()
    }
    names = label_names([label for labels in classes.values() for label in labels])
    return TextTask(
        name,
        {
            split: Split(list(texts), to_classes(classes[split], names))
            for split, (texts, _) in splits.items()
        },
        names,
    )


def from_files(
    name: str,
    files: Mapping[str, str | os.PathLike],
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
    *,
    kind: str = "classification",
    labels: Sequence[str] = (),
    metrics: Sequence[str] = (),
    dev_split: str = "dev",
    quoting: str = "auto",
) -> TextTask:
    """A task from one .tsv, .csv, .jsonl or .parquet file per split, with named columns.

    TSV and CSV have a header line.

    Args:
      text, pair, label: columns of the text, of a second text, and of the label. Only a split
        whose name begins with "test" may lack the labels, or have -1 in place of all of them.
      kind: "classification" or "regression" (labels are numbers).
      labels: names of the classes in the order of their numbers; by default all labels of the
        training split (of all splits where there is none), sorted, whole numbers by value.
      metrics, dev_split: see `TextTask`.
      quoting: of .tsv files, "auto", "on" or "off": see `readers.read`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a row does not parse, a column is missing, a split is empty, a label is unknown or
        no number; names the file and, where there is one, the line.
    """
    checks.check_value("kind", kind, checks.one_of("classification", "regression"))
    wanted = {text, label} | ({pair} if pair else set())
    by_split = {split: readers.read(path, wanted, quoting=quoting) for split, path in files.items()}
    for table in by_split.values():
        if not len(table):
            raise ValueError(f"{table.path} holds no examples")
    labelled = {
        split: table
        for split, table in by_split.items()
        if not split.startswith("test")
        or (label in table.header and not all(table.unlabelled(label)))
    }
    names = ()
    if kind == "classification":
        names = tuple(labels) or _names_of_classes(labelled, label)
    splits = {}
    for split, table in by_split.items():
        values = None
        if split in labelled:
            values = table.classes(label, names) if names else table.scores(label)
        splits[split] = Split(table.texts(text), values, table.texts(pair) if pair else None)
    return TextTask(name, splits, names, kind, tuple(metrics), dev_split)


def _names_of_classes(by_split: Mapping[str, tables.Table], label: str) -> tuple[str, ...]:
    """Of the training split alone where there is one: a misspelt label elsewhere is an error."""
    found = {split: table.labels(label) for split, table in by_split.items()}
    of_training = [found["train"]] if "train" in found else found.values()
    labels = [value for values in of_training for value in values]
    names = label_names(labels)
    _warn_of_odd_classes(names, collections.Counter(labels), label)
    return names


def _warn_of_odd_classes(names: Sequence[str], counts: Mapping[str, int], column: str) -> None:
    """Says what a mistake in the labels looks like: scores as classes, a class of one example."""
    whole = sum(map(tables.is_whole_number, names))
    if len(names) > 10 and whole < len(names) and all(map(_is_number, names)):
        logging.warning(
            "column %r holds %d different numbers, each a class of its own; scores want "
            "kind=regression",
            *(column, len(names)),
        )
        return
    alone = [name for name in names if counts.get(name) == 1]
    if alone and len(names) > 2 and max(counts.values()) > 10:
        logging.warning(
            "only one training example of class %s (of %s): is it misspelt?",
            *(checks.listed([repr(name) for name in alone]), checks.listed(names)),
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def label_names(labels: Sequence[int | str]) -> tuple[str, ...]:
    """Sorted distinct labels as strings; whole numbers sort by value, and 1.0 is 1."""
    distinct = {str(label) for label in labels}
    if not all(map(tables.is_whole_number, distinct)):
        return tuple(sorted(distinct))
    whole = {tables.whole_number(label) for label in distinct}
    # By value: 2 before 10.
    return tuple(sorted(whole, key=lambda label: (int(label), label)))


def to_classes(labels: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Class numbers (N,) int32: the index of each label in `names`."""
    index = tables.class_index(names)
    found = [index(str(label)) for label in labels]
    if None in found:
        unknown = sorted({str(label) for label in labels if index(str(label)) is None})
        raise ValueError(f"unknown labels {unknown[:5]}; allowed are {list(names)}")
    return np.array(found, np.int32)
