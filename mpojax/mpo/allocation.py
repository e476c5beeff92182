"""Choosing the bonds of many matrices under one budget of parameters."""

import functools
import heapq
from collections.abc import Sequence

import numpy as np

from mpojax import checks
from mpojax.mpo.shape import MPOShape


def allocate(
    shapes: Sequence[MPOShape],
    spectra: Sequence[Sequence[np.ndarray]],
    budget: int,
    counts: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    loss: str = "squared",
) -> list[MPOShape]:
    """Cuts bonds one by one, always where the error grows least for each parameter saved.

    Lowering bond k of a matrix by one adds its smallest kept squared singular value, relative to
    the squared norm of the matrix, to the squared error bound, and saves d_{k-1} a_k + a_{k+1}
    d_{k+1} parameters with the current neighbours.

    Args:
      shapes: starting shapes, usually at full bonds.
      spectra: for each shape, the singular values of each of its bonds, descending.
      budget: largest sum of count * num_params over all matrices.
      counts: how many matrices each entry stands for (layers that share their bonds, with spectra
        from `pool_spectra`); default 1 each.
      weights: importance of each entry's relative squared error; default its count.
      loss: "squared" or "log", see `losses`.

    Returns:
      The shapes with reduced bonds; their parameters sum to at most `budget`.

    Raises:
      ValueError: the budget is below what all bonds at 1 need, or the inputs do not match.
    """
    shapes = list(shapes)
    counts = list(counts) if counts is not None else [1] * len(shapes)
    weights = list(weights) if weights is not None else counts
    _check(shapes, spectra, counts, weights)
    smallest = sum(c * s.with_bonds(1).num_params for c, s in zip(counts, shapes, strict=True))
    if budget < smallest:
        raise ValueError(
            f"budget of {budget} parameters is below the {smallest} that all bonds at 1 need."
        )
    entries = zip(shapes, spectra, counts, weights, strict=True)
    chains = [_Chain(*entry, loss) for entry in entries]
    total = sum(chain.size for chain in chains)
    heap = [(chain.price(k), c, k) for c, chain in enumerate(chains) for k in chain.cuttable()]
    heapq.heapify(heap)
    while total > budget:
        price, c, k = heapq.heappop(heap)
        chain = chains[c]
        # A blocked bond is pushed again when the neighbour that blocks it is cut.
        if not chain.can_cut(k):
            continue
        if (now := chain.price(k)) != price:  # a neighbour has changed since it was priced
            heapq.heappush(heap, (now, c, k))
            continue
        total -= chain.cut(k)
        first, last = chain.linked(k)
        # Savings of the neighbours, and what they allow, have changed with this bond.
        for near in range(first - 1, last + 2):
            if chain.can_cut(near):
                heapq.heappush(heap, (chain.price(near), c, near))
    return [chain.shape.with_bonds(tuple(chain.bonds[1:-1])) for chain in chains]


# Up to this many matrices are tried one by one for staying dense.
_MAX_TRIALS = 16


