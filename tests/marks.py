"""Which values of a parameter are tried in the default run."""

from collections.abc import Collection, Iterable

import pytest


def slow_but(quick: Collection, values: Iterable) -> list:
    """The values, marked slow but for some that show the same: of a tuple, one for each name."""
    return [
        value if value in quick else _slow(*value if isinstance(value, tuple) else (value,))
        for value in values
    ]


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)
