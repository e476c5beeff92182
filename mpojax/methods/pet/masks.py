"""Effect of pruned groups on parameters: masks of entries, resets, and smaller arrays."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpojax.methods.pet import allocation
from mpojax.methods.pet.allocation import Masks, Sizes
from mpojax.methods.pet.groups import Groups, Spec


def entry_masks(masks: Mapping, spec: Spec, sizes: Sizes) -> dict[str, np.ndarray]:
    """{array path: boolean array of its shape}: which entries are left."""
    found = {}
    for unit, groups in spec.items():
        shapes = [sizes[name] for name in groups.arrays]
        if groups.kind == "module":
            parts = [np.full(shape, bool(masks[unit][0])) for shape in shapes]
        elif groups.kind == "entries":
            parts = [np.asarray(mask) for mask in masks[unit]]
        else:
            parts = _of_chain(masks[unit], shapes)
        found |= dict(zip(groups.arrays, parts, strict=True))
    return found


def _of_chain(masks: Sequence[np.ndarray], shapes) -> list[np.ndarray]:
    parts = []
    for k, shape in enumerate(shapes):
        part = np.ones(shape, bool)
        if k > 0:
            part &= masks[k - 1].reshape(-1, *(1,) * (len(shape) - 1))
        if k < len(masks):
            part &= masks[k]
        parts.append(part)
    return parts


def group_masks(entries: Mapping[str, np.ndarray], spec: Spec) -> Masks:
    """Inverse of `entry_masks`."""
    found = {}
    for unit, groups in spec.items():
        parts = [np.asarray(entries[name]) != 0 for name in groups.arrays]
        if groups.kind == "module":
            found[unit] = (np.asarray(parts[0].any()),)
        elif groups.kind == "entries":
            found[unit] = tuple(parts)
        else:
            found[unit] = tuple(part.any(axis=tuple(range(part.ndim - 1))) for part in parts[:-1])
    return found


def apply_mask(
    params: Mapping[str, Any],
    masks: Mapping,
    spec: Spec,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The parameters with dropped entries back at their reference, or zero.

    Args:
      params: by path; numpy or jax arrays. Those of no unit stay.
      masks: {unit: boolean arrays}.
      spec: {unit: groups}.
      reference: {array path: what a dropped entry becomes}.
    """
    sizes = {name: np.shape(value) for name, value in params.items()}
    found = dict(params)
    for name, kept in entry_masks(masks, spec, sizes).items():
        kept = kept.astype(params[name].dtype)
        back = 0.0 if reference is None or name not in reference else reference[name]
        found[name] = params[name] * kept + back * (1 - kept)
    return found


def compact(
    params: Mapping[str, Any], masks: Mapping, spec: Spec
) -> dict[str, Any | tuple[np.ndarray, Any]]:
    """Arrays of what is left, without the rest: {array path: array}.

    Chains and low ranks are sliced along their bonds, units that are gone are left out; of single
    entries there are pairs (sorted indices (n,) int32 into the flat array, values (n,)).
    """
    found = {}
    for unit, groups in spec.items():
        values = [params[name] for name in groups.arrays]
        if groups.kind == "entries":
            for name, value, mask in zip(groups.arrays, values, masks[unit], strict=True):
                indices = np.flatnonzero(mask).astype(np.int32)
                if indices.size:
                    found[name] = indices, value.reshape(-1)[indices]
        elif all(mask.any() for mask in masks[unit]):
            parts = values if groups.kind == "module" else _sliced(values, masks[unit])
            found |= dict(zip(groups.arrays, parts, strict=True))
    return found


def _sliced(values: Sequence, masks: Sequence[np.ndarray]) -> list:
    kept = [np.flatnonzero(mask) for mask in masks]
    parts = []
    for k, value in enumerate(values):
        value = value if k == 0 else value[kept[k - 1]]
        parts.append(value if k == len(kept) else value[..., kept[k]])
    return parts


def report(masks: Mapping, spec: Spec, sizes: Sizes) -> list[dict[str, Any]]:
    """Rows {"layer", "module", "kept", "total"}, in parameters, for a table or a heat map.

    A module is the path of a matrix or parameter without its layer, such as attention/query.
    """
    rows: dict[tuple[str, str], dict] = {}
    for unit, groups in spec.items():
        layer, module = _place(unit)
        row = rows.setdefault(
            (layer, module), {"layer": layer, "module": module, "kept": 0, "total": 0}
        )
        row["kept"] += allocation.unit_cost(groups, masks[unit], sizes)
        row["total"] += sum(math.prod(sizes[name]) for name in groups.arrays)
    return list(rows.values())


def _place(unit: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:(.*)/)?layers/(\d+)/(.*)", unit)
    if match is None:
        return "-", unit
    tower, layer, module = match.groups()
    return (layer if tower is None else f"{tower} {layer}"), module


def chain_bonds(groups: Groups, masks: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Bond dimensions that are left of a chain."""
    if groups.kind != "chain":
        raise ValueError(f"a unit of kind {groups.kind!r} has no bonds.")
    return tuple(int(np.count_nonzero(mask)) for mask in masks)
