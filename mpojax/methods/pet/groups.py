"""Units of a super-set of adapters, and the groups of parameters that are pruned from each.

| unit    | a group is                                     | scores, masks                     |
| Module  | the whole unit                                 | one array ()                      |
| Entries | an entry                                       | for each array one of its shape   |
| Chain   | an index of a bond: a slice of both its cores  | for each inner bond one (d_k,)    |
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import mpo

Sizes = Mapping[str, tuple[int, ...]]  # {array path: shape}
UnitMasks = tuple[np.ndarray, ...]  # boolean arrays of one unit: True where a group is left
Masks = dict[str, UnitMasks]  # {unit: masks}
Scores = dict[str, tuple[Any, ...]]  # {unit: one array for each of its masks}


@dataclasses.dataclass(frozen=True)
class Unit(abc.ABC):
    """One bias vector, or one adapter of a matrix.

    Attributes:
      arrays: paths of its arrays.
    """

    arrays: tuple[str, ...]

    def shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """Of its arrays."""
        return [tuple(sizes[name]) for name in self.arrays]

    def num_parameters(self, sizes: Sizes) -> int:
        """Of all its arrays, nothing dropped."""
        return sum(map(math.prod, self.shapes(sizes)))

    @abc.abstractmethod
    def mask_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """Shapes of its masks, and of its scores."""

    @abc.abstractmethod
    def cost(self, masks: Sequence[np.ndarray], sizes: Sizes) -> int:
        """Parameters that are left."""

    @abc.abstractmethod
    def smallest(self, sizes: Sizes) -> int:
        """Parameters of the least that can be left of it without being gone."""

    @abc.abstractmethod
    def freed(self, masks: Sequence[np.ndarray], index: int, sizes: Sizes) -> int:
        """Parameters that dropping one more group of `masks[index]` frees."""

    @abc.abstractmethod
    def sums(self, entries: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Sums of each group's entries, from arrays like the unit's."""

    @abc.abstractmethod
    def norms(self, entries: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Size of each group, from arrays like the unit's."""

    @abc.abstractmethod
    def entry_masks(self, masks: Sequence[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Boolean arrays of the shapes of its arrays: which entries are left."""

    @abc.abstractmethod
    def group_masks(self, entries: Sequence[np.ndarray]) -> UnitMasks:
        """Inverse of `entry_masks`."""

    @abc.abstractmethod
    def compact(self, values: Sequence[Any], masks: Sequence[np.ndarray]) -> dict[str, Any]:
        """{array path: what is left of it}, without arrays of which nothing is left."""

    def balanced(self, scores: Sequence[np.ndarray], masks: UnitMasks, balance: str) -> tuple:
        """Scores made comparable between the arrays of the unit; see `scores.normalise`."""
        del masks, balance
        return tuple(scores)

    def after_drop(self, masks: UnitMasks, index: int) -> bool:
        """True if what other groups of the unit free has changed; may drop more in place."""
        del masks, index
        return False


class Module(Unit):
    """Kept or dropped as a whole."""

    def mask_shapes(self, sizes):
        return [()]

    def cost(self, masks, sizes):
        return int(masks[0]) * self.num_parameters(sizes)

    def smallest(self, sizes):
        return self.num_parameters(sizes)

    def freed(self, masks, index, sizes):
        return self.cost(masks, sizes)

    def sums(self, entries):
        return (sum(jnp.sum(array) for array in entries),)

    def norms(self, entries):
        return (np.sqrt(sum(np.sum(np.square(array)) for array in entries)),)

    def entry_masks(self, masks, sizes):
        return [np.full(shape, bool(masks[0])) for shape in self.shapes(sizes)]

    def group_masks(self, entries):
        return (np.asarray(entries[0].any()),)

    def compact(self, values, masks):
        return dict(zip(self.arrays, values, strict=True)) if masks[0] else {}


class Entries(Unit):
    """Single entries (unstructured); what is left are pairs (indices (n,) int32, values (n,))."""

    def mask_shapes(self, sizes):
        return self.shapes(sizes)

    def cost(self, masks, sizes):
        return int(sum(np.count_nonzero(mask) for mask in masks))

    def smallest(self, sizes):
        return 1

    def freed(self, masks, index, sizes):
        return 1

    def sums(self, entries):
        return tuple(entries)

    def norms(self, entries):
        return tuple(np.abs(array) for array in entries)

    def entry_masks(self, masks, sizes):
        return [np.asarray(mask) for mask in masks]

    def group_masks(self, entries):
        return tuple(entries)

    def compact(self, values, masks):
        found = {}
        for name, value, mask in zip(self.arrays, values, masks, strict=True):
            indices = np.flatnonzero(mask).astype(np.int32)
            if indices.size:
                found[name] = indices, value.reshape(-1)[indices]
        return found

    def balanced(self, scores, masks, balance):
        if balance == "none" or len(scores) < 2:
            return tuple(scores)
        sizes = [np.abs(s[m]) for s, m in zip(scores, masks, strict=True)]
        means = [float(size.mean()) if size.size else 0.0 for size in sizes]
        whole = float(np.concatenate(sizes).mean()) if any(s.size for s in sizes) else 0.0
        # s / mean(array) [* mean(unit)]: the factors of a unit level with each other.
        factor = whole if balance == "unit_mean" else 1.0
        return tuple(
            s / mean * factor if mean else s for s, mean in zip(scores, means, strict=True)
        )


class Chain(Unit):
    """Indices of the bonds of a chain of cores.

    `arrays` are its cores in order, (d_{k-1}, i_k, j_k, d_k), or the two factors (in, rank),
    (rank, out) of low rank, which is the chain of two cores. A chain with an empty bond is gone.
    """

    def __post_init__(self):
        if len(self.arrays) < 2:
            raise ValueError(f"a chain of {len(self.arrays)} core has no bond to prune.")

    def mask_shapes(self, sizes):
        return [shape[-1:] for shape in self.shapes(sizes)[:-1]]

    def bonds(self, masks: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Bond dimensions that are left."""
        return tuple(int(np.count_nonzero(mask)) for mask in masks)

    def cost(self, masks, sizes):
        return self._cost(self.bonds(masks), sizes)

    def smallest(self, sizes):
        # All bonds 1: a core of i_k j_k numbers at each site.
        return sum(self._site_sizes(sizes))

    def freed(self, masks, index, sizes):
        # d_{k-1} i_k j_k + i_{k+1} j_{k+1} d_{k+1}, the slices of both cores next to the bond; the
        # whole chain with the last index of a bond.
        bonds = list(self.bonds(masks))
        whole = self._cost(bonds, sizes)
        bonds[index] -= 1
        return whole - self._cost(bonds, sizes)

    def _cost(self, bonds: Sequence[int], sizes: Sizes) -> int:
        if 0 in bonds:
            return 0
        ends = (1, *bonds, 1)
        return sum(ends[k] * size * ends[k + 1] for k, size in enumerate(self._site_sizes(sizes)))

    def _site_sizes(self, sizes: Sizes) -> list[int]:
        """i_k j_k of each core."""
        shapes = self.shapes(sizes)
        if len(shapes[0]) == 2:
            return [shapes[0][0], shapes[1][1]]
        return [math.prod(shape[1:-1]) for shape in shapes]

    def sums(self, entries):
        # Of a bond one side, its left core: both sides give the same number.
        return tuple(jnp.sum(core, axis=tuple(range(core.ndim - 1))) for core in entries[:-1])

    def norms(self, entries):
        """Norm of what passes through each index, by the two cores next to its bond.

        Exact for low ranks, and in a gauge in which the other cores are orthogonal.
        """
        left = [np.linalg.norm(e.reshape(-1, e.shape[-1]), axis=0) for e in entries[:-1]]
        right = [np.linalg.norm(e.reshape(len(e), -1), axis=1) for e in entries[1:]]
        # |u_a| |v_a|: the norm of the rank-one matrix through index a.
        return tuple(one * other for one, other in zip(left, right, strict=True))

    def entry_masks(self, masks, sizes):
        parts = []
        for k, shape in enumerate(self.shapes(sizes)):
            part = np.ones(shape, bool)
            if k > 0:
                # An entry is left if both indices of its bonds are.
                part &= masks[k - 1].reshape(-1, *(1,) * (len(shape) - 1))
            if k < len(masks):
                # (..., d_k): the mask lies on the last axis.
                part &= masks[k]
            parts.append(part)
        return parts

    def group_masks(self, entries):
        # The left core of a bond is enough: both neighbours hold the same indices of it.
        return tuple(part.any(axis=tuple(range(part.ndim - 1))) for part in entries[:-1])

    def compact(self, values, masks):
        if not all(mask.any() for mask in masks):
            return {}
        return dict(zip(self.arrays, _sliced(values, masks), strict=True))

    def after_drop(self, masks, index):
        if not masks[index].any():
            for mask in masks:
                mask[...] = False
            return True
        # Each index of a single bond frees i_1 j_1 + i_2 j_2, whatever else is left.
        return len(masks) > 1

    def regauge(self, trees: Sequence[tuple[dict[str, Any], bool]], masks: UnitMasks) -> UnitMasks:
        """Turns the bonds along singular vectors; see `masks.regauge`.

        Args:
          trees: ({array path: array}, is it a second moment?); the first holds the cores. Changed
            in place.
          masks: what is left.

        Returns:
          The masks afterwards.
        """
        cores = self._alive(trees[0][0], masks)
        # Indices by descending singular value, which both neighbours share evenly.
        new = mpo.canonicalize(tuple(cores), "symmetric")
        maps = mpo.gauge_maps(cores, new)
        self._put(trees[0][0], new)
        for values, squared in trees[1:]:
            parts = self._alive(values, masks)
            self._put(values, mpo.transform_gradients(parts, maps, squared=squared))
        bonds = [core.shape[3] for core in new[:-1]]
        return tuple(np.arange(len(m)) < bond for m, bond in zip(masks, bonds, strict=True))

    def _alive(self, values: Mapping[str, Any], masks: UnitMasks) -> list[np.ndarray]:
        """Cores (d, i, j, d') without what is dropped, float64."""
        cores = [np.asarray(values[name], np.float64) for name in self.arrays]
        if cores[0].ndim == 2:
            cores = [cores[0][None, :, None, :], cores[1][:, None, :, None]]
        return _sliced(cores, masks)

    def _put(self, values: dict[str, Any], cores: Sequence[np.ndarray]) -> None:
        """Puts cores in place, filled up with zeros where bonds became smaller."""
        for k, (name, core) in enumerate(zip(self.arrays, cores, strict=True)):
            # Shapes stay, so that the step's program need not be compiled again.
            whole, core = np.zeros_like(np.asarray(values[name])), np.asarray(core)
            if whole.ndim == 2:
                core = core[0, :, 0, :] if k == 0 else core[:, 0, :, 0]
            whole[tuple(slice(0, size) for size in core.shape)] = core
            values[name] = whole


def _sliced(values: Sequence, masks: Sequence[np.ndarray]) -> list:
    """Cores at the indices of their bonds that are left."""
    kept = [np.flatnonzero(mask) for mask in masks]
    parts = []
    for k, value in enumerate(values):
        value = value if k == 0 else value[kept[k - 1]]
        parts.append(value if k == len(kept) else value[..., kept[k]])
    return parts


Spec = Mapping[str, Unit]  # {name: unit}
