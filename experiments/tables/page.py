"""One table, shown in three ways: on a terminal, as Markdown, as CSV."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table

from experiments import console as console_lib
from experiments import study_files
from mpojax import files


@dataclasses.dataclass
class Page:
    """A finished table.

    Attributes:
      name: of its files.
      title, source: printed above and below the table.
      columns, rows: texts, all rows as long as `columns`.
      records: the same with numbers, for the CSV file.
      notes: sentences below the table.
      curves: {label: ([x], [y])} for a plot; labels that end in ", published" are points.
      axes: (x label, y label) of the plot.
    """

    name: str
    title: str
    source: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping]
    notes: Sequence[str] = ()
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = dataclasses.field(
        default_factory=dict
    )
    axes: tuple[str, str] = ("", "")


def show(page: Page) -> None:
    """Prints it."""
    console = rich.console.Console(emoji=False, highlight=False)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(page.columns):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    for row in page.rows:
        table.add_row(*row)
    if not console.is_terminal:
        console = rich.console.Console(emoji=False, highlight=False, width=_width(table))
    console.print(f"{page.title}\nSource: {page.source}", markup=False)
    console.print(table)
    for note in page.notes:
        console.print(f"- {note}", markup=False)


def _width(table: rich.table.Table) -> int:
    """Files and pipes have no width: as wide as the table wants to be."""
    wide = rich.console.Console(width=10_000, file=io.StringIO())
    return max(100, rich.console.Measurement.get(wide, wide.options, table).maximum)


def write(page: Page, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes `<name>.md`, `<name>.csv` and, where there are curves, `<name>.png`.

    Raises:
      OSError: the folder cannot be written.
      ImportError: there are curves and matplotlib is not installed.
    """
    paths = [folder / f"{page.name}.md", folder / f"{page.name}.csv"]
    files.write_atomic(paths[0], markdown(page))
    study_files.write_csv(paths[1], list(page.records))
    if page.curves:
        paths.append(folder / f"{page.name}.png")
        _draw(page, paths[-1])
    return paths


def markdown(page: Page) -> str:
    """The page as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in page.rows]
    lines = [f"# {page.title}", "", f"Source: {page.source}", ""]
    is_right = [index >= 2 for index in range(len(page.columns))]
    lines += console_lib.markdown_lines(page.columns, is_right, rows)
    lines += ["", *(f"- {note}" for note in page.notes)]
    if page.curves:
        lines += ["", f"![{page.title}]({page.name}.png)"]
    return "\n".join(lines).rstrip() + "\n"


def _draw(page: Page, path: pathlib.Path) -> None:
    try:
        from matplotlib import figure as figure_lib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mpojax[plot]'.") from error
    figure = figure_lib.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colors: dict[str, str] = {}
    for label, (x, y) in page.curves.items():
        # Published points have the color of our curve of the same name.
        color = colors.setdefault(label.removesuffix(", published"), f"C{len(colors)}")
        axes.plot(x, y, "x" if label.endswith(", published") else "o-", label=label, color=color)
    axes.set(xlabel=page.axes[0], ylabel=page.axes[1], title=page.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120))
