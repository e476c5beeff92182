"""The adapters of a model as a super-set to prune: its units, their groups, and what is left."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpojax import models, nn
from mpojax.methods.pet import allocation
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet.allocation import Masks
from mpojax.methods.pet.groups import Groups

MODES = ("structured", "unstructured")
# What removing means: back to zero, where the update is added; back to the start for all others.
_BACK_TO_ZERO = ("low_rank", "mpo")


@dataclasses.dataclass(frozen=True)
class SuperSet:
    """Units of a super-set; heads are no part of it.

    Attributes:
      spec: {unit: groups}; a unit is named by the path of its adapter, or of the array in place.
      sizes: {array path: shape}.
      reference: {array path: what a dropped entry becomes}, where that is not zero.
      settings: {unit: of its adapter}.
    """

    spec: dict[str, Groups]
    sizes: dict[str, tuple[int, ...]]
    reference: dict[str, np.ndarray]
    settings: dict[str, nn.AdapterSettings]

    def whole_masks(self) -> Masks:
        """Nothing is dropped."""
        return allocation.whole_masks(self.spec, self.sizes)

    def cost(self, masks: Masks) -> int:
        """Parameters that are left."""
        return allocation.cost(masks, self.spec, self.sizes)

    def entry_masks(self, masks: Masks) -> dict[str, np.ndarray]:
        """{array path: which entries are left}."""
        return pet_masks.entry_masks(masks, self.spec, self.sizes)

    def compacted(self, model: models.Model, masks: Masks) -> models.Model:
        """The model with the smaller adapters that are left; it computes the same.

        Args:
          model: whose dropped entries are back at their reference.
          masks: of a structured search.

        Raises:
          ValueError: the search was unstructured: no smaller array holds what is left.
        """
        if any(groups.kind == "entries" for groups in self.spec.values()):
            raise ValueError(
                "the search was unstructured, which leaves arrays as large as before; save what "
                "is left with io.save_adapter(..., mask=...)."
            )
        arrays = models.to_arrays(model)
        kept = pet_masks.compact(arrays, masks, self.spec)
        adapters = []
        for unit, groups in self.spec.items():
            settings, names = self.settings[unit], groups.arrays
            if not settings.in_place:
                for name in names:
                    del arrays[name]
            if names[0] not in kept:
                continue
            arrays |= {name: kept[name] for name in names}
            pattern = unit if settings.in_place else unit.removesuffix("/adapter")
            adapters.append((re.escape(pattern), _smaller(settings, groups, masks[unit])))
        config = dataclasses.replace(model.config, adapters=tuple(adapters))
        made = models.from_arrays(config, model.shapes, arrays)
        breaks = models.scan_boundaries(made, models.adapter_arrays(made))
        if breaks == config.scan_boundaries:
            return made
        config = dataclasses.replace(config, scan_boundaries=breaks)
        return models.from_arrays(config, made.shapes, arrays)


def _smaller(settings: nn.AdapterSettings, groups: Groups, masks) -> nn.AdapterSettings:
    if groups.kind != "chain":
        return settings
    bonds = pet_masks.chain_bonds(groups, masks)
    if settings.kind == "low_rank":
        return dataclasses.replace(settings, rank=bonds[0])
    return dataclasses.replace(settings, bond=None, bonds=bonds)


def read(model: models.Model, mode: str) -> SuperSet:
    """The super-set that the adapters of a model are.

    "structured": indices of bonds of low ranks and chains; whole vectors and cores. "unstructured":
    entries.

    Raises:
      ValueError: a model without adapters, an unknown mode, a bottleneck (which cannot be merged),
        an offset start in a structured search.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}.")
    kinds = models.adapter_arrays(model)
    if not kinds:
        raise ValueError(
            "the model has no adapters: make a super-set with mpojax.add_adapters(model, rules)."
        )
    if bottlenecks := sorted(name for name, kind in kinds.items() if kind == "bottleneck"):
        raise ValueError(
            f"{bottlenecks[0]} is of a bottleneck, which cannot be searched: what is left of a "
            "super-set is merged to be evaluated. Take low ranks, chains, rescaling or biases."
        )
    added, arrays = models.adapter_settings(model.config), models.to_arrays(model)
    members: dict[str, list[str]] = {}
    for name in kinds:
        unit, has_adapter, _ = name.partition("/adapter/")
        members.setdefault(f"{unit}/adapter" if has_adapter else name, []).append(name)
    spec, settings = {}, {}
    for unit, names in members.items():
        kind = kinds[names[0]]
        is_added = kind in nn.ADDED_KINDS
        settings[unit] = (
            added[unit.removesuffix("/adapter")] if is_added else nn.AdapterSettings(kind=kind)
        )
        if mode == "structured" and settings[unit].offset_seed is not None:
            raise ValueError(
                f"{unit} has an offset start, which needs an unstructured search: dropping a "
                "rank would leave its start behind. Use start='zero', or mode='unstructured'."
            )
        spec[unit] = Groups(_group_kind(kind, mode), tuple(sorted(names, key=_in_order)))
    sizes = {name: arrays[name].shape for name in kinds}
    reference = {name: np.asarray(arrays[name]) for name in kinds if _stays(name, kinds, settings)}
    return SuperSet(spec, sizes, reference, settings)


def _stays(name: str, kinds: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    unit = f"{name.partition('/adapter/')[0]}/adapter"
    is_offset = unit in settings and settings[unit].offset_seed is not None
    return kinds[name] not in _BACK_TO_ZERO or is_offset


def _group_kind(kind: str, mode: str) -> str:
    if mode == "unstructured":
        return "entries"
    return "chain" if kind in ("low_rank", "mpo") else "module"


def _in_order(name: str) -> tuple:
    """Factors as they are multiplied: down before up, cores by number."""
    leaf = name.rpartition("/")[2]
    return (int(leaf), "") if leaf.isdigit() else (0, leaf)
