"""The README and the pages of the documentation, and their code blocks."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def name(path: pathlib.Path) -> str:
    """A page's path from the root: the name of its test."""
    return path.relative_to(ROOT).as_posix()
