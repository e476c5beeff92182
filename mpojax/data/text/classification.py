"""Labelled text in memory: splits and tasks."""

import collections
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import checks
from mpojax.data.sources import readers
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
class Split:
    """One split: N texts, maybe N second texts, and N labels (int32 classes or float32 scores).

    `labels` is None for a published test split without labels.
    """

    texts: Sequence[str]
    labels: np.ndarray | None
    pairs: Sequence[str] | None = None

    def __post_init__(self):
        lengths = {"texts": len(self.texts)}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if self.pairs is not None:
            lengths["pairs"] = len(self.pairs)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"texts, pairs and labels must have equal lengths; got {lengths}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, count: int, seed: int = 0) -> "Split":
        """A fixed random sample of `count` examples; all of them if there are fewer, or for -1.

        Not the first ones: files are often sorted by label or source.

        Raises:
          ValueError: another count below 1.
        """
        return self.select(sample(len(self), count, seed))

    def split_off(self, count: int, seed: int = 0) -> tuple["Split", "Split"]:
        """(the rest, a fixed random sample of `count` examples).

        Raises:
          ValueError: nothing would be left.
        """
        if not 0 < count < len(self):
            raise ValueError(f"cannot split {count} examples off {len(self)}; both parts need some")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(order[count:])), self.select(np.sort(order[:count]))

    def select(self, chosen: np.ndarray) -> "Split":
        """The examples of the given indices, in that order."""
        return Split(
            [self.texts[i] for i in chosen],
            None if self.labels is None else self.labels[chosen],
            None if self.pairs is None else [self.pairs[i] for i in chosen],
        )

    def encode(self, tokenizer: tokenizer_lib.Tokenizer, max_length: int) -> dict[str, np.ndarray]:
        """Token arrays (N, max_length) and, where known, `labels` (N,)."""
        arrays = tokenizer.encode(self.texts, self.pairs, max_length)
        if self.labels is not None:
            arrays["labels"] = self.labels
        return arrays


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A labelled data set and how models are judged on it.

    Attributes:
      name: of the task.
      splits: {name: examples}.
      label_names: of the classes, in the order of their numbers; empty unless a classification.
      kind: "classification" (integer labels), "regression" (one score per example) or "span" (the
        answer is a part of the second text).
      metrics: names of its official metrics, the main one first; () = the usual one of the kind.
      dev_split: the split by which models are compared during development.
    """

    name: str
    splits: Mapping[str, Split]
    label_names: tuple[str, ...]
    kind: str = "classification"
    metrics: tuple[str, ...] = ()
    dev_split: str = "dev"

    def __post_init__(self):
        if self.kind not in METRICS:
            raise ValueError(f"kind={self.kind!r} of task {self.name!r}: allowed are {[*METRICS]}")
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

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise ValueError(
                f"task {self.name!r} has no split {split!r}; has {sorted(self.splits)}"
            )
        return self.splits[split]


def sample(size: int, count: int, seed: int) -> np.ndarray:
    """Ascending indices of a fixed random sample of `count` of `size` examples; -1: all of them."""
    checks.check({"count": count}, {"count": checks.integer(1) | checks.one_of(-1)}, "take")
    return np.sort(np.random.default_rng(seed).permutation(size)[: None if count == -1 else count])


def from_arrays(
    name: str, splits: Mapping[str, tuple[Sequence[str], Sequence[int | str]]]
) -> TextTask:
    """A task from {split: (texts, labels)}; labels are strings or integers 0..C-1.

    Raises:
      ValueError: a label is missing (None, not a number, nothing); names the split and the index.
    """
    classes = {
        split: [
            readers.label_text(label, f"task {name!r}, split {split!r}: labels[{i}]")
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
    if kind not in ("classification", "regression"):
        raise ValueError(f"kind={kind!r}: files may hold 'classification' or 'regression'")
    wanted = {text, label} | ({pair} if pair else set())
    tables = {split: readers.read(path, wanted, quoting=quoting) for split, path in files.items()}
    for table in tables.values():
        if not len(table):
            raise ValueError(f"{table.path} holds no examples")
    labelled = {
        split: table
        for split, table in tables.items()
        if not split.startswith("test")
        or (label in table.header and not all(table.unlabelled(label)))
    }
    names = ()
    if kind == "classification":
        names = tuple(labels) or _names_of_classes(labelled, label)
    splits = {}
    for split, table in tables.items():
        values = None
        if split in labelled:
            values = table.classes(label, names) if names else table.scores(label)
        splits[split] = Split(table.texts(text), values, table.texts(pair) if pair else None)
    return TextTask(name, splits, names, kind, tuple(metrics), dev_split)


def _names_of_classes(tables: Mapping[str, readers.Table], label: str) -> tuple[str, ...]:
    """Of the training split alone where there is one: a misspelt label elsewhere is an error."""
    found = {split: table.labels(label) for split, table in tables.items()}
    of_training = [found["train"]] if "train" in found else found.values()
    labels = [value for values in of_training for value in values]
    names = label_names(labels)
    _warn_of_odd_classes(names, collections.Counter(labels), label)
    return names


def _warn_of_odd_classes(names: Sequence[str], counts: Mapping[str, int], column: str) -> None:
    """Says what a mistake in the labels looks like: scores as classes, a class of one example."""
    whole = sum(map(readers.is_whole_number, names))
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
    if not all(map(readers.is_whole_number, distinct)):
        return tuple(sorted(distinct))
    whole = {readers.whole_number(label) for label in distinct}
    return tuple(sorted(whole, key=lambda label: (int(label), label)))


def to_classes(labels: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Class numbers (N,) int32: the index of each label in `names`."""
    index = readers.class_index(names)
    found = [index(str(label)) for label in labels]
    if None in found:
        unknown = sorted({str(label) for label in labels if index(str(label)) is None})
        raise ValueError(f"unknown labels {unknown[:5]}; allowed are {list(names)}")
    return np.array(found, np.int32)
