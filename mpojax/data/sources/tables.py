"""Columns of examples in memory: texts, classes and scores; errors name file and line."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpojax import checks

# What programs write where a value is missing, in lower case.
_MISSING = ("nan", "<na>")
_WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,100})(\.0+)?")  # longer ones sort as text


@dataclasses.dataclass(frozen=True)
class Table:
    """Chosen columns of one file.

    Attributes:
      path: the file.
      header: names of all its columns.
      columns: {name: one value per example} of the columns that were asked for and are there.
      lines: line of the file on which each example begins, from 1; of Parquet, its row.
      skipped: lines of broken rows that were left out.
      unit: what `lines` count, in messages.
    """

    path: pathlib.Path | str
    header: tuple[str, ...]
    columns: dict[str, list[Any]]
    lines: list[int]
    skipped: list[int] = dataclasses.field(default_factory=list)
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        """One column.

        Raises:
          ValueError: no such column; names the columns that are there.
        """
        if name not in self.columns:
            advice = checks.did_you_mean(name, map(str, self.header))
            if len(self.header) == 1 and ";" in self.header[0]:
                advice = ": it seems to be separated by ';', save it with commas"
            raise ValueError(
                f"{self.path} has no column {name!r}; columns are {sorted(self.header)}{advice}"
            )
        return self.columns[name]

    def labels(self, name: str) -> list[str]:
        """A column of labels as text, none of them missing."""
        return [
            label_text(
                value,
                f"{self.path}, {self.unit} {line}: {name}",
                ", or name all classes (labels=...)",
            )
            for line, value in zip(self.lines, self[name], strict=True)
        ]

    def unlabelled(self, name: str) -> list[bool]:
        """True for each label that is -1, which stands for one that is not published."""
        return [str(value).strip() in ("-1", "-1.0") for value in self[name]]

    def classes(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Class numbers (N,) int32 of a column of labels: the index of each one in `values`.

        Whole numbers may be written with or without a decimal point: 1.0 is 1.
        """
        return self._converted(name, class_index(values), f"allowed are {_shown(values)}", np.int32)

    def scores(self, name: str, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
        """Numbers (N,) float32 of a column of scores, each finite and from `low` to `high`."""

        def convert(text: str) -> float | None:
            try:
                number = float(text)
            except ValueError:
                return None
            return number if math.isfinite(number) and low <= number <= high else None

        limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        return self._converted(name, convert, f"a number{limits} is needed", np.float32)

    def texts(self, name: str) -> list[str]:
        """A column of strings without spaces around them."""
        values = self[name]
        for line, value in zip(self.lines, values, strict=True):
            if not isinstance(value, str):
                found = checks.shortened(value)
                raise ValueError(
                    f"{self.path}, {self.unit} {line}: {name!r} is {found}, not a string of text"
                )
        return [value.strip() for value in values]

    def _converted(self, name: str, convert, allowed: str, dtype) -> np.ndarray:
        result = np.zeros(len(self), dtype)
        for place, (line, value) in enumerate(zip(self.lines, self[name], strict=True)):
            is_plain = not isinstance(value, (list, dict))
            converted = convert(str(value).strip()) if is_plain else None
            if converted is None:
                found = checks.shortened(value)
                raise ValueError(f"{self.path}, {self.unit} {line}: {name} is {found}; {allowed}")
            result[place] = converted
        return result


def label_text(label: Any, where: str, other_cure: str = "") -> str:
    """A label as text without spaces around it.

    Raises:
      ValueError: it is missing, or a list or a dict; begins with `where`.
    """
    if isinstance(label, (list, dict)):
        found = checks.shortened(label)
        raise ValueError(f"{where} is {found}; a label must be a text or a number")
    text = "" if label is None else str(label).strip()
    if not text:
        raise ValueError(f"{where} is empty; every row needs one")
    if text.lower() in _MISSING:
        raise ValueError(
            f"{where} is {text!r}, which stands for a missing value; fill it in, or leave the row "
            f"out{other_cure}"
        )
    return text


def is_whole_number(text: str) -> bool:
    """True if a label is a whole number in ASCII digits, maybe with zeros after the point."""
    return _WHOLE_NUMBER.fullmatch(text) is not None


def whole_number(text: str) -> str:
    """`1.0` as `1`, as programs differ in how they write whole numbers; other texts unchanged."""
    found = _WHOLE_NUMBER.fullmatch(text)
    return found[1] if found else text


def _shown(values: Sequence[str]) -> str:
    """A list of classes in a message, and what to do where they look like scores."""
    if len(values) <= 10:
        return str(list(values))
    shown = checks.listed([repr(value) for value in values])
    return f"[{shown}]; numbers that are scores want kind=regression"


def class_index(names: Sequence[str]) -> Callable[[str], int | None]:
    """Maps a label to the index of its name, None where there is no such name."""
    index = {whole_number(name): i for i, name in enumerate(names)}
    index |= {name: i for i, name in enumerate(names)}  # the exact name comes first
    return lambda text: index.get(text, index.get(whole_number(text)))
