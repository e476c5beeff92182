"""Tables in three forms: aligned text, Markdown and comma-separated values."""

import csv as csv_lib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

# {header: its cell of a record}
Columns = Mapping[str, Callable[[Any], str]]


def cells(columns: Columns, records: Sequence[Any]) -> list[list[str]]:
    """The cells of a table, row by row."""
    return [[show(record) for show in columns.values()] for record in records]


def text(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int = 120,
    left: int = 1,
    wrap: Sequence[str] = (),
) -> str:
    """Aligned text of at most `width` columns.

    Args:
      headers, rows: of equal length.
      width: in characters.
      left: so many of the first columns are aligned to the left.
      wrap: headers of the columns that may take several lines.
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, header in enumerate(headers):
        justify = "left" if index < left else "right"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=header not in wrap)
    for row in rows:
        table.add_row(*row)
    return printed(table, width)


def printed(table: rich.table.Table, width: int = 120) -> str:
    """A table of `rich` as plain text of at most `width` columns."""
    buffer = io.StringIO()
    plain = {"color_system": None, "markup": False, "emoji": False}  # [b] is no tag for bold
    rich.console.Console(file=buffer, width=width, **plain).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned to the right.

    >>> print(markdown(["model", "loss"], [["dense", "0.5"]]))
    | model | loss |
    | --- | ---: |
    | dense | 0.5 |
    """
    rules = ["---" if index < left else "---:" for index in range(len(headers))]
    lines = [headers, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv(records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Records as comma-separated values, sequences as their entries with blanks between them.

    Args:
      records: {column: value}.
      columns: by default all, in the order of their first appearance.
    """
    columns = columns or list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv_lib.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: joined(v, " ") if _is_list(v) else v for k, v in record.items()})
    return buffer.getvalue()


def joined(values: Sequence[Any], separator: str = ",") -> str:
    """1,2,3."""
    return separator.join(map(str, values))


def decimals(values: Sequence[float]) -> str:
    """1.00 2.00."""
    return " ".join(f"{value:.2f}" for value in values)


def error(value: float | None) -> str:
    """Four decimals, or two digits where those would be zeros; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)