def allocate_or_keep(
    shapes: Sequence[MPOShape],
    spectra: Sequence[Sequence[np.ndarray]],
    budget: int,
    counts: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    loss: str = "squared",
) -> list[MPOShape | None]:
    """As `allocate`, but a matrix stays dense where a chain saves nothing; None stands for it.

    A chain at full bonds has more parameters than the matrix, so a matrix that is to keep nearly
    all of its parameters is better left alone: exact, and what its chain would cost goes to others.
    First every matrix whose chain would have at least as many parameters is kept, and the rest is
    allocated again; then others are kept one by one, as long as the total loss falls.

    Args:
      shapes, spectra, budget, counts, weights, loss: as for `allocate`; a matrix that stays dense
        takes `num_dense_params` of the budget.

    Raises:
      ValueError: as `allocate`.
    """
    counts = list(counts) if counts is not None else [1] * len(shapes)
    weights = list(weights) if weights is not None else counts
    entries = list(zip(shapes, spectra, counts, weights, strict=True))

    def attempt(kept):
        """(total loss, choice) with these entries dense; None if they leave too little."""
        rest = [index for index in range(len(entries)) if index not in kept]
        remaining = budget - sum(counts[index] * shapes[index].num_dense_params for index in kept)
        # With nothing kept `allocate` says that the budget is too small.
        if kept and remaining < sum(counts[i] * shapes[i].with_bonds(1).num_params for i in rest):
            return None
        choice: list[MPOShape | None] = [None] * len(entries)
        columns = [[entries[i][field] for i in rest] for field in range(4)]
        chosen = allocate(*columns[:2], remaining, *columns[2:], loss)
        for i, shape in zip(rest, chosen, strict=True):
            choice[i] = shape
        return sum(_total(entries[i], choice[i], loss) for i in rest), choice

    def settled(kept):
        """As `attempt`, after keeping every matrix whose chain saves nothing; and what is kept."""
        while True:
            total, choice = attempt(kept)
            useless = {
                index
                for index, shape in enumerate(choice)
                if shape is not None and shape.num_params >= shape.num_dense_params
            }
            if not useless:
                return total, choice, kept
            kept = kept | useless

    total, choice, kept = settled(set())
    while total > 0 and len(entries) <= _MAX_TRIALS:
        trials = [kept | {index} for index in range(len(entries)) if index not in kept]
        found = [(result[0], more) for more in trials if (result := attempt(more)) is not None]
        least, more = min(found, key=lambda trial: trial[0], default=(total, kept))
        if least >= total:
            break
        total, choice, kept = settled(more)
    return choice


def _total(entry, shape: MPOShape, loss: str) -> float:
    """Weighted loss of one entry at the bonds of `shape`."""
    _, spectra, _, weight = entry
    pairs = zip(spectra, shape.bond_dims, strict=True)
    return float(weight * sum(losses(s, loss)[bond:].sum() for s, bond in pairs))


def losses(spectrum, loss: str = "squared") -> np.ndarray:
    """Loss added by cutting a bond from r + 1 to r, for r = 0, 1, ...; zeros for no matrix.

    "squared": the squared singular value over the squared norm. "log": the growth of -log of the
    fraction of squared norm that is kept. About equal while errors are small; but in the second no
    gain elsewhere makes up for a matrix of which nothing is left.
    """
    squares = np.asarray(spectrum, np.float64) ** 2
    total = squares.sum()
    shares = squares / total if total > 0 else squares
    if loss == "squared" or total == 0:
        return shares
    # kept_r = sum_(i <= r) s_i^2 / sum_i s_i^2; the loss of a bond r is -log kept_r
    # 1e-12 for the nothing that a bond of 0 keeps: -log stays finite.
    kept = np.maximum(np.append(0.0, np.cumsum(shares)), 1e-12)
    return np.diff(np.log(kept))


