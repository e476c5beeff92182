"""Tables of examples from .tsv, .csv and .jsonl files, with errors that name the line."""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
    """Chosen columns of one file.

    Attributes:
      path: the file.
      header: names of all its columns.
      columns: {name: one value per example} of the columns that were asked for and are there.
      lines: line of the file on which each example begins, from 1.
      skipped: lines of broken rows that were left out.
    """

    path: pathlib.Path
    header: tuple[str, ...]
    columns: dict[str, list[Any]]
    lines: list[int]
    skipped: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        """One column.

        Raises:
          ValueError: no such column; names the columns that are there.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.path} has no column {name!r}; columns are {sorted(self.header)}"
            )
        return self.columns[name]

    def labels(self, name: str) -> list[str]:
        """A column of labels as text, none of them empty."""
        found = [("" if value is None else str(value)).strip() for value in self[name]]
        for line, value in zip(self.lines, found, strict=True):
            if not value:
                raise ValueError(f"{self.path}, line {line}: {name} is empty; every row needs one")
        return found

    def classes(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Class numbers (N,) int32 of a column of labels: the place of each one in `values`."""
        index = {value: place for place, value in enumerate(values)}
        return self._converted(
            name, lambda text: index.get(text), f"allowed are {list(values)}", np.int32
        )

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
                raise ValueError(
                    f"{self.path}, line {line}: {name!r} is {value!r}, not a string of text"
                )
        return [value.strip() for value in values]

    def _converted(self, name: str, convert, allowed: str, dtype) -> np.ndarray:
        result = np.zeros(len(self), dtype)
        for place, (line, value) in enumerate(zip(self.lines, self[name], strict=True)):
            converted = convert(str(value).strip())
            if converted is None:
                raise ValueError(f"{self.path}, line {line}: {name} is {value!r}; {allowed}")
            result[place] = converted
        return result


def read(
    path: str | os.PathLike,
    wanted: Collection[str] | None = None,
    header: Sequence[str] | None = None,
    skip_broken: bool = False,
) -> Table:
    """Reads a .tsv (or .txt), .csv or .jsonl file, UTF-8, with or without a byte-order mark.

    TSV is read with quoting switched off, CSV with quoting on. Empty lines are no examples.

    Args:
      wanted: names of the columns to keep; None keeps all.
      header: names of the columns of a file without a header line; None takes the first line.
      skip_broken: leaves out TSV rows with another number of fields instead of raising.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file, or a row that does not parse; names file and line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix not in _KINDS:
        raise ValueError(f"{path}: unknown kind {path.suffix!r}; allowed are {sorted(_KINDS)}")
    if path.suffix == ".jsonl":
        return _read_jsonl(path, wanted)
    rows = _KINDS[path.suffix](path)
    if header is None:
        try:
            header = next(rows)[1]
        except StopIteration:
            raise ValueError(f"{path} is empty; its first line must name the columns") from None
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line 1: columns must have different names; got {header}")
    kept = [(place, name) for place, name in enumerate(header) if wanted is None or name in wanted]
    table = Table(path, tuple(header), {name: [] for _, name in kept}, [])
    for line, fields in rows:
        if len(fields) != len(header):
            if skip_broken:
                table.skipped.append(line)
                continue
            raise ValueError(
                f"{path}, line {line}: {len(fields)} fields, expected {len(header)} "
                f"({', '.join(header)})"
            )
        table.lines.append(line)
        for place, name in kept:
            table.columns[name].append(fields[place])
    return table


Row = tuple[int, list[str]]  # line number, fields


def _tsv(path: pathlib.Path) -> Iterator[Row]:
    # Lines end at \n alone: sentences hold stray \r and Unicode separators.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            line = line.removesuffix("\n").removesuffix("\r")
            if line:
                yield number, line.split("\t")


def _csv(path: pathlib.Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_decoded(file, path), strict=True)
        while True:
            first = reader.line_num + 1  # a quoted field may hold line breaks
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"{path}, line {first}: not valid CSV: {error}") from error
            if fields:
                yield first, fields


def _read_jsonl(path: pathlib.Path, wanted: Collection[str] | None) -> Table:
    rows: list[dict] = []
    lines: list[int] = []
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: each line must hold one JSON object")
            rows.append(row)
            lines.append(number)
    header = tuple(rows[0]) if rows else ()
    names = [name for name in header if wanted is None or name in wanted]
    for line, row in zip(lines, rows, strict=True):
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(f"{path}, line {line}: no {missing}; the line has {sorted(row)}")
    return Table(path, header, {name: [row[name] for row in rows] for name in names}, lines)


def _decoded(lines: Iterator[str], path: pathlib.Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; convert it to UTF-8") from error


_KINDS = {".tsv": _tsv, ".txt": _tsv, ".csv": _csv, ".jsonl": None}
