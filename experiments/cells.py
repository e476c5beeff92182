"""The cells of a sweep: axes expanded over one config, everything checked before anything runs."""

import copy
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from mpojax import checks, data

_LONGEST_NAME = 150
BASELINE = "baseline"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: a name, and for each of its labels the fields that it sets.

    Attributes:
      name: what the column is called.
      changes: {label: {dotted config field: value}}, in order.
      values: {label: value as the config gives it}, the label itself where it sets several fields.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      name: of its folder, e.g. `task=sst2,variant=lfa,seed=0`; safe on every file system.
      labels: {axis: label}.
      values: {axis: value}, for tables: numbers stay numbers.
      config: the whole config of the run.
    """

    name: str
    labels: Mapping[str, str]
    values: Mapping[str, Any]
    config: ml_collections.ConfigDict


def expand(config: ml_collections.ConfigDict, repeats: Sequence[str] = ("seed",)) -> list[Cell]:
    """Every cell of `config.axes` that `config.skip` does not leave out; the first axis is slowest.

    Args:
      config: has `cell` (the config of one run), `axes` (pairs (name, values)) and optionally
        `skip` (dicts {axis: label or labels}; a cell that fits one of them is left out) and
        `baselines` ({label: {field: value}}: runs that know no axis but those that repeat, such as
        the dense model of a sweep over bonds). Values are a tuple, put into the field of the axis'
        name (dots reach into nested fields), a dict {label: {field: value}}, or the name of another
        field of the sweep's config that holds one of these, which can then be changed on the
        command line.
      repeats: axes that repeat a measurement.

    Raises:
      ValueError: a mistake in the axes; every message says which axis and what is allowed.
    """
    if not isinstance(config.get("cell"), ml_collections.ConfigDict):
        raise ValueError("config.cell must be the whole config of one run.")
    axes = read_axes(config)
    cells = [*_baselines(config, axes, repeats), *_combinations(config, axes)]
    if not cells:
        raise ValueError("the sweep has no cells: config.skip leaves all of them out.")
    taken: dict[str, Cell] = {}
    for cell in cells:
        other = taken.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise ValueError(
                f"two cells would share the folder {cell.name!r}: labels {other.labels!r} and "
                f"{cell.labels!r} differ only in characters that file names cannot hold; rename "
                "one."
            )
    return cells


def _combinations(config: ml_collections.ConfigDict, axes: Sequence[Axis]) -> Iterator[Cell]:
    skip = _read_skip(config.get("skip") or (), axes)
    for labels in itertools.product(*(axis.changes for axis in axes)):
        chosen = dict(zip((axis.name for axis in axes), labels, strict=True))
        if not any(all(chosen[name] in some for name, some in rule.items()) for rule in skip):
            yield _cell(config.cell, axes, chosen)


def _baselines(
    config: ml_collections.ConfigDict, axes: Sequence[Axis], repeats: Sequence[str]
) -> Iterator[Cell]:
    """Cells of `config.baselines`; tables name them in the column of the first axis."""
    changes = _plain(config.get("baselines") or {})
    if not changes:
        return
    own = Axis(BASELINE, changes, {label: label for label in changes})
    again = [axis for axis in axes if axis.name in repeats]
    column = next(axis.name for axis in axes if axis not in again)
    for labels in itertools.product(*(axis.changes for axis in (own, *again))):
        chosen = dict(zip((BASELINE, *(axis.name for axis in again)), labels, strict=True))
        cell = _cell(config.cell, (own, *again), chosen)
        # Axes that a baseline does not know have no value; it stands in the first one's column.
        absent = {axis.name: None for axis in axes} | cell.values | {column: chosen[BASELINE]}
        yield dataclasses.replace(cell, values={axis.name: absent[axis.name] for axis in axes})


def _cell(base: ml_collections.ConfigDict, axes: Sequence[Axis], labels: Mapping[str, str]) -> Cell:
    run = copy.deepcopy(base)
    for axis in axes:
        label = labels[axis.name]
        for name, value in axis.changes[label].items():
            set_field(run, name, value, f"axis {axis.name!r}, value {label!r}")
    values = {axis.name: axis.values[labels[axis.name]] for axis in axes}
    return Cell(cell_name(labels), labels, values, run)


def read_axes(config: ml_collections.ConfigDict) -> list[Axis]:
    """`config.axes`, checked for form; fields and types are checked by `expand`."""
    pairs = config.get("axes") or ()
    checks.check(
        {"config.axes": pairs},
        {"config.axes": checks.sequence(checks.pair(checks.text(), checks.anything()))},
    )
    if not pairs:
        raise ValueError(
            "config.axes=() must be a non-empty tuple of pairs (name, values), such as "
            "(('seed', (0, 1)),)."
        )
    axes: list[Axis] = []
    owner: dict[str, str] = {}
    for name, values in pairs:
        axis = _read_axis(name, values, config)
        if axis.name in (known.name for known in axes):
            raise ValueError(f"config.axes names {axis.name!r} twice; merge the two.")
        for field in dict.fromkeys(f for changes in axis.changes.values() for f in changes):
            for other, by in owner.items():
                # With dots at both ends: "bond" is not within "bonds".
                if f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}."):
                    raise ValueError(
                        f"axes {by!r} and {axis.name!r} both set {min(field, other, key=len)!r}; "
                        "one would undo the other."
                    )
        owner |= {field: axis.name for changes in axis.changes.values() for field in changes}
        axes.append(axis)
    return axes


def _read_axis(name: str, values: Any, config: ml_collections.ConfigDict) -> Axis:
    if isinstance(values, str):
        if values not in config:
            raise ValueError(
                f"axis {name!r}: {values!r} must be a tuple of values or name a field of the "
                f"sweep's config; it has {sorted(config)}."
            )
        values = config[values]
    values = _plain(values)
    if name == "task" and isinstance(values, tuple | list) and all(map(_is_text, values)):
        values = data.task_names(values)  # a command line gives several as one text
    if isinstance(values, Mapping):
        if wrong := [(k, v) for k, v in values.items() if not isinstance(v, Mapping)]:
            raise ValueError(
                "axis {!r}, label {!r}: {!r} must be a dict {{field: value}}.".format(
                    name, *wrong[0]
                )
            )
        changes = {str(label): dict(fields) for label, fields in values.items()}
        shown = {label: label for label in changes}
    elif isinstance(values, tuple | list):
        shown = {_label(value): value for value in values}
        if len(shown) < len(values):
            raise ValueError(f"axis {name!r} names a value twice: {tuple(values)!r}.")
        changes = {label: {name: value} for label, value in shown.items()}
    else:
        raise ValueError(
            f"axis {name!r}: {values!r} must be a tuple of values, or a dict "
            "{label: {field: value}}."
        )
    if not changes:
        raise ValueError(f"axis {name!r} has no values; give at least one or leave the axis out.")
    return Axis(name, changes, shown)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def set_field(config: ml_collections.ConfigDict, field: str, value: Any, where: str) -> None:
    """Puts a value into a (dotted) field, checked for existence and type.

    Raises:
      ValueError: no such field (the closest ones are named), or a value of another type.
    """
    *outer, part = field.split(".")
    inner = config
    for name in (*outer, part):
        if not isinstance(inner, ml_collections.ConfigDict) or name not in inner:
            known = sorted(_field_names(config))
            hint = checks.did_you_mean(field, known) or f"; it has {checks.listed(known)}"
            raise ValueError(f"{where}: the config of a cell has no field {field!r}{hint}")
        parent, inner = inner, inner[name]
    kind, old = parent.get_type(part), inner
    name = "dict" if kind is ml_collections.ConfigDict else kind.__name__
    problem = f"{where}: field {field!r} is of type {name}; {value!r} does not fit."
    if value is None:
        if old is not None:  # only a placeholder may be left empty
            raise ValueError(problem)
        return
    # bool is an int in Python, so that True would pass as a number, and 1 as a flag.
    if isinstance(value, bool) != (kind is bool):
        raise ValueError(problem)
    if isinstance(old, ml_collections.ConfigDict) and isinstance(value, Mapping):
        with config.unlocked(), parent.unlocked():
            del parent[part]  # the whole table is replaced: old entries must not shine through
            parent[part] = ml_collections.ConfigDict()
    try:
        parent[part] = value
    except (TypeError, ValueError) as error:
        raise ValueError(problem) from error


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(config[key], ml_collections.ConfigDict):
            yield from _field_names(config[key], f"{prefix}{key}.")


def _read_skip(rules: Sequence[Any], axes: Sequence[Axis]) -> list[dict[str, tuple[str, ...]]]:
    labels = {axis.name: tuple(axis.changes) for axis in axes}
    checked = []
    for rule in map(_plain, rules):
        if not isinstance(rule, Mapping) or not rule:
            raise ValueError(f"config.skip has {rule!r}; every entry is a dict {{axis: label}}.")
        entry = {}
        for name, some in rule.items():
            some = some if isinstance(some, tuple | list) else (some,)
            entry[name] = tuple(map(_label, some))
            unknown = [label for label in entry[name] if label not in labels.get(name, ())]
            if name not in labels or unknown:
                raise ValueError(
                    f"config.skip names {name}={unknown or some}; the axes are "
                    + "; ".join(f"{axis}: {', '.join(known)}" for axis, known in labels.items())
                )
        checked.append(entry)
    return checked


def _label(value: Any) -> str:
    """Text of an axis value: floats shortest, the rest as it is."""
    if isinstance(value, tuple | list):
        return "-".join(map(_label, value))
    return f"{value!r}" if isinstance(value, float) else str(value)


def cell_name(labels: Mapping[str, str]) -> str:
    """Folder name of a cell: readable, without characters that some file system refuses."""
    parts = [f"{name}={label}" for name, label in labels.items()]
    name = ",".join(re.sub(r"[^A-Za-z0-9._+=-]+", "_", part) for part in parts)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