class _Chain:
    """Current bonds of one matrix and what cutting each by one costs; bonds are 1-based."""

    def __init__(self, shape, spectra, count, weight, loss):
        self.shape, self.count = shape, count
        self.bonds, self.sites = [1, *shape.bond_dims, 1], shape.site_sizes
        self.losses = [weight * losses(spectrum, loss) for spectrum in spectra]
        self.size = count * shape.num_params

    def cuttable(self):
        return [k for k in range(1, len(self.bonds) - 1) if self.can_cut(k)]

    def linked(self, k):
        """Bonds first..last around k joined by sites of size 1: always equal, cut together."""
        first = last = k
        while self.sites[first - 1] == 1 and first > 1:
            first -= 1
        while self.sites[last] == 1 and last < len(self.bonds) - 2:
            last += 1
        return first, last

    def can_cut(self, k):
        """True if bond k exists, is above 1, and its neighbours fit through a smaller one."""
        if not 0 < k < len(self.bonds) - 1 or self.bonds[k] == 1:
            return False
        (first, last), smaller = self.linked(k), self.bonds[k] - 1
        return (
            self.bonds[first - 1] <= smaller * self.sites[first - 1]
            and self.bonds[last + 1] <= smaller * self.sites[last]
        )

    def saving(self, k):
        """Parameters saved by lowering bond k, and those linked to it, by one."""
        # From d to d - 1: d_(k-1) a_k + a_(k+1) d_(k+1), and of cores d x d between linked bonds
        # d^2 - (d - 1)^2 = 2 d - 1 each.
        first, last = self.linked(k)
        left = self.bonds[first - 1] * self.sites[first - 1]
        right = self.sites[last] * self.bonds[last + 1]
        between = (last - first) * (2 * self.bonds[k] - 1)
        return self.count * (left + between + right)

    def price(self, k):
        """Squared error added for each parameter saved."""
        return float(self.losses[k - 1][self.bonds[k] - 1]) / self.saving(k)

    def cut(self, k):
        """Lowers bond k and those linked to it; returns the parameters saved."""
        saved = self.saving(k)
        first, last = self.linked(k)
        for bond in range(first, last + 1):
            self.bonds[bond] -= 1
        return saved


def _check(shapes, spectra, counts, weights):
    if not len(shapes) == len(spectra) == len(counts) == len(weights):
        raise ValueError(
            f"shapes, spectra, counts and weights must have one entry for each matrix, got "
            f"{len(shapes)}, {len(spectra)}, {len(counts)} and {len(weights)}."
        )
    for shape, values in zip(shapes, spectra, strict=True):
        lengths = tuple(len(s) for s in values)
        if len(lengths) != shape.num_cores - 1 or any(
            have < bond for have, bond in zip(lengths, shape.bond_dims, strict=True)
        ):
            raise ValueError(
                f"spectra of lengths {lengths} do not cover the bonds {shape.bond_dims}."
            )


def allocate_ranks(
    losses: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    budget: int,
    counts: Sequence[int] | None = None,
    pivoted: bool | Sequence[bool] = True,
) -> list[int | None]:
    """Ranks of least total loss under a budget; None for a matrix that stays dense.

    Losses must be comparable, such as the rise of a model's loss that a curvature predicts. On the
    lower convex hull of each matrix' (parameters, loss) the steps of largest gain for a parameter
    come first (Lagrangian relaxation; exact up to the last step).

    Args:
      losses: for each matrix the loss at ranks 0..min(in, out), falling; or up to a largest rank.
      sizes: (in, out) of each.
      budget: largest sum of parameters, of dense matrices among them.
      counts: how many matrices each entry stands for; its losses are their sum.
      pivoted: ranks of pivoted chains, r (in + out - r) + out numbers, else r (in + out); for all
        or for each.

    Raises:
      ValueError: the budget is below rank 1 for all.

    Example:
      >>> losses = [np.array([14.0, 5.0, 1.0, 0.0]), np.array([6.5, 0.5, 0.0])]
      >>> allocate_ranks(losses, [(3, 3), (3, 2)], 14, pivoted=False)
      [None, 1]
    """
    counts = [1] * len(sizes) if counts is None else list(counts)
    pivoted = [pivoted] * len(sizes) if isinstance(pivoted, bool) else pivoted
    hulls = [_rank_hull(*entry) for entry in zip(losses, sizes, counts, pivoted, strict=True)]
    chosen = [0] * len(hulls)
    total = sum(hull[0][0] for hull in hulls)
    if total > budget:
        raise ValueError(f"budget of {budget} parameters is below the {total} that rank 1 needs.")
    for _, index, at in _steps(hulls):
        cost = hulls[index][at + 1][0] - hulls[index][at][0]
        # A step that does not fit ends its hull: those behind it build on it.
        if chosen[index] == at and total + cost <= budget:
            total, chosen[index] = total + cost, at + 1
    return [hull[at][2] for hull, at in zip(hulls, chosen, strict=True)]


