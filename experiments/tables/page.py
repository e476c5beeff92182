"""One table, shown in three ways: on a terminal, as Markdown, as CSV; maybe with a figure."""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.render import frames
from experiments.tables import schema
from mpojax import figures, files, tables

if TYPE_CHECKING:
    import pandas as pd

_WORDS = 2  # columns of words, aligned to the left: the row, and whose values a line has
_PUBLISHED = ", published"


@dataclasses.dataclass
class Page:
    """A finished table.

    Attributes:
      table: that it shows; names its files.
      columns, rows: texts, all rows as long as `columns`.
      records: the same with numbers, for the CSV file; a data frame, or its rows.
      notes: sentences below the table.
      curves: {label: ([x], [y])} for a figure; labels that end in ", published" are points.
      axes: (x label, y label) of the figure.
    """

    table: schema.Table
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: "pd.DataFrame | Sequence[Mapping]"
    notes: Sequence[str] = ()
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = dataclasses.field(
        default_factory=dict
    )
    axes: tuple[str, str] = ("", "")


def show(page: Page) -> None:
    """Prints it, as wide as the terminal, or as it needs to be in files and pipes."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    print(f"{page.table.title}\nSource: {page.table.source}\n")
    print(tables.text(page.columns, page.rows, width, _WORDS, wrap=page.columns))
    print("\n".join(["", *(f"- {note}" for note in page.notes)]))


def write(page: Page, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes `<name>.md`, `<name>.csv` and, where there are curves, `<name>.png` and `.pdf`.

    Raises:
      OSError: the folder cannot be written.
      ImportError: there are curves and matplotlib is not installed.
    """
    name = page.table.name
    paths = [folder / f"{name}.md", folder / f"{name}.csv"]
    files.write_atomic(paths[0], markdown(page))
    # As its columns are typed: a score of 70.0 is no count.
    files.write_atomic(paths[1], frame(page).to_csv(index=False, lineterminator="\n"))
    if page.curves:
        paths.append(folder / f"{name}.png")
        figures.save_both(_draw(page), folder / name)
    return paths


def frame(page: Page) -> "pd.DataFrame":
    """The records as a data frame; numbers stay as they are where others are missing."""
    kind = frames.require().DataFrame
    is_frame = isinstance(page.records, kind)
    return page.records if is_frame else kind(page.records, dtype=object)


def markdown(page: Page) -> str:
    """The page as Markdown."""
    title, cells = page.table.title, tables.markdown(page.columns, page.rows, _WORDS)
    lines = [f"# {title}", "", f"Source: {page.table.source}", "", cells, ""]
    lines += [f"- {note}" for note in page.notes]
    if page.curves:
        lines += ["", f"![{title}]({page.table.name}.png)"]
    return "\n".join(lines).rstrip() + "\n"


def _draw(page: Page):
    figure, (axes,) = figures.new(height=4.0)
    names = list(dict.fromkeys(label.removesuffix(_PUBLISHED) for label in page.curves))
    for label, (x, y) in page.curves.items():
        # Published points have the style of our curve of the same name.
        style = figures.style(names.index(label.removesuffix(_PUBLISHED)))
        hollow = {"linestyle": "", "fillstyle": "none", "markersize": 9}
        axes.plot(x, y, label=label, **style, **(hollow if label.endswith(_PUBLISHED) else {}))
    axes.set(xlabel=page.axes[0], ylabel=page.axes[1], title=page.table.title)
    figures.legend(figure)
    return figure
