"""Tables of examples from .tsv, .csv, .jsonl and .parquet files; errors name file and line."""

import contextlib
import csv
import math
import os
import pathlib
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from mpojax import checks, files
from mpojax.data.sources.tables import Table

QUOTINGS = ("off", "on", "auto")


def read(
    path: str | os.PathLike,
    wanted: Collection[str] | None = None,
    header: Sequence[str] | None = None,
    skip_broken: bool = False,
    quoting: str = "off",
) -> Table:
    """Reads a .tsv (or .txt), .csv, .jsonl or .parquet file, text as UTF-8 with or without a BOM.

    Empty lines are no examples. Parquet needs the package pyarrow.

    Args:
      wanted: names of the columns to keep; None keeps all.
      header: names of the columns of a file without a header line; None takes the first line.
      skip_broken: leaves out TSV rows with another number of fields instead of raising.
      quoting: of TSV (CSV is always read with quoting). "off": quotes are text. "on": a field in
        quotes may hold tabs and line breaks, and quotes in it are doubled. "auto": "on" for files
        that can only have been written so, see `looks_quoted`.

    Raises:
      FileNotFoundError: no such file.
      ImportError: a Parquet file without pyarrow installed.
      ValueError: another kind of file, or a row that does not parse; names file and line.
    """
    path = files.at(path)
    checks.check({"quoting": quoting}, {"quoting": checks.one_of(*QUOTINGS)}, str(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    path = files.local(path)
    files.check_fetched(path)
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return _TABLES[suffix](path, wanted)
    if suffix not in _ROWS:
        known = sorted([*_TABLES, *_ROWS])
        raise ValueError(f"{path}: unknown kind {path.suffix!r}; allowed are {known}")
    rows = iter(_ROWS[suffix](path, quoting))
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


def read_header(path: pathlib.Path) -> tuple[str, ...]:
    """Names of the columns of a file; of TSV its first line as it stands; none of an empty file.

    Raises:
      ImportError, ValueError: as `read`.
    """
    path = files.local(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_header(path)
    if suffix == ".jsonl":
        first = next(_json_rows(path), (1, {}))
    else:
        rows = _delimited(path, ",", limit=1) if suffix == ".csv" else _plain_tsv(path)
        first = next(iter(rows), (1, []))
    return tuple(first[1])


Row = tuple[int, list[str]]  # line number, fields


def _tsv(path: pathlib.Path, quoting: str) -> Iterable[Row]:
    if quoting == "auto":
        quoting = "on" if looks_quoted(path) else "off"
        if quoting == "on":
            logging.info("%s: read with quoting, as csv.writer and pandas write it", path)
    return _delimited(path, "\t") if quoting == "on" else _plain_tsv(path)


def _plain_tsv(path: pathlib.Path) -> Iterator[Row]:
    # Lines end at \n alone: sentences hold stray \r and Unicode separators.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            line = line.removesuffix("\n").removesuffix("\r")
            if line:
                yield number, line.split("\t")


def looks_quoted(path: pathlib.Path) -> bool:
    """True if a TSV file with a header was written with quoting, as csv.writer and pandas do.

    A file that reads well without quoting counts as plain, unless all fields of its header are in
    quotes, or every field that has quotes is in quotes as a whole and some have doubled ones
    inside. Any other file must read well with quoting, and no field in quotes may hold whole rows:
    such quotes begin in one sentence of a text and end in a later one.
    """
    rows = list(_plain_tsv(path))
    quoted = [field for _, fields in rows for field in fields if '"' in field]
    if not quoted:
        return False
    header = rows[0][1]
    if all(map(_is_quoted, header)):
        return _read_quoted(path) is not None
    # Tabs or line breaks inside quotes tear rows apart where quotes are not minded.
    if any(len(fields) != len(header) for _, fields in rows):
        return _joins_no_rows(path, _read_quoted(path))
    if not all(map(_is_quoted, quoted)):
        return False
    if any('""' in field[1:-1] for field in quoted):
        return True
    logging.warning(
        "%s: quotes around fields, such as %s, are read as part of the text; if a program put them "
        "there, add ;quoting=on to the task",
        *(path, checks.shortened(quoted[0])),
    )
    return False


def _is_quoted(field: str) -> bool:
    """True if a field is in quotes, with quotes inside doubled."""
    inner = field[1:-1].replace('""', "")
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner


def _read_quoted(path: pathlib.Path) -> list[list[str]] | None:
    """Fields of all rows with quoting, None where they do not read well so."""
    try:
        rows = [fields for _, fields in _delimited(path, "\t")]
    except ValueError:
        return None
    return rows if all(len(fields) == len(rows[0]) for fields in rows) else None


def _joins_no_rows(path: pathlib.Path, rows: list[list[str]] | None) -> bool:
    """True if there are rows with quoting, none of which holds rows without it."""
    if rows is None or not any(map(_holds_rows, rows)):
        return rows is not None
    logging.warning(
        "%s: quotes that would hold whole rows are read as part of the text; if a program put them "
        "around fields, add ;quoting=on to the task",
        path,
    )
    return False


def _holds_rows(fields: list[str]) -> bool:
    """True if two lines or more of one row have as many fields as the row has."""
    # The row as it stands in the file, cut where a reader without quoting would cut.
    lines = "\t".join(fields).split("\n")
    return sum(line.count("\t") + 1 == len(fields) for line in lines) > 1


def _csv(path: pathlib.Path, quoting: str) -> list[Row]:
    return _delimited(path, ",")


def _delimited(path: pathlib.Path, delimiter: str, limit: float = math.inf) -> list[Row]:
    """Rows of a file with quoting, at most `limit` of them."""
    rows = []
    with _long_fields(path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_decoded(file, path), strict=True, delimiter=delimiter)
        while len(rows) < limit:
            first = reader.line_num + 1  # a quoted field may hold line breaks
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                kind = "CSV" if delimiter == "," else "TSV with quoting"
                raise ValueError(f"{path}, line {first}: not valid {kind}: {error}") from error
            if fields:
                rows.append((first, fields))
    return rows


_FIELD_LIMIT = threading.Lock()  # csv has one limit for the whole process


@contextlib.contextmanager
def _long_fields(path: pathlib.Path) -> Iterator[None]:
    """Lets csv read fields as long as the file."""
    with _FIELD_LIMIT:
        limit = csv.field_size_limit()
        csv.field_size_limit(max(limit, min(path.stat().st_size, 2**31 - 1)))
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _read_jsonl(path: pathlib.Path, wanted: Collection[str] | None) -> Table:
    rows = list(_json_rows(path))
    header = tuple(rows[0][1]) if rows else ()
    names = [name for name in header if wanted is None or name in wanted]
    for line, row in rows:
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(f"{path}, line {line}: no {missing}; the line has {sorted(row)}")
    columns = {name: [row[name] for _, row in rows] for name in names}
    return Table(path, header, columns, [line for line, _ in rows])


def _json_rows(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            if not line.strip():
                continue
            row = checks.parse_json(line, f"{path}, line {number}:")
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: each line must hold one JSON object")
            yield number, row


def _read_parquet(path: pathlib.Path, wanted: Collection[str] | None) -> Table:
    header = _parquet_header(path)
    names = [name for name in header if wanted is None or name in wanted]
    with _parquet(path) as parquet:
        found = parquet.read_table(path, columns=names)
    columns = {name: found.column(name).to_pylist() for name in names}
    return Table(path, header, columns, list(range(1, found.num_rows + 1)))


def _parquet_header(path: pathlib.Path) -> tuple[str, ...]:
    with _parquet(path) as parquet:
        return tuple(parquet.read_schema(path).names)


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[Any]:
    """The library that reads Parquet files; its errors name the file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a Parquet file: install pyarrow to read it (pip install -e '.[hub]')"
        ) from error
    try:
        yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from error


def _decoded(lines: Iterator[str], path: pathlib.Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; convert it to UTF-8") from error


_ROWS = {".tsv": _tsv, ".txt": _tsv, ".csv": _csv}
_TABLES = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
SUFFIXES = (*_ROWS, *_TABLES)
