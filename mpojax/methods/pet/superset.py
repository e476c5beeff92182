"""The adapters of a model as a super-set to prune: its units, and what is left of them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpojax import checks, models, nn
from mpojax.methods.pet import allocation
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet.groups import Chain, Entries, Masks, Module, Unit

MODES = ("structured", "unstructured")
# Kinds with bonds. Dropping means back to zero, where the update is added; back to the start for
# all others.
_WITH_BONDS = ("low_rank", "mpo")


@dataclasses.dataclass(frozen=True)
class SuperSet:
    """Units of a super-set; heads are no part of it.

    Attributes:
      spec: {name: unit}; a unit is named by the path of its adapter, or of the array in place.
      sizes: {array path: shape}.
      reference: {array path: what a dropped entry becomes}, where that is not zero.
      settings: {name: of its adapter}.
    """

    spec: dict[str, Unit]
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

    def apply_mask(self, params: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
        """The parameters with dropped entries back at their reference."""
        return pet_masks.apply_mask(params, masks, self.spec, self.reference)

    def compacted(self, model: models.Model, masks: Masks) -> models.Model:
        """The model with the smaller adapters that are left; it computes the same.

        Args:
          model: whose dropped entries are back at their reference.
          masks: of a structured search.

        Raises:
          ValueError: the search was unstructured: no smaller array holds what is left.
        """
        if any(isinstance(unit, Entries) for unit in self.spec.values()):
            raise ValueError(
                "the search was unstructured, which leaves arrays as large as before; save what "
                "is left with io.save_adapter(..., mask=...)."
            )
        arrays = models.to_arrays(model)
        kept = pet_masks.compact(arrays, masks, self.spec)
        adapters = []
        for name, unit in self.spec.items():
            settings = self.settings[name]
            if not settings.in_place:
                for array in unit.arrays:
                    del arrays[array]
            if unit.arrays[0] not in kept:
                continue
            arrays |= {array: kept[array] for array in unit.arrays}
            pattern = name if settings.in_place else name.removesuffix("/adapter")
            adapters.append((re.escape(pattern), _smaller(settings, unit, masks[name])))
        config = dataclasses.replace(model.config, adapters=tuple(adapters))
        made = models.from_arrays(config, model.shapes, arrays)
        # Biases that only some layers of a stack train now: a stack is trained as a whole.
        breaks = models.scan_boundaries(made, models.adapter_arrays(made))
        if breaks == config.scan_boundaries:
            return made
        config = dataclasses.replace(config, scan_boundaries=breaks)
        return models.from_arrays(config, made.shapes, arrays)


def _smaller(settings: nn.AdapterSettings, unit: Unit, masks) -> nn.AdapterSettings:
    if not isinstance(unit, Chain):
        return settings
    bonds = unit.bonds(masks)
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
    checks.check_value("mode", mode, checks.one_of(*MODES))
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
    spec, settings, reference = {}, {}, {}
    for name, names in _members(kinds).items():
        kind = kinds[names[0]]
        is_added = kind in nn.ADDED_KINDS
        own = added[name.removesuffix("/adapter")] if is_added else nn.AdapterSettings(kind=kind)
        if mode == "structured" and own.offset_seed is not None:
            raise ValueError(
                f"{name} has an offset start, which needs an unstructured search: dropping a "
                "rank would leave its start behind. Use start='zero', or mode='unstructured'."
            )
        spec[name], settings[name] = _unit(kind, mode, names), own
        if kind not in _WITH_BONDS or own.offset_seed is not None:
            reference |= {array: np.asarray(arrays[array]) for array in names}
    return SuperSet(spec, {name: arrays[name].shape for name in kinds}, reference, settings)


def _members(kinds: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """{unit: its arrays}, factors as they are multiplied: down before up, cores by number."""
    members: dict[str, list[str]] = {}
    for name in kinds:
        unit, has_adapter, _ = name.partition("/adapter/")
        members.setdefault(f"{unit}/adapter" if has_adapter else name, []).append(name)
    return {unit: tuple(sorted(names, key=_in_order)) for unit, names in members.items()}


def _unit(kind: str, mode: str, names: tuple[str, ...]) -> Unit:
    if mode == "unstructured":
        return Entries(names)
    return Chain(names) if kind in _WITH_BONDS else Module(names)


def _in_order(name: str) -> tuple:
    leaf = name.rpartition("/")[2]
    # "down" < "up", as the factors are multiplied; cores 0, 1, ..., 10 by value.
    return (int(leaf), "") if leaf.isdigit() else (0, leaf)
