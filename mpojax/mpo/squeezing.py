"""Cutting the bonds of many chains step by step: which cut is the cheapest, and what it moves.

The decision part of dimension squeezing (MPOP paper, algorithm 2), on shapes and spectra alone, and
the gauge maps by which quantities that go with the cores (gradients, moments) follow a new gauge.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mpojax import checks
from mpojax.mpo.shape import MPOShape

MEASURES = ("relative", "absolute", "per_number")


@checks.settings()
class BondGrid:
    """The bond dimensions that cuts stop at: few of them mean few compilations.

    Attributes:
      multiple: allowed bonds are multiples of this.
      factor: a cut lowers a bond at least to this fraction of it; 1 takes the next allowed one.
      minimum: no cut goes below.
      per_bond: each bond is cut by itself; else one cap lowers all bonds of a chain together.
    """

    multiple: int = checks.field(checks.integer(1), 8)
    factor: float = checks.field(checks.number(above=0, high=1), 1.0)
    minimum: int = checks.field(checks.integer(1), 1)
    per_bond: bool = checks.field(checks.flag(), False)

    def below(self, bond: int) -> int | None:
        """The next allowed bond dimension below one, or None where there is none."""
        target = min(bond - 1, math.floor(bond * self.factor))
        # Bonds under the first multiple go to the minimum.
        allowed = max(self.minimum, target // self.multiple * self.multiple)
        return allowed if allowed < bond else None


@dataclasses.dataclass(frozen=True)
class Cut:
    """One candidate: a group of matrices with lower bonds.

    Attributes:
      group: name of the group.
      bond: index of the bond, counted from 1, or None where one cap lowered all of them.
      bond_dim: the bond dimension after the cut, or the cap.
      shapes: the new shape of every matrix of the group.
      cost: sum over matrices and bonds of the squared singular values lost, by the measure asked.
      saved: parameters saved.
    """

    group: str
    bond: int | None
    bond_dim: int
    shapes: Mapping[str, MPOShape]
    cost: float
    saved: int


def cheapest_cut(
    groups: Mapping[str, Sequence[str]],
    shapes: Mapping[str, MPOShape],
    spectra: Mapping[str, Sequence[np.ndarray]],
    grid: BondGrid,
    *,
    measure: str = "relative",
    weights: Mapping[str, float] | None = None,
    excluded: Iterable[str] = (),
) -> Cut | None:
    """The cut with the least estimated error; None where no bond can be lowered.

    The cost of a matrix is the sum of the squared singular values that its bonds lose: exactly the
    squared error where one bond is cut, an upper bound of it otherwise.

    Args:
      groups: {group: matrix paths} that are cut together.
      shapes: current shape of every matrix.
      spectra: current singular values of its bonds, descending; at least as many as bonds.
      grid: where cuts stop.
      measure: "relative" divides the cost of a matrix by its squared norm, "absolute" does not
        (and keeps picking the matrix of the smallest norm), "per_number" is the relative cost for
        each number saved.
      weights: factor for the cost of each matrix, such as its part in the loss; default 1.
      excluded: groups that are left alone.

    Raises:
      ValueError: an unknown measure, or spectra that do not cover the bonds.
    """
    checks.check_value("measure", measure, checks.one_of(*MEASURES))
    excluded = set(excluded)
    best = None
    for group, paths in groups.items():
        if group in excluded:
            continue
        for cut in _candidates(group, paths, shapes, grid):
            cost = sum(
                (weights or {}).get(path, 1.0)
                * tail(shapes[path], spectra[path], new, is_relative=measure != "absolute")
                for path, new in cut.shapes.items()
            )
            # The greedy ratio of a knapsack: error for each parameter that goes.
            cost = cost / cut.saved if measure == "per_number" else cost
            if best is None or cost < best.cost:
                best = dataclasses.replace(cut, cost=cost)
    return best


def tail(
    shape: MPOShape, spectra: Sequence[np.ndarray], new: MPOShape, *, is_relative: bool
) -> float:
    """Squared singular values lost from `shape` to `new`, summed over bonds.

    Raises:
      ValueError: a spectrum shorter than its bond: it belongs to other cores.
    """
    lengths = tuple(len(spectrum) for spectrum in spectra)
    pairs = zip(lengths, shape.bond_dims, strict=False)
    if len(lengths) != len(shape.bond_dims) or any(have < bond for have, bond in pairs):
        raise ValueError(
            f"spectra of lengths {lengths} are stale: the bonds are {shape.bond_dims}. Refresh "
            "them from the current cores."
        )
    lost = 0.0
    for spectrum, before, after in zip(spectra, shape.bond_dims, new.bond_dims, strict=True):
        # sum_{a = after}^{before - 1} s_a^2
        lost += float(np.sum(np.square(spectrum[after:before], dtype=np.float64)))
    if not is_relative:
        return lost
    # Every bond has the whole norm: sum_a s_a^2 = norm(W)^2.
    norm = float(np.sum(np.square(spectra[0], dtype=np.float64))) if spectra else 0.0
    return lost / norm if norm > 0 else 0.0


def _candidates(group: str, paths: Sequence[str], shapes, grid: BondGrid) -> Iterable[Cut]:
    now = {path: shapes[path] for path in paths}
    if grid.per_bond:
        if len({shape.num_cores for shape in now.values()}) > 1:
            raise ValueError(f"group {group!r} mixes chains of different lengths: use one cap.")
        # A group is cut together, from the largest bond that one of its matrices has.
        tops = np.max([shape.bond_dims for shape in now.values()], axis=0).tolist()
    else:
        tops = [max(max(shape.bond_dims, default=1) for shape in now.values())]
    for index, top in enumerate(tops):
        bond_dim = grid.below(top)
        if bond_dim is None:
            continue
        bond = index + 1 if grid.per_bond else None
        lower = {path: _lowered(shape, bond, bond_dim) for path, shape in now.items()}
        saved = sum(now[path].num_params - lower[path].num_params for path in now)
        if saved > 0:
            yield Cut(group, bond, bond_dim, lower, 0.0, saved)


def _lowered(shape: MPOShape, bond: int | None, bond_dim: int) -> MPOShape:
    # One bond, or (None) all of them at one cap.
    bonds = [
        min(dimension, bond_dim) if bond in (None, index) else dimension
        for index, dimension in enumerate(shape.bond_dims, start=1)
    ]
    return shape.with_bonds(tuple(bonds))


def gauge_maps(
    old: Sequence[np.ndarray], new: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(p_k, its inverse) for k = 0..n, with new_k = p_{k-1}^-1 old_k p_k (float64, on the host).

    Found from the auxiliary cores alone: by the left ones for bonds up to the central core, by the
    right ones for the others. Unique where these parts of `old` have full rank; pseudo-inverses
    where they have not, or where `new` has smaller bonds.

    Args:
      old: cores in any gauge.
      new: cores of the same matrix in another gauge, bonds at most those of `old`.
    """
    count, central = len(old), (len(old) - 1) // 2
    one = (np.ones((1, 1)), np.ones((1, 1)))
    maps = [one] * (count + 1)
    for k in range(central):
        moved = np.tensordot(maps[k][1], np.asarray(old[k], np.float64), axes=1)
        target = np.asarray(new[k], np.float64).reshape(-1, new[k].shape[3])
        # p_k = argmin ||(p_(k-1)^-1 old_k) p - new_k||
        p = np.linalg.lstsq(moved.reshape(-1, old[k].shape[3]), target, rcond=None)[0]
        maps[k + 1] = (p, np.linalg.pinv(p))
    for k in range(count - 1, central, -1):
        moved = np.tensordot(np.asarray(old[k], np.float64), maps[k + 1][0], axes=1)
        target = np.asarray(new[k], np.float64).reshape(new[k].shape[0], -1)
        # p_(k-1)^-1 = argmin ||p (old_k p_k) - new_k||
        inverse = np.linalg.lstsq(moved.reshape(old[k].shape[0], -1).T, target.T, rcond=None)[0].T
        maps[k] = (np.linalg.pinv(inverse), inverse)
    return maps


def transform_gradients(
    gradients: Sequence[np.ndarray | None],
    maps: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    squared: bool = False,
) -> list[np.ndarray | None]:
    """Gradients, or first moments, of cores in a new gauge: g_k' = p_{k-1}^T g_k p_k^-T.

    The law by which <g_k, dT_k> stays the same when T_k' = p_{k-1}^-1 T_k p_k.

    Args:
      gradients: one array of the shape of each old core; None where there is none (frozen cores).
      maps: from `gauge_maps`.
      squared: apply the squared entries of the maps, for second moments. An element-wise second
        moment has no exact image; this is the one of uncorrelated entries, and never negative.
    """
    results = []
    for k, gradient in enumerate(gradients):
        if gradient is None:
            results.append(None)
            continue
        # g_k' = p_(k-1)^T g_k p_k^-T
        left, right = maps[k][0].T, maps[k + 1][1].T
        if squared:
            # E[(sum_a l_a g_a)^2] = sum_a l_a^2 E[g_a^2] for uncorrelated g
            left, right = np.square(left), np.square(right)
        moved = np.tensordot(left, np.asarray(gradient, np.float64), axes=1)
        results.append(np.tensordot(moved, right, axes=1))
    return results
