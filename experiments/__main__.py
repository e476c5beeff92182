"""Lists what can be run: `python -m experiments`."""

import ast
import pathlib
import sys
from collections.abc import Iterator

from mpojax import checks

_ROOT = pathlib.Path(__file__).parents[1]


def entry_points(folder: str) -> Iterator[tuple[str, str]]:
    """(module, first line of its docstring) of a folder's scripts; none of them is imported."""
    packages = (_ROOT / folder).glob("*/__main__.py")
    for path in sorted([*(_ROOT / folder).glob("*.py"), *packages]):
        source = path.read_text(encoding="utf-8")
        name = path.parent.name if path.stem == "__main__" else path.stem
        if name != folder and '\nif __name__ == "__main__":' in source:
            summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
            yield f"{folder}.{name}", summary


def main(arguments: list[str]) -> int:
    """Prints the list; an argument, which has no meaning here, is answered with status 2."""
    found = dict([*entry_points("experiments"), *entry_points("tools")])
    if arguments and arguments[0].lstrip("-") not in ("", "h", "help"):
        near = checks.nearest(f"experiments.{arguments[0]}", found)
        hint = f"; did you mean python -m {near}?" if near else ""
        print(f"error: python -m experiments takes no {arguments[0]!r}{hint}", file=sys.stderr)
        return 2
    width = max(map(len, found)) + 2
    lines = [f"  python -m {name.ljust(width)}{summary}" for name, summary in found.items()]
    print("\n".join([*lines, "", "Each prints its options with --help."]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
