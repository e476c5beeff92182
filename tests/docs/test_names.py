"""Names and paths that pages mention in code style are there."""

import importlib
import re

import pytest

from tests.docs import pages

_PARTS = {"mj": "mpojax"}
_PARTS |= {part: f"mpojax.{part}" for part in ("mpo", "nn", "models", "io", "data", "training")}
_PARTS |= {paper: f"mpojax.methods.{paper}" for paper in ("mpop", "mpobert", "mpoe")}
_SHORT = rf"`((?:{'|'.join(_PARTS)})\.[A-Za-z_.]*\w)"
_NAME = re.compile(rf"{_SHORT}|`((?:mpojax|experiments|tools)[.\w]*\w)`")
_PATH = re.compile(r"`((?:configs|docs|examples|experiments|mpojax|tools)/[\w./]*\w)")


def found(name: str) -> bool:
    """True if a dotted name is a module, or an attribute of one."""
    value = importlib.import_module(name.partition(".")[0])
    for part in name.split(".")[1:]:
        if hasattr(value, part):
            value = getattr(value, part)
            continue
        try:
            value = importlib.import_module(f"{value.__name__}.{part}")
        except (ImportError, AttributeError):
            return False
    return True


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_names_and_paths(page):
    text = page.read_text(encoding="utf-8")
    for short, whole in _NAME.findall(text):
        part, _, rest = short.partition(".")
        assert found(whole or f"{_PARTS[part]}.{rest}"), whole or short
    for path in _PATH.findall(text):
        assert (pages.ROOT / path).exists(), path
