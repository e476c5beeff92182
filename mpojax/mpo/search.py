"""Search for factor lists: which digits a chain should have at a given number of parameters.

A bond of a chain splits the rows into the first a and the rest (a divides the rows), the columns
likewise into b; its spectrum depends on (a, b) alone. So the spectra of a lattice of cuts, each
computed once, price every list of factors: a list is a path of nested cuts, its estimated error
sqrt(sum of the tails), in the weighted norm those of S^(1/2) W. Two and three cores are priced
exhaustively, longer lists grow from the best shorter ones (beam). The best of each length are then
fitted by alternating least squares and compared by their true error. Low rank, the path with the
one cut (rows, 1), is always compared too: the result is never worse than truncated SVD, plain or
data-aware, with as many parameters.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mpojax import checks
from mpojax.mpo import alternating, contract, weighted
from mpojax.mpo import lattice as lattice_lib
from mpojax.mpo.shape import MPOShape

# Matrices whose spectra are computed (evenly spaced ones, where many share their lists).
_SCREENED = 2
_BEAM = 4
# A list is tried when its estimate is within this factor of the error of low rank (fits have
# lowered estimates by up to a quarter), at most so many; and fitted to the end when it is within
# the second factor after one sweep (later ones have lowered it by up to a tenth).
_WORTH_TRYING, _MAX_TRIED = 1.5, 2
_WORTH_FITTING = 1.15


@dataclasses.dataclass(frozen=True)
class Searched:
    """Result of a search.

    Attributes:
      shape: the chain; at most the budget of parameters.
      cores: for each matrix its cores, float64.
      errors: for each matrix the relative weighted error (of the covariance without ridge).
      low_rank_errors: for each matrix that of the best truncated SVD with at most the budget of
        parameters, plain or data-aware; 1 where not even rank 1 fits.
      tried: (shape, estimated error) of every list that was fitted.
    """

    shape: MPOShape
    cores: tuple[tuple[np.ndarray, ...], ...]
    errors: tuple[float, ...]
    low_rank_errors: tuple[float, ...]
    tried: tuple[tuple[MPOShape, float], ...]


def search_factors(
    w,
    budget: int,
    covariance=None,
    *,
    max_cores: int = 5,
    ridge: float = weighted.DEFAULT_RIDGE,
    sweeps: int = 4,
    steps: int = 6,
    low_ranks: Sequence[Sequence[weighted.LowRank]] | None = None,
) -> Searched:
    """The chain of least weighted error with at most `budget` parameters; deterministic, float64.

    Args:
      w: matrix (in, out), or a sequence of matrices of one size that are to share one shape.
      budget: parameters of one chain.
      covariance: of the inputs, (in, in) or (in,), or a sequence of them; None for the plain norm.
        Also `Metric`s, which have their ridge.
      max_cores: 2 to 5, longest list.
      ridge: see `weighted.regularized`; fits use it, errors are measured without.
      sweeps, steps: of the final fit, see `alternating.fit`.
      low_ranks: for each matrix its factorisations, in its metric and the plain one, where the
        caller has them.

    Raises:
      ValueError: matrices that do not fit each other or their covariances, non-finite entries, or
        a budget below the smallest chain.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> rng = np.random.default_rng(0)
      >>> w = np.kron(rng.standard_normal((4, 4)), rng.standard_normal((4, 4)))
      >>> found = mpo.search_factors(w, 32)  # a Kronecker product: bonds of 1, no low rank
      >>> found.shape.in_factors, found.shape.bonds, found.errors[0] < 1e-9
      ((4, 4), (1,), True)
    """
    ws = [np.asarray(m, np.float64) for m in ([w] if hasattr(w, "ndim") else w)]
    problem = _Problem(ws, _as_list(covariance, len(ws)), budget, ridge)
    checks.check_value("max_cores", max_cores, checks.integer(2, 5))
    base, low_rank_errors = problem.low_rank(low_ranks)
    # Where not even rank 1 fits, any chain is welcome.
    bar = math.inf if base is None else max(low_rank_errors)
    candidates = _screened(problem, max_cores, _WORTH_TRYING * bar)
    if base is None and not candidates:
        raise ValueError(
            f"budget of {budget} parameters is too small: no chain for {ws[0].shape} has so few."
        )
    tried = [(shape, error) for error, shape in candidates]
    best = _raced(problem, candidates, _WORTH_FITTING * bar)
    if best is not None:
        fits = [alternating.fit(m, best, s, sweeps=sweeps, steps=steps) for m, s in problem.pairs]
        errors = problem.errors([fit.cores for fit in fits], best)
        # Sharing one shape, no matrix may end worse than as low rank.
        better = all(a <= b for a, b in zip(errors, low_rank_errors, strict=True))
        if base is None or (better and errors != low_rank_errors):
            cores = tuple(fit.cores for fit in fits)
            return Searched(best, cores, errors, low_rank_errors, tuple(tried))
    shape, cores = base
    return Searched(shape, cores, low_rank_errors, low_rank_errors, tuple(tried))


class _Problem:
    """The matrices, their metrics, and the errors of chains for them."""

    def __init__(self, ws, covariances, budget: int, ridge: float):
        if any(m.shape != ws[0].shape or m.ndim != 2 for m in ws) or not ws:
            raise ValueError(f"w must be matrices of one size, got {[m.shape for m in ws]}.")
        if not all(np.all(np.isfinite(m)) for m in ws):
            raise ValueError("w holds NaN or infinite entries.")
        self.ws, self.budget, self.size = ws, budget, ws[0].shape
        self.metrics = [_metric(s, self.size[0], ridge) for s in covariances]
        self.pairs = list(zip(ws, self.metrics, strict=True))
        # Evenly over depth: neighbouring layers are alike, and screening costs by the matrix.
        picked = np.linspace(0, len(ws) - 1, min(_SCREENED, len(ws))).astype(int)
        self.screened = [self.pairs[index] for index in sorted(set(picked.tolist()))]

    def errors(self, all_cores, shape) -> tuple[float, ...]:
        """True relative errors, without ridge."""
        return tuple(
            self._error(w, metric, cores, shape)
            for (w, metric), cores in zip(self.pairs, all_cores, strict=True)
        )

    def _error(self, w, metric, cores, shape) -> float:
        covariance = None if metric is None else metric.covariance
        return weighted.weighted_relative_error(w, contract.to_matrix(cores, shape), covariance)

    def low_rank(self, low_ranks=None):
        """((shape, cores for each matrix) or None, errors): the better SVD, plain or weighted."""
        # r (in + out) parameters
        rank = min(self.budget // sum(self.size), min(self.size))
        if rank == 0:
            return None, (1.0,) * len(self.ws)
        shape = MPOShape.low_rank(*self.size, rank)
        chosen, errors = [], []
        for index, (w, metric) in enumerate(self.pairs):
            own = [weighted.LowRank(w, s) for s in dict.fromkeys([metric, None])]
            options = [each.cores(rank) for each in (low_ranks[index] if low_ranks else own)]
            found = [self._error(w, metric, cores, shape) for cores in options]
            chosen.append(options[int(np.argmin(found))])
            errors.append(min(found))
        return (shape, tuple(chosen)), tuple(errors)


def _metric(covariance, in_features: int, ridge: float) -> weighted.Metric | None:
    if covariance is None or isinstance(covariance, weighted.Metric):
        return covariance
    return weighted.Metric(covariance, weighted.regularized(covariance, in_features, ridge))


def _as_list(covariance, count: int) -> list:
    if covariance is None:
        return [None] * count
    is_one = isinstance(covariance, np.ndarray | weighted.Metric)
    covariances = [covariance] if is_one else list(covariance)
    if len(covariances) != count:
        raise ValueError(f"{len(covariances)} covariances for {count} matrices; give one for each.")
    return covariances


def _screened(problem: _Problem, max_cores: int, limit) -> list[tuple[float, MPOShape]]:
    """(estimated error up to `limit`, shape with bonds) of the best list of each length."""
    lattice = lattice_lib.Lattice(problem.screened, problem.budget, max_cores)
    found, beam = [], []
    for n in range(2, max_cores + 1):
        if n <= 3:
            paths = [(cut,) for cut in lattice.cuts] if n == 2 else lattice.pairs()
        else:
            paths = sorted({p for _, path, _ in beam for p in lattice.insertions(path)})
        # A longer chain of good cuts has good cuts: the beam of n - 1 cores seeds that of n.
        priced = sorted(
            (e for e in map(lattice.price, paths) if e is not None and lattice.is_proper(*e[1:])),
            key=lambda entry: entry[:2],
        )
        beam = priced[:_BEAM]
        # Of two cores the cuts that part all rows from all columns are low rank itself.
        alike = [((lattice.rows, 1),), ((1, lattice.columns),)]
        found += [entry for entry in priced if entry[1] not in alike][:1]
    found = sorted(entry for entry in found if entry[0] <= limit)[:_MAX_TRIED]
    shapes = [(error, lattice.allocated(path, bonds)) for error, path, bonds in found]
    return [(error, shape) for error, shape in shapes if shape is not None]


def _raced(problem: _Problem, candidates, limit: float) -> MPOShape | None:
    """The list with the least root mean square error of the screened matrices after one sweep.

    None where that is above `limit`.
    """
    scores = []
    for _, shape in candidates:
        fits = [alternating.fit(w, shape, s, sweeps=1, steps=4) for w, s in problem.screened]
        scores.append(math.sqrt(sum(fit.error**2 for fit in fits) / len(fits)))
    if not scores or min(scores) > limit:
        return None
    return candidates[int(np.argmin(scores))][1]
