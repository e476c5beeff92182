"""Style of every figure: fonts, colours, ticks, legends and files."""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from mpojax import files

# Okabe and Ito's colours, told apart by colour-blind readers, without the yellow that is too pale.
COLORS = {
    "black": "#000000",
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "gray": "#7F7F7F",
}
MARKERS = "osD^v<>P*X"
DPI = 200
# Legible where a README shows a figure of WIDTH inches over its whole width.
WIDTH = 7.2
_STYLE = {
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


def new(
    rows: int = 1, columns: int = 1, *, height: float = 3.4, width: float = WIDTH, **options: Any
) -> tuple[Any, Sequence[Any]]:
    """A figure and its axes, row by row; sizes in inches, `height` that of one row.

    Args:
      options: of `matplotlib.figure.Figure.subplots`.

    Raises:
      ImportError: matplotlib is not installed.
    """
    matplotlib = require()
    with matplotlib.rc_context(_STYLE):
        size = (width, height * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def require() -> Any:
    """The module `matplotlib`, with `figure`.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        import matplotlib.figure  # its Figure needs no display
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install -e '.[plot]'.") from error
    return matplotlib


def style(index: int) -> dict[str, str]:
    """Colour and marker of the n-th of several series that have no style of their own."""
    colors = list(COLORS.values())
    return {"color": colors[index % len(colors)], "marker": MARKERS[index % len(MARKERS)]}


def line_style(index: int) -> dict[str, Any]:
    """Colour, dashes and width of a line that others may cover: earlier ones show through."""
    dashes = ("-", (0, (5, 3)), (0, (2, 2)), (0, (6, 2, 1, 2)))
    width = (3.2, 2.4, 1.8, 1.4)[min(index // 2, 3)]
    color = list(COLORS.values())[(index + 1) % len(COLORS)]
    return {"color": color, "linestyle": dashes[index % len(dashes)], "linewidth": width}


def legend(figure: Any, title: str = "", columns: int = 3) -> None:
    """One legend for all axes, below them, for which the figure grows; each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            # Of points with bars, the points.
            found.setdefault(label, handle[0] if isinstance(handle, tuple) else handle)
    if not found:
        return
    # Inches of a column of the longest label, at about 0.07 a letter.
    widest = 0.6 + 0.07 * max(map(len, found))
    columns = max(1, min(columns, len(found), int(figure.get_figwidth() / widest)))
    lines = -(-len(found) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.15 + 0.19 * lines)
    look = {"fontsize": 9.0, "title_fontsize": 8.5, "frameon": False, "ncols": columns}
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", title=title or None, **look
    )


def log_ticks(axis: Any, values: Iterable[float]) -> None:
    """Puts a logarithmic axis' ticks at the values, where they are few and apart, as numbers.

    Elsewhere at 1, 2, 5 of each power of ten.
    """
    ticks = sorted(set(values))
    if len(ticks) > 8 or any(b < 1.4 * a for a, b in itertools.pairwise(ticks)):
        plain_log_ticks(axis)
        return
    axis.set_ticks(ticks, [thousands(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def plain_log_ticks(axis: Any) -> None:
    """Has a logarithmic axis show 0.2, 3 and 500 instead of powers of ten."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: thousands(value)))
    axis.set_minor_formatter(ticker.NullFormatter())


def thousands(value: float) -> str:
    """A number short enough for a tick.

    >>> [thousands(value) for value in (0.2, 96, 9216, 22_566_146)]
    ['0.2', '96', '9.22k', '22.6M']
    """
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"


def save(figure: Any, path: str | pathlib.Path) -> None:
    """Writes a figure in the format of its suffix, PNG without one; the same figure, same bytes.

    Raises:
      OSError: the file cannot be written; one that was there is kept.
    """
    form = pathlib.Path(path).suffix.lstrip(".") or "png"
    dates = {"pdf": "CreationDate", "svg": "Date"}
    metadata = {dates[form]: None} if form in dates else None
    with require().rc_context(_STYLE):
        files.write_atomic(
            path, lambda file: figure.savefig(file, format=form, dpi=DPI, metadata=metadata)
        )


def save_both(figure: Any, path: str | pathlib.Path) -> None:
    """Writes a figure as PNG for pages and as PDF for papers; `path` is without suffix."""
    for suffix in (".png", ".pdf"):
        save(figure, f"{path}{suffix}")
