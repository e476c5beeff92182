"""Labelled text in memory, and the readers that make it from files."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mpojax.data import tokenizer as tokenizer_lib


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
        """A fixed random sample of `count` examples (all, if there are fewer).

        Not the first ones: files are often sorted by label or source.
        """
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
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
    """A labelled data set: named splits and label names (empty for a regression)."""

    name: str
    splits: Mapping[str, Split]
    label_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        return max(1, len(self.label_names))

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise ValueError(
                f"task {self.name!r} has no split {split!r}; has {sorted(self.splits)}"
            )
        return self.splits[split]


def from_arrays(
    name: str, splits: Mapping[str, tuple[Sequence[str], Sequence[int | str]]]
) -> TextTask:
    """A task from {split: (texts, labels)}; labels are strings or integers 0..C-1."""
    names = label_names([label for _, labels in splits.values() for label in labels])
    return TextTask(
        name,
        {
            key: Split(list(texts), to_classes(labels, names))
            for key, (texts, labels) in splits.items()
        },
        names,
    )


def from_files(
    name: str,
    files: Mapping[str, str | os.PathLike],
    text: str = "text",
    label: str = "label",
    pair: str | None = None,
) -> TextTask:
    """A task from one .tsv, .csv or .jsonl file per split, with named columns.

    TSV is read with quoting switched off, CSV with quoting on, both with a header line.
    """
    rows = {split: read_rows(path) for split, path in files.items()}
    wanted = [text, label] + ([pair] if pair else [])
    columns = {}
    for split, split_rows in rows.items():
        for number, row in enumerate(split_rows, 1):
            missing = [c for c in wanted if c not in row]
            if missing:
                raise ValueError(
                    f"{files[split]}, example {number}: no column {missing}; columns are "
                    f"{sorted(row)}"
                )
        columns[split] = {c: [row[c] for row in split_rows] for c in wanted}
    names = label_names([value for split in columns.values() for value in split[label]])
    return TextTask(
        name,
        {
            split: Split(
                values[text], to_classes(values[label], names), values[pair] if pair else None
            )
            for split, values in columns.items()
        },
        names,
    )


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Rows of a .tsv, .csv or .jsonl file as dictionaries."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".tsv":
        return read_tsv(path)
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8-sig") as file:
            return [json.loads(line) for line in file if line.strip()]
    raise ValueError(f"{path}: unknown kind {path.suffix!r}; allowed are .tsv, .csv and .jsonl")


def read_tsv(path: str | os.PathLike, columns: Sequence[str] | None = None) -> list[dict]:
    """Tab-separated rows; quotes are literal characters, a byte-order mark is dropped.

    Args:
      columns: names of the columns of a file without header; None takes the first line as header.

    Raises:
      ValueError: a row with another number of fields than the header; names the line.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        # Split by hand: str.splitlines would also break at rare Unicode separators inside
        # sentences.
        lines = [line.removesuffix("\r") for line in file.read().split("\n")]
    table = [line.split("\t") for line in lines if line]
    header = list(columns) if columns is not None else (table.pop(0) if table else [])
    for number, fields in enumerate(table, 1):
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, row {number}: {len(fields)} fields, expected {len(header)} ({header})"
            )
    return [dict(zip(header, fields, strict=True)) for fields in table]


def label_names(labels: Sequence[int | str]) -> tuple[str, ...]:
    """Sorted distinct labels as strings; whole numbers sort by value."""
    distinct = {str(label) for label in labels}
    if all(label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def to_classes(labels: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Class numbers (N,) int32: the place of each label in `names`."""
    index = {name: place for place, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels} - set(index))
    if unknown:
        raise ValueError(f"unknown labels {unknown[:5]}; allowed are {list(names)}")
    return np.array([index[str(label)] for label in labels], np.int32)
