"""The cells of a sweep: axes expanded over one config, everything checked before anything runs."""

import copy
import dataclasses
import difflib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from mpojax import data
from mpojax.training import workdir as workdir_lib

_LONGEST_NAME = 150


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


def expand(config: ml_collections.ConfigDict) -> list[Cell]:
    """Every cell of `config.axes` that `config.skip` does not leave out; the first axis is slowest.

    Args:
      config: has `cell` (the config of one run), `axes` (pairs (name, values)) and optionally
        `skip` (dicts {axis: label or labels}; a cell that fits one of them is left out). Values are
        a tuple, put into the field of the axis' name (dots reach into nested fields), a dict
        {label: {field: value}}, or the name of another field of the sweep's config that holds one
        of these, which can then be changed on the command line.

    Raises:
      ValueError: a mistake in the axes; every message says which axis and what is allowed.
    """
    if not isinstance(config.get("cell"), ml_collections.ConfigDict):
        raise ValueError("config.cell must be the whole config of one run.")
    axes = read_axes(config)
    skip = _read_skip(config.get("skip") or (), axes)
    cells: list[Cell] = []
    names: dict[str, str] = {}
    for labels in itertools.product(*(axis.changes for axis in axes)):
        chosen = dict(zip((axis.name for axis in axes), labels, strict=True))
        if any(all(chosen[name] in some for name, some in rule.items()) for rule in skip):
            continue
        run = copy.deepcopy(config.cell)
        for axis, label in zip(axes, labels, strict=True):
            for field, value in axis.changes[label].items():
                set_field(run, field, value, f"axis {axis.name!r}, value {label!r}")
        name = cell_name(chosen)
        if name.lower() in names:
            raise ValueError(
                f"two cells would share the folder {name!r}: labels {names[name.lower()]!r} and "
                f"{chosen!r} differ only in characters that file names cannot hold; rename one."
            )
        names[name.lower()] = str(chosen)
        values = {axis.name: axis.values[label] for axis, label in zip(axes, labels, strict=True)}
        cells.append(Cell(name, chosen, values, run))
    if not cells:
        raise ValueError("the sweep has no cells: config.skip leaves all of them out.")
    return cells


def read_axes(config: ml_collections.ConfigDict) -> list[Axis]:
    """`config.axes`, checked for form; fields and types are checked by `expand`."""
    pairs = config.get("axes") or ()
    if isinstance(pairs, str | Mapping | ml_collections.ConfigDict) or not len(pairs):
        raise ValueError(
            f"config.axes={pairs!r} must be a non-empty tuple of pairs (name, values), such as "
            "(('seed', (0, 1)),)."
        )
    axes: list[Axis] = []
    owner: dict[str, str] = {}
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"config.axes has {pair!r}; every entry is a pair (name, values).")
        axis = _read_axis(*pair, config)
        if axis.name in (known.name for known in axes):
            raise ValueError(f"config.axes names {axis.name!r} twice; merge the two.")
        for field in dict.fromkeys(f for changes in axis.changes.values() for f in changes):
            for other, by in owner.items():
                if f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}."):
                    raise ValueError(
                        f"axes {by!r} and {axis.name!r} both set {min(field, other, key=len)!r}; "
                        "one would undo the other."
                    )
        owner |= {field: axis.name for changes in axis.changes.values() for field in changes}
        axes.append(axis)
    return axes


def _read_axis(name: str, values, config) -> Axis:
    if isinstance(values, str):
        if values not in config:
            raise ValueError(
                f"axis {name!r}: {values!r} must be a tuple of values or name a field of the "
                f"sweep's config; it has {sorted(config)}."
            )
        values = config[values]
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if name == "task" and _are_texts(values):
        values = data.task_names(values)  # a command line gives several as one text
    if isinstance(values, Mapping):
        changes = {}
        for label, fields in values.items():
            if isinstance(fields, ml_collections.ConfigDict):
                fields = fields.to_dict()
            if not isinstance(fields, Mapping):
                raise ValueError(
                    f"axis {name!r}, label {label!r}: {fields!r} must be a dict {{field: value}}."
                )
            changes[str(label)] = dict(fields)
        shown = {label: label for label in changes}
    elif isinstance(values, Sequence) and not isinstance(values, bytes):
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


def _are_texts(values) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(value, str) for value in values)


def set_field(config: ml_collections.ConfigDict, field: str, value, where: str) -> None:
    """Puts a value into a (dotted) field, checked for existence and type.

    Raises:
      ValueError: no such field (the closest ones are named), or a value of another type.
    """
    inner, parts = config, field.split(".")
    for depth, part in enumerate(parts):
        is_table = isinstance(inner, ml_collections.ConfigDict)
        if not is_table or part not in inner:
            known = sorted(_field_names(config))
            close = difflib.get_close_matches(field, known, 3, 0.5)
            advice = f"did you mean {' or '.join(map(repr, close))}?" if close else f"has {known}."
            raise ValueError(f"{where}: the config of a cell has no field {field!r}; {advice}")
        if depth < len(parts) - 1:
            inner = inner[part]
    part, old = parts[-1], inner[parts[-1]]
    kind = inner.get_type(part)
    name = "dict" if kind is ml_collections.ConfigDict else kind.__name__
    problem = f"{where}: field {field!r} is of type {name}; {value!r} does not fit."
    if value is None:
        if old is not None:  # only a placeholder may be left empty
            raise ValueError(problem)
        return
    if isinstance(value, bool) != (kind is bool):
        raise ValueError(problem)
    if isinstance(old, ml_collections.ConfigDict) and isinstance(value, Mapping):
        with config.unlocked(), inner.unlocked():
            del inner[part]  # the whole table is replaced: old entries must not shine through
            inner[part] = ml_collections.ConfigDict()
    try:
        inner[part] = value
    except (TypeError, ValueError) as error:
        raise ValueError(problem) from error


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        names.append(f"{prefix}{key}")
        if isinstance(config[key], ml_collections.ConfigDict):
            names += _field_names(config[key], f"{prefix}{key}.")
    return names


def _read_skip(rules, axes: Sequence[Axis]) -> list[dict[str, tuple[str, ...]]]:
    labels = {axis.name: tuple(axis.changes) for axis in axes}
    checked = []
    for rule in rules:
        rule = rule.to_dict() if isinstance(rule, ml_collections.ConfigDict) else rule
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


def _label(value) -> str:
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


def differing(cell: Cell, recorded: Mapping[str, Any]) -> list[str]:
    """Lines about what makes the cell another than the one whose config was recorded."""
    return workdir_lib.changes(recorded, cell.config)
