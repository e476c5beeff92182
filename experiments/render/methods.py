"""Display name, colour, marker and dashes of every method; names of axes. Data: `looks.toml`."""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from mpojax import figures

_DATA = tomllib.loads(pathlib.Path(__file__).with_name("looks.toml").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Look:
    """Look of one method.

    Attributes:
      label: display name.
      color: a name in `mpojax.figures.COLORS`.
      marker, line: of matplotlib.
      is_control: hollow markers.
    """

    label: str
    color: str
    marker: str = "o"
    line: str = "-"
    is_control: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Keywords of matplotlib."""
        color = figures.COLORS[self.color]
        face = "white" if self.is_control else color
        return {"color": color, "marker": self.marker, "markerfacecolor": face}


LOOKS: Mapping[str, Look] = {name: Look(**fields) for name, fields in _DATA["methods"].items()}


def look(name: Any, index: int = 0, names: Mapping[str, str] | None = None) -> Look:
    """The look of a method; `lora_4` and `MPOE, n 4` have those of `lora` and `MPOE`.

    Args:
      name: as runs call it.
      index: of an unknown method among those of its figure.
      names: display names of this figure alone.
    """
    name = str(name)
    # "lora_4" -> "lora", "MPOE, n 4" -> "MPOE"
    stem = name if name in LOOKS else re.split(r"_\d+$|, ", name)[0]
    if stem in LOOKS:
        found, rest = LOOKS[stem], name.removeprefix(stem).lstrip("_, ")
        label = f"{found.label}, {rest}" if rest else found.label
    else:
        color = list(figures.COLORS)[index % len(figures.COLORS)]
        found, label = Look("", color, figures.style(index)["marker"]), name.replace("_", " ")
    return dataclasses.replace(found, label=(names or {}).get(name, label))


def axis(name: str, metric: str = "") -> tuple[str, float]:
    """(name with unit, factor by which values are multiplied) of a column.

    Args:
      name: of the column.
      metric: where the column is `metric`, which one it holds.
    """
    bare = metric if name == "metric" and metric else name.removeprefix("metrics.")
    if bare in _DATA["metrics"]:
        return f"{_DATA['metrics'][bare]}, %", 100.0
    return _DATA["axes"].get(bare, bare.replace("_", " ")), 1.0


def panel(column: str, value: Any) -> str:
    """Title of the panel of a value."""
    if isinstance(value, str):
        return _DATA["tasks"].get(value, value)
    return f"{axis(column)[0]}: {value}"