def _steps(hulls) -> list[tuple[float, int, int]]:
    """(gain for a parameter, matrix, place on its hull), the largest gain first."""
    steps = [
        ((hull[at][1] - hull[at + 1][1]) / (hull[at + 1][0] - hull[at][0]), index, at)
        for index, hull in enumerate(hulls)
        for at in range(len(hull) - 1)
    ]
    # Gains fall along a convex hull: sorted, the steps of each matrix come in their order.
    return sorted(steps, key=lambda step: (-step[0], *step[1:]))


def price_of_parameters(losses, sizes, pivoted: Sequence[bool], budget: int) -> float:
    """Loss that one more parameter would save where a budget is spent as by `allocate_ranks`."""
    hulls = [_rank_hull(*entry, 1, p) for *entry, p in zip(losses, sizes, pivoted, strict=True)]
    total = sum(hull[0][0] for hull in hulls)
    for gain, index, at in _steps(hulls):
        total += hulls[index][at + 1][0] - hulls[index][at][0]
        if total > budget:
            # The Lagrange multiplier of the budget: the gain of the first step that does not fit.
            return gain
    return 0.0


def priced(losses, size: tuple[int, int], pivoted: bool, price: float) -> float:
    """The least loss(rank) + price * parameters(rank) of a matrix, dense among the choices."""
    return min(loss + price * cost for cost, loss, _ in _rank_hull(losses, size, 1, pivoted))


def log_shares(losses, keep: float) -> np.ndarray:
    """Share of its parameters that each matrix keeps, by SVD-LLM V2: removed ~ 1 / log(loss).

    Not free of units: losses must be above 1, and their scale decides how far shares differ.

    Args:
      losses: (n,) of matrices of one size at the same rank.
      keep: their mean share, from 0 to 1.

    Raises:
      ValueError: a loss of 1 or less.

    Example:
      >>> log_shares([10.0, 100.0, 1000.0], 0.6).round(3).tolist()
      [0.345, 0.673, 0.782]

    Wang et al., "SVD-LLM V2" (NAACL 2025, arXiv:2503.12340).
    """
    logs = np.log(np.asarray(losses, np.float64))
    if not logs.min() > 0:
        raise ValueError(
            f"losses={checks.shortened(list(losses))}: 1 / log of a loss of 1 or less is no share; "
            "they are sums over all tokens, in units in which each is well above 1."
        )
    removed, free = np.ones_like(logs), np.ones(logs.shape, bool)
    while free.any():
        # What is left to remove, (1 - keep) n - (those gone), in the ratio of 1 / log(loss)
        left = (1 - keep) * len(logs) - np.count_nonzero(~free)
        removed[free] = left / logs[free] / np.sum(1 / logs[free])
        if not (gone := free & (removed > 1)).any():
            break
        removed[gone], free = 1.0, free & ~gone
    return 1 - removed


def _rank_hull(losses, size: tuple[int, int], count: int, pivoted: bool):
    """[(parameters, loss, rank)] on the lower convex hull, from rank 1 to dense (rank None)."""
    rows, columns = size
    points = []
    for rank, cost in zip(range(1, len(losses)), _rank_costs(rows, columns, pivoted), strict=False):
        # From there on the dense matrix is exact and no larger.
        if cost < rows * columns:
            points.append((count * cost, float(losses[rank]), rank))
    points.append((count * rows * columns, 0.0, None))
    hull: list = []
    for point in points:
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


@functools.lru_cache(maxsize=256)
def _rank_costs(rows: int, columns: int, pivoted: bool) -> tuple[int, ...]:
    """Parameters of each rank below full; the matrices of a model have few sizes."""
    ranks = range(1, min(rows, columns))
    return tuple(MPOShape.low_rank(rows, columns, rank, pivoted).num_params for rank in ranks)


def _is_above(left, middle, right) -> bool:
    """True if the middle point lies on or above the line between its neighbours."""
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return middle[1] >= left[1] + slope * (middle[0] - left[0])
