"""Allowed values of the fields of configs: those of runs (`mpojax.methods.options`), and of sweeps.

Fields are named as on the command line, without `config.`; those of a sweep's `cell` are those of a
run. Types are what the command line enforces. Fields of settings objects (`search.rounds`,
`opdf.alignment`, ...) are checked by those objects; what depends on the model, the data or several
fields, where that is known.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from mpojax import checks
from mpojax.checks import Allowed, integer, number, sequence, text
from mpojax.methods.options import COUNT, FIELDS
from mpojax.training import workdir

_SEED = integer(0, 2**63 - 1)
# Axes of sweeps, besides `cell`.
AXES: dict[str, Allowed] = {
    "seeds": sequence(_SEED),
    "draws": sequence(integer(0)),
    "caps": sequence(COUNT),
    "depths": sequence(COUNT),
    "shots": sequence(integer(0)),
    "learning_rates": sequence(number(0)),
    "weight_decays": sequence(number(0)),
    "warmups": sequence(number(0)),
    "repeats": sequence(text()),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Checks every field that has bounds or choices; all other numbers must be finite.

    Raises:
      ValueError: names each wrong field, its value and what is allowed; or fields by names that
        they had in older versions, which nothing would read, with those of now.
    """
    moved = [name for name in _names(config) if name in workdir.RENAMED]
    checks.check_none(
        [f"config.{name} is called config.{workdir.RENAMED[name]} now" for name in moved],
        "fields of an older version",
    )
    _check(dict(leaves(config)), FIELDS)


def check_axes(config: ml_collections.ConfigDict) -> None:
    """The same for the fields of a sweep besides its `cell`."""
    _check({name: value for name, value in leaves(config) if not name.startswith("cell.")}, AXES)


def allowed(name: str, is_sweep: bool) -> Allowed | None:
    """Allowed values of a field, None where they depend on more than the field."""
    if name.startswith("cell."):
        return FIELDS.get(name.removeprefix("cell."))
    return (AXES if is_sweep else FIELDS).get(name)


def _check(values: dict[str, Any], fields: dict[str, Allowed]) -> None:
    finite = {name: number() for name, value in values.items() if isinstance(value, float)}
    known = {name: allowed for name, allowed in fields.items() if name in values}
    checks.check(
        {f"config.{name}": value for name, value in values.items()},
        {f"config.{name}": allowed for name, allowed in (finite | known).items()},
    )


def _names(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, at any depth."""
    for key in values:
        yield f"{prefix}{key}"
        if isinstance(values[key], (Mapping, ml_collections.ConfigDict)):
            yield from _names(values[key], f"{prefix}{key}.")


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field; mappings in `FIELDS`, and empty ones, are whole."""
    for key in config:
        name, value = f"{prefix}{key}", config[key]
        if not isinstance(value, ml_collections.ConfigDict):
            yield name, value
        elif name.removeprefix("cell.") in FIELDS or not len(value):
            yield name, value.to_dict()
        else:
            yield from leaves(value, f"{name}.")
