"""Cuts of a matrix into row and column digits, their spectra, and the price of chains of them."""

import functools
import itertools
import math

import numpy as np

from mpojax.mpo import allocation, factors, weighted
from mpojax.mpo.shape import MPOShape

# Multiply-adds that the spectra of one matrix may take; the cheapest cuts come first.
_SCREENING_WORK = 4e10
_MAX_DIGITS = 12


class Lattice:
    """Cuts (a, b) of rows and columns, their spectra, and chains as paths of nested cuts.

    Cut (a, b) parts the first a of the rows' and b of the columns' combined digits from the rest.
    """

    def __init__(self, pairs, budget: int, max_cores: int):
        """`pairs` of matrices (in, out) and their covariances or None; `budget` of one chain."""
        self.size, self.budget = pairs[0][0].shape, budget
        self.rows, self.columns = (factors.padded_size(size, max_cores) for size in self.size)
        self.white = [self._padded(w, s) for w, s in pairs]
        self.cuts = self._affordable_cuts()
        self.tails = {cut: self._tails(cut) for cut in self.cuts}

    def _padded(self, w, s):
        white = w if s is None else weighted.whitened(w, s)
        return np.pad(white, ((0, self.rows - w.shape[0]), (0, self.columns - w.shape[1])))

    def _affordable_cuts(self) -> list[tuple[int, int]]:
        sites = self.rows * self.columns
        cuts = [
            (a, b)
            for a in _divisors(self.rows)
            for b in _divisors(self.columns)
            if (a, b) not in ((1, 1), (self.rows, self.columns))
        ]
        shorter = {cut: min(math.prod(cut), sites // math.prod(cut)) for cut in cuts}
        work, kept = 0.0, []
        for cut in sorted(cuts, key=lambda cut: (shorter[cut], cut)):
            short = shorter[cut]
            # Gram matrix and its eigenvalues, by the shorter side of the unfolding.
            work += short * sites + 4 * short**3
            if work > _SCREENING_WORK:
                break
            kept.append(cut)
        return sorted(kept)

    def _tails(self, cut) -> np.ndarray:
        """Mean squared relative tails of bonds 0, 1, ...; of the screened matrices."""
        (a, b), total = cut, 0.0
        for white in self.white:
            x = white.reshape(a, self.rows // a, b, self.columns // b).transpose(0, 2, 1, 3)
            x = x.reshape(a * b, -1)
            # Its eigenvalues are the squared singular values of x; the smaller of both has all.
            gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
            squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
            # tails[d] = sum_{a >= d} s_a^2: the squared error of a bond d
            tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            total = total + tails / (tails[0] or 1.0)
        return total / len(self.white)

    def pairs(self):
        return [
            (one, two) for one in self.cuts for two in self.cuts if one != two and _nested(one, two)
        ]

    def insertions(self, path):
        """Paths with one cut more than `path`."""
        for cut in self.cuts:
            if cut in path:
                continue
            # Behind all cuts of the path that are coarser in both rows and columns.
            at = sum(_nested(other, cut) for other in path)
            longer = (*path[:at], cut, *path[at:])
            if all(_nested(*pair) for pair in itertools.pairwise(longer)):
                yield longer

    def sites(self, path) -> list[int]:
        products = [1, *(a * b for a, b in path), self.rows * self.columns]
        return [after // before for before, after in itertools.pairwise(products)]

    def is_proper(self, path, bonds) -> bool:
        """True if every bond is cut: a full one only splits a core that holds the same unsplit."""
        return all(bond < len(self.tails[cut]) - 1 for cut, bond in zip(path, bonds, strict=True))

    def price(self, path):
        """(estimated error, path, bonds) with the best bonds of the budget; None if none fit."""
        sites = self.sites(path)
        tails = [self.tails[cut] for cut in path]
        if len(path) == 1:
            bond = min(self.budget // sum(sites), len(tails[0]) - 1)
            return None if bond < 1 else (math.sqrt(tails[0][bond]), path, (bond,))
        if len(path) == 2:
            return self._price_of_three(path, sites, tails)
        return self._price_of_longer(path, sites, tails)

    def _price_of_three(self, path, sites, tails):
        # parameters a_1 d_1 + d_1 a_2 d_2 + d_2 a_3 <= budget: d_2 follows from d_1
        first, middle, last = sites
        left = _grid(len(tails[0]) - 1)
        right = (self.budget - first * left) // (middle * left + last)
        # d_2 <= its full bond and <= d_1 a_2; below, d_1 <= d_2 a_2.
        right = np.minimum(right, np.minimum(len(tails[1]) - 1, left * middle))
        usable = right >= 1
        if not usable.any():
            return None
        left, right = left[usable], right[usable]
        left = np.minimum(left, right * middle)
        squares = tails[0][left] + tails[1][right]
        best = int(np.argmin(squares))
        return math.sqrt(squares[best]), path, (int(left[best]), int(right[best]))

    def _price_of_longer(self, path, sites, tails):
        """Bonds by one price per parameter, bisected; neighbours as they were before."""
        lengths = np.array([len(t) - 1 for t in tails])
        bonds = np.maximum(1, lengths // 4)
        losses = [np.maximum(t[:-1] - t[1:], 0.0) for t in tails]
        if sum(sites) > self.budget:  # with all bonds at 1
            return None
        # Logarithm of the price (relative squared error for a parameter).
        low, high = -40.0, 5.0
        # 45 / 2^18 of the logarithm: the price to about 2e-4 of itself.
        for _ in range(18):
            mid = (low + high) / 2
            bonds = self._bonds_at(math.exp(mid), sites, losses, bonds)
            if _num_params(sites, bonds) > self.budget:
                low = mid
            else:
                high = mid
        bonds = self._bonds_at(math.exp(high), sites, losses, bonds)
        while _num_params(sites, bonds) > self.budget:
            # Neighbours moved after the last bisection: the largest bonds give the rest.
            bonds = np.maximum(1, bonds - np.maximum(1, bonds // 50) * (bonds == bonds.max()))
        square = sum(t[bond] for t, bond in zip(tails, bonds, strict=True))
        return math.sqrt(square), path, tuple(int(bond) for bond in bonds)

    def _bonds_at(self, price, sites, losses, bonds):
        # The price of a bond depends on its neighbours: two rounds of a fixed point.
        for _ in range(2):
            # d_k where the loss of one more cut exceeds price * (d_(k-1) a_k + a_(k+1) d_(k+1))
            ends = [1, *bonds, 1]
            bonds = np.array(
                [
                    # Losses fall along a bond: the number of those above the price.
                    max(1, int(np.searchsorted(-loss, -price * unit)))
                    for k, loss in enumerate(losses)
                    for unit in [ends[k] * sites[k] + sites[k + 1] * ends[k + 2]]
                ]
            )
        return bonds

    def allocated(self, path, bonds) -> MPOShape | None:
        """Shape of a path; `allocation.allocate` refines its bonds from slightly larger ones."""
        edges = [(1, 1), *path, (self.rows, self.columns)]
        steps = list(itertools.pairwise(edges))
        shape = MPOShape(
            tuple(after[0] // before[0] for before, after in steps),
            tuple(after[1] // before[1] for before, after in steps),
            in_features=self.size[0],
            out_features=self.size[1],
        )
        # The bonds above ignore that cuts interact; a quarter more lets the allocation weigh that.
        roomy = [
            min(full, bond + max(4, bond // 4))
            for bond, full in zip(bonds, shape.full_bond_dims, strict=True)
        ]
        start = shape.with_bonds(tuple(roomy))
        if self.budget < shape.with_bonds(1).num_params:
            return None
        # s_a^2 = tails[a] - tails[a + 1]
        spectra = [np.sqrt(np.maximum(-np.diff(self.tails[cut]), 0.0)) for cut in path]
        return allocation.allocate([start], [spectra], self.budget)[0]


def _num_params(sites, bonds) -> int:
    ends = [1, *(int(bond) for bond in bonds), 1]
    return sum(ends[k] * site * ends[k + 1] for k, site in enumerate(sites))


def _nested(one, two) -> bool:
    return two[0] % one[0] == 0 and two[1] % one[1] == 0


def _grid(largest: int) -> np.ndarray:
    return np.unique(np.geomspace(1, largest, 48).round().astype(int))


@functools.lru_cache(maxsize=256)
def _divisors(size: int) -> tuple[int, ...]:
    """Divisors, thinned evenly to `_MAX_DIGITS`; 1 and the size are always among them."""
    divisors = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    divisors = sorted({*divisors, *(size // d for d in divisors)})
    if len(divisors) <= _MAX_DIGITS:
        return tuple(divisors)
    picked = np.unique(np.linspace(0, len(divisors) - 1, _MAX_DIGITS).round().astype(int))
    return tuple(divisors[index] for index in picked)
