r"""Draws which part of the code imports which, as an SVG file or as text.

    python -m tools.module_graph                                  # a line for each part
    python -m tools.module_graph --out=docs/figures/imports.svg
    python -m tools.module_graph --package=mpojax/mpo             # the modules of one package

Source files are parsed, none is imported. Imports inside of functions and for type checking count
like the others. An arrow that follows from two others is left out of the picture, not of the text.
"""

import argparse
import ast
import pathlib
import sys
from collections.abc import Iterator, Mapping

from mpojax import files

ROOT = pathlib.Path(__file__).parents[1]
# What the picture of the whole project shows, each a package or module below the root.
PARTS = (
    *("mpojax/mpo", "mpojax/nn", "mpojax/models", "mpojax/compression", "mpojax/io"),
    *("mpojax/data", "mpojax/training", "mpojax/methods", "experiments"),
)
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 170, 40, 40, 44, 20

Graph = Mapping[str, frozenset[str]]  # {part: what it imports}


def main(arguments: list[str]) -> int:
    """Prints or draws the graph; returns the exit status, 1 if imports form a cycle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", default="", help="folder; default: the parts of the project")
    parser.add_argument("--out", default="", help="SVG file; default: text on standard output")
    options = parser.parse_args(arguments)
    graph = imports(children(options.package) if options.package else PARTS)
    cyclic = any(name in reachable(graph, name) for name in graph)
    if options.out and not cyclic:
        files.write_atomic(options.out, svg(graph))
    else:
        print(as_text(graph))
    if cyclic:
        print("error: these imports form a cycle", file=sys.stderr)
    return int(cyclic)


def children(folder: str) -> tuple[str, ...]:
    """Modules and packages right below a folder, as paths from the root without `.py`."""
    found = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()]
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in found}
    return tuple(sorted(name for name in names if not pathlib.Path(name).name.startswith("__")))


def imports(parts: tuple[str, ...], root: pathlib.Path = ROOT) -> Graph:
    """{part: other parts that its files import}."""
    graph = {}
    for part in parts:
        paths = [root / f"{part}.py", *sorted((root / part).rglob("*.py"))]
        names = {name for path in paths if path.is_file() for name in imported(path)}
        found = {other for other in parts for name in names if _is_within(name, other)}
        graph[part] = frozenset(found - {part})
    return graph


def imported(path: pathlib.Path) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives `a.b`, a module or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_within(name: str, part: str) -> bool:
    dotted = part.replace("/", ".")
    return name == dotted or name.startswith(f"{dotted}.")


def reachable(graph: Graph, start: str) -> set[str]:
    """All that a part imports, itself if there is a cycle, over any number of steps."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


def reduced(graph: Graph) -> Graph:
    """Transitive reduction: without the imports that follow from others."""
    return {
        name: frozenset(
            other
            for other in others
            if not any(other in reachable(graph, between) for between in others - {other})
        )
        for name, others in graph.items()
    }


def levels(graph: Graph) -> dict[str, int]:
    """{part: length of the longest chain of imports below it}."""
    found: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in found:
            found[name] = 1 + max(map(level, graph[name]), default=-1)
        return found[name]

    for name in graph:
        level(name)
    return found


def as_text(graph: Graph) -> str:
    """A line for each part."""
    width = max(map(len, graph), default=0)
    lines = [f"{name.ljust(width)}  {', '.join(sorted(graph[name]))}" for name in graph]
    return "\n".join(map(str.rstrip, lines))


def spine(graph: Graph) -> set[str]:
    """The longest chain of imports: the first column of the picture."""
    level = levels(graph)
    found = [max(graph, key=level.__getitem__)]
    while below := [name for name in graph[found[-1]] if level[name] == level[found[-1]] - 1]:
        found.append(min(below))
    return set(found)


def svg(graph: Graph) -> str:
    """The picture: an arrow points from what imports to what is imported, always downwards."""
    rows: dict[int, list[str]] = {}
    first = spine(graph)
    # The longest chain comes first in its rows, so that it is one straight column.
    for name, level in sorted(levels(graph).items(), key=lambda item: item[0] not in first):
        rows.setdefault(level, []).append(name)
    widest = max(map(len, rows.values()))
    width = 2 * _MARGIN + widest * (_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y
    corners = {}
    for level, names in rows.items():
        y = height - _MARGIN - _HEIGHT - level * (_HEIGHT + _GAP_Y)
        for column, name in enumerate(names):
            corners[name] = _MARGIN + column * (_WIDTH + _GAP_X), y
    arrows = [
        _arrow(corners[name], corners[other])
        for name, others in reduced(graph).items()
        for other in sorted(others)
    ]
    boxes = [_box(name, *corner) for name, corner in corners.items()]
    return "\n".join([_HEAD.format(width=width, height=height), *arrows, *boxes, "</svg>\n"])


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
font-family="sans-serif" font-size="14">
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 10 5 0 10z" fill="#555"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>"""


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to_x, to_y = end[0] + _WIDTH / 2, end[1]
    return (  # crosses to the other column at once, then falls
        f'<path d="M{x:g} {y:g} C{x:g} {y + _GAP_Y:g} {to_x:g} {y:g} {to_x:g} {to_y:g}" '
        'fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def _box(name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#e8eaf6" '
        f'stroke="#3f51b5"/><text x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT / 2 + 5:g}" '
        f'text-anchor="middle">{name.replace("/", ".")}</text>'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
