"""Effect of pruned groups on parameters: masks of entries, resets, gauges, and smaller arrays."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpojax.methods.pet.groups import Chain, Masks, Sizes, Spec


def entry_masks(masks: Mapping, spec: Spec, sizes: Sizes) -> dict[str, np.ndarray]:
    """{array path: boolean array of its shape}: which entries are left."""
    found = {}
    for name, unit in spec.items():
        found |= dict(zip(unit.arrays, unit.entry_masks(masks[name], sizes), strict=True))
    return found


def group_masks(entries: Mapping[str, np.ndarray], spec: Spec) -> Masks:
    """Inverse of `entry_masks`."""
    return {
        name: unit.group_masks([np.asarray(entries[array]) != 0 for array in unit.arrays])
        for name, unit in spec.items()
    }


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
      spec: {name: unit}.
      reference: {array path: what a dropped entry becomes}.
    """
    sizes = {name: np.shape(value) for name, value in params.items()}
    found = dict(params)
    for name, kept in entry_masks(masks, spec, sizes).items():
        kept = kept.astype(params[name].dtype)
        back = 0.0 if reference is None or name not in reference else reference[name]
        # m theta + (1 - m) reference
        found[name] = params[name] * kept + back * (1 - kept)
    return found


def compact(
    params: Mapping[str, Any], masks: Mapping, spec: Spec
) -> dict[str, Any | tuple[np.ndarray, Any]]:
    """Arrays of what is left, without the rest: {array path: array}.

    Chains and low ranks are sliced along their bonds, units that are gone are left out; of
    unstructured units there are pairs (sorted indices (n,) int32 into the flat array, values (n,)).
    """
    found = {}
    for name, unit in spec.items():
        found |= unit.compact([params[array] for array in unit.arrays], masks[name])
    return found


def regauge(
    params: Mapping[str, Any],
    masks: Masks,
    spec: Spec,
    moments: Sequence[tuple[Mapping[str, Any], bool]] = (),
) -> tuple[dict[str, Any], Masks, list[dict[str, Any]]]:
    """Every chain with its bonds along singular vectors: index a carries the a-th singular value.

    In which basis a bond is scored is to be fixed, since training leaves it arbitrary: a rotation
    moves scores between its indices (only their sum stays). What is left of a bond comes first, by
    descending singular value; what is dropped is zero. For low rank this is A <- Q_a U sqrt(s),
    B <- sqrt(s) V^T Q_b^T. First moments and gradients follow exactly, second moments by the
    squared maps, see `mpo.transform_gradients`. On the host, in float64; the matrix of a chain
    does not change.

    Args:
      params: {array path: array}; those of no chain stay.
      masks: what is left; bonds wider than what they can carry lose indices.
      spec: {name: unit}.
      moments: ({array path: array}, is it a second moment?) pairs.

    Returns:
      (params, masks, moments in the same order), of the dtypes that they had.
    """
    masks = dict(masks)
    trees = [(dict(params), False), *((dict(values), squared) for values, squared in moments)]
    for name, unit in spec.items():
        if isinstance(unit, Chain) and all(mask.any() for mask in masks[name]):
            masks[name] = unit.regauge(trees, masks[name])
    new_params, *held = (values for values, _ in trees)
    return new_params, masks, held


def report(masks: Mapping, spec: Spec, sizes: Sizes) -> list[dict[str, Any]]:
    """Rows {"layer", "module", "kept", "total"}, in parameters, for a table or a heat map.

    A module is the path of a matrix or parameter without its layer, such as attention/query.
    """
    rows: dict[tuple[str, str], dict] = {}
    for name, unit in spec.items():
        layer, module = _layer_and_module(name)
        row = rows.setdefault(
            (layer, module), {"layer": layer, "module": module, "kept": 0, "total": 0}
        )
        row["kept"] += unit.cost(masks[name], sizes)
        row["total"] += unit.num_parameters(sizes)
    return list(rows.values())


def _layer_and_module(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:(.*)/)?layers/(\d+)/(.*)", name)
    if match is None:
        return "-", name
    tower, layer, module = match.groups()
    return (layer if tower is None else f"{tower} {layer}"), module
