"""The matrices of experts approximated together, so that what they share is stored once.

Of E experts with matrices W_e (in, out), and inputs of covariance S_e, the error is

    sum_e || S_e^(1/2) (W_e - W'_e) ||_F^2

| form          | W'_e              | numbers                | found                             |
| own           | L_e R_e           | E r (in + out)         | closed form, each expert alone    |
| shared_first  | C R_e             | r (in + E out)         | by turns, see `mpo.SharedLowRank` |
| shared_last   | L_e C             | r (E in + out) + E     | closed form                       |
| shared_centre | L_e C R_e, chains | E (|L| + |R|) + |C|    | by turns, core by core            |
| base + ...    | B + the first 3   | in out + those         | by turns with B                   |

`own` and `base + own` are what others do (SVD of each expert; a common matrix and low-rank
differences, as in D2-MoE, Gu et al., 2025, arXiv:2502.17298); in all others one core C serves all
experts, as in MPOE. In plain low rank L_e C R_e with a private factor on both sides only wastes C:
L_e could take it in. So the centre of `shared_centre` is the wide core of chains, whose outer cores
act on a few digits of rows and columns.

S_e are sums over the tokens of an expert, over the number of all tokens: experts then weigh by what
they do. All of it runs on the host in float64.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mpojax.mpo import alternating, contract, decomposition
from mpojax.mpo.experts.kernels import group_factors
from mpojax.mpo.shape import MPOShape
from mpojax.mpo.sharing import SharedLowRank
from mpojax.mpo.weighted import LowRank, Metric

BASELINES = ("own", "base + own")
LOW_RANK = ("own", "shared_first", "shared_last")
CENTRE = "shared_centre"
FORMS = (*LOW_RANK, *(f"base + {form}" for form in LOW_RANK), CENTRE)

# Chains are fitted up to about so many multiply-adds; a minute or two.
_MOST_WORK = 5e11
_SWEEPS, _STEPS = 6, 8
_TURNS = 3  # of a base and what is added to it


@dataclasses.dataclass(frozen=True)
class ExpertFit:
    """What stands for the matrices of all experts.

    Attributes:
      form: a name in `FORMS`.
      shape: of the chain of one expert.
      cores: of the chains, those that experts own with a leading axis of experts, float64.
      base: (in, out), added to every chain; None for nothing.
      squared_error: in the metrics of the fit.
    """

    form: str
    shape: MPOShape
    cores: tuple[np.ndarray, ...]
    base: np.ndarray | None = None
    squared_error: float = np.inf

    @property
    def shares_core(self) -> bool:
        """True if the central core is one for all experts."""
        return self.cores[self.shape.central].ndim == 4

    @property
    def num_params(self) -> int:
        """Numbers in all cores and in the base."""
        return sum(core.size for core in self.cores) + (0 if self.base is None else self.base.size)

    def matrix(self, expert: int) -> np.ndarray:
        """(in, out) of one expert."""
        cores = [core[expert] if core.ndim == 5 else core for core in self.cores]
        w = contract.to_matrix(tuple(cores), self.shape)
        return w if self.base is None else w + self.base


class ExpertMatrices:
    """Approximations of the matrices of one map of all experts, at any size."""

    def __init__(self, ws, covariances: "Sequence[Metric | np.ndarray] | None" = None):
        """`ws` (experts, in, out); `covariances` positive definite, None for the plain norm."""
        self.ws = np.asarray(ws, np.float64)
        self.number, *self.size = self.ws.shape
        if covariances is None:
            covariances = [np.ones(self.size[0])] * self.number
        self.metrics = [Metric.of(each) for each in covariances]

    def error(self, fit: ExpertFit) -> float:
        """Squared error in these metrics."""
        return sum(self._square(e, self.ws[e] - fit.matrix(e)) for e in range(self.number))

    def _square(self, expert: int, difference) -> float:
        return max(float(np.vdot(difference, self.metrics[expert].times(difference))), 0.0)

    def fits(self, budget: int, forms: Sequence[str] = FORMS) -> Iterator[ExpertFit]:
        """The best of each form that has at most `budget` numbers; forms that cannot are left out.

        Example:
          >>> import numpy as np
          >>> from mpojax import mpo
          >>> rng = np.random.default_rng(0)
          >>> common, own = rng.standard_normal((16, 3)), rng.standard_normal((4, 3, 8))
          >>> fits = mpo.ExpertMatrices(common @ own).fits(3 * (16 + 4 * 8))  # rank 3, one core
          >>> best = min(fits, key=lambda fit: fit.squared_error)
          >>> best.form, best.squared_error < 1e-12
          ('shared_first', True)
        """
        for form in forms:
            if form == CENTRE:
                yield from self._centred(budget)
                continue
            has_base, name = form.startswith("base + "), form.removeprefix("base + ")
            left = budget - has_base * self.size[0] * self.size[1]
            if (rank := self._rank(name, left)) < 1:
                continue
            make = functools.partial(getattr(self, f"_{name}"), rank=rank)
            found = self._with_base(make) if has_base else make(self.ws)
            yield dataclasses.replace(found, form=form, squared_error=self.error(found))

    def _rank(self, form: str, budget: int) -> int:
        """The largest rank that a budget allows."""
        (rows, columns), n = self.size, self.number
        each = {
            "own": n * (rows + columns),
            "shared_first": rows + n * columns,
            "shared_last": n * rows + columns,
        }[form]
        # `shared_last` also pays for the unit third core of each expert.
        return min((budget - n * (form == "shared_last")) // each, rows, columns)

    def _own(self, ws, rank: int) -> ExpertFit:
        """L_e R_e: each expert by itself."""
        pairs = [LowRank(w, m).cores(rank) for w, m in zip(ws, self.metrics, strict=True)]
        cores = tuple(np.stack(each) for each in zip(*pairs, strict=True))
        return ExpertFit("own", MPOShape.low_rank(*self.size, rank), cores)

    def _shared_first(self, ws, rank: int) -> ExpertFit:
        """C R_e."""
        first, seconds = SharedLowRank(ws, self.metrics).cores(rank)
        shape = MPOShape.low_rank(*self.size, rank)
        return ExpertFit("shared_first", shape, (first, np.stack(seconds)))

    def _shared_last(self, ws, rank: int) -> ExpertFit:
        """L_e C: C = V^T with the leading eigenvectors of sum_e W_e^T S_e W_e, and L_e = W_e V."""
        gram = sum(w.T @ m.times(w) for w, m in zip(ws, self.metrics, strict=True))
        vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
        rows, columns = self.size
        # The chain's centre is its second core of three: a third, of size 1, makes it so.
        shape = MPOShape((rows, 1, 1), (1, columns, 1), (rank, 1))
        cores = (ws @ vectors)[:, None, :, None, :], vectors.T[:, None, :, None]
        return ExpertFit("shared_last", shape, (*cores, np.ones((self.number, 1, 1, 1, 1))))

    def _with_base(self, make: Callable) -> ExpertFit:
        """B and what `make` gives of W_e - B, by turns; the best that was seen."""
        base, best = self._mean(self.ws), None
        for _ in range(_TURNS):
            found = dataclasses.replace(make(self.ws - base), base=base)
            found = dataclasses.replace(found, squared_error=self.error(found))
            if best is not None and found.squared_error >= best.squared_error:
                break
            best = found
            # B of least error to what the approximations leave, W_e - W'_e.
            own = np.stack([found.matrix(e) - base for e in range(self.number)])
            base = self._mean(self.ws - own)
        return best

    def _mean(self, ws) -> np.ndarray:
        """B of least error by itself: (sum_e S_e) B = sum_e S_e W_e."""
        right = sum(m.times(w) for w, m in zip(ws, self.metrics, strict=True))
        total = sum(m.matrix for m in self.metrics)
        return right / total[:, None] if total.ndim == 1 else np.linalg.solve(total, right)

    def _centred(self, budget: int) -> Iterator[ExpertFit]:
        """L_e C R_e in chains of three cores with the usual factors of three and of five."""
        shapes = dict.fromkeys(centre_shape(*self.size, self.number, budget, n) for n in (3, 5))
        for shape in shapes if centre_work(*self.size, self.number) else ():
            if shape is not None:
                yield SharedCentre(self, shape).fit()


def centre_work(rows: int, columns: int, number: int) -> float:
    """About how many multiply-adds a fit of `shared_centre` takes; 0 where that is too many."""
    work = 3.0 * _SWEEPS * _STEPS * number * rows * columns * (rows + 64)
    return work if work <= _MOST_WORK else 0.0


def centre_shape(rows: int, columns: int, number: int, budget: int, cores: int) -> MPOShape | None:
    """The chain of three cores whose outer ones hold those of an automatic chain of `cores`.

    With the largest cap of its bonds at which `number` experts have at most `budget` numbers.
    """
    factors = group_factors(MPOShape.balanced(rows, columns, cores))
    full = MPOShape(factors[:3], factors[3:], in_features=rows, out_features=columns)

    def size(cap: int) -> int:
        shape = full.with_bonds(cap)
        return number * shape.num_auxiliary_params + shape.num_central_params

    low, high = 0, max(full.bond_dims)
    while low < high:  # the largest cap that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle - 1)
    return full.with_bonds(low) if low else None


class SharedCentre:
    """Chains L_e C R_e around one C, improved core by core; the error never grows.

    Each step lowers a convex quadratic by conjugate gradients, as `mpo.fit` does for a single
    chain: of the cores that experts own for each of them alone, of C for all at once.
    """

    def __init__(self, experts: ExpertMatrices, shape: MPOShape):
        """`shape` of three cores."""
        self.experts, self.shape = experts, shape
        pairs = zip(experts.ws, experts.metrics, strict=True)
        self.problems = [alternating.Problem(w, shape, _dense(m.matrix)) for w, m in pairs]

    def fit(self, sweeps: int = _SWEEPS, steps: int = _STEPS) -> ExpertFit:
        """From the better of two starts: the mean of all experts, and the one with most to do."""
        weights = [problem.norm for problem in self.problems]
        starts = self.experts._mean(self.experts.ws), self.experts.ws[int(np.argmax(weights))]
        found = [self.swept(self.start(w), steps) for w in starts]
        best = min(found, key=lambda fit: fit.squared_error)
        for _ in range(sweeps - 1):
            better = self.swept(best.cores, steps)
            if not better.squared_error < best.squared_error * (1 - 1e-4):
                break
            best = better
        return best

    def start(self, w) -> tuple[np.ndarray, ...]:
        """All experts as one matrix."""
        left, centre, right = decomposition.decompose(w, self.shape)
        copies = [np.stack([core] * self.experts.number) for core in (left, right)]
        return copies[0], centre, copies[1]

    def swept(self, cores, steps: int = _STEPS) -> ExpertFit:
        """Every core once: L_e, R_e, C."""
        left, centre, right = _balanced(*cores)
        for _ in range(2):  # L_e and R_e of an expert depend on each other alone
            left = self._own(0, (left, centre, right), steps)
            right = self._own(2, (left, centre, right), steps)
        left, centre, right = _balanced(left, centre, right)
        cores = left, self.centre((left, centre, right), steps), right
        found = ExpertFit(CENTRE, self.shape, cores)
        return dataclasses.replace(found, squared_error=self.experts.error(found))

    def _own(self, k: int, cores, steps: int) -> np.ndarray:
        pairs = zip(self.problems, _of_each(cores), strict=True)
        return np.stack([problem.solved(own, k, steps) for problem, own in pairs])

    def centre(self, cores, steps: int) -> np.ndarray:
        """C of least error to these L_e and R_e."""
        pairs = [
            (problem, alternating.Site(own, 1))
            for problem, own in zip(self.problems, _of_each(cores), strict=True)
        ]
        residual = sum(problem.residual(site, cores[1]) for problem, site in pairs)
        scale = max(problem.scale for problem, _ in pairs)
        return alternating.conjugate_gradients(
            *(cores[1], residual, steps, scale),
            lambda core: sum(problem.normal(site, core) for problem, site in pairs),
        )


def _dense(covariance: np.ndarray) -> np.ndarray | None:
    is_plain = covariance.ndim == 1 and np.all(covariance == 1)
    return None if is_plain else covariance


def _of_each(cores) -> list[list[np.ndarray]]:
    left, centre, right = cores
    return [[one, centre, other] for one, other in zip(left, right, strict=True)]


def _balanced(left, centre, right):
    """The same chains; L_e and R_e of all experts together have orthonormal columns and rows."""
    n, q = left.shape[0], right.shape[1]
    # The stack of all L_e becomes sqrt(n) times orthonormal columns, (1/n) sum_e L_e^T L_e = 1, so
    # that each keeps about unit scale; not where the stack has fewer rows than columns.
    basis, r = np.linalg.qr(left.reshape(-1, left.shape[-1]))
    if len(r) == left.shape[-1]:
        left, centre = np.sqrt(n) * basis.reshape(left.shape), np.tensordot(r, centre, 1) / n**0.5
    basis, r = np.linalg.qr(right.swapaxes(0, 1).reshape(q, -1).T)
    if len(r) == q:
        right = np.sqrt(n) * basis.T.reshape(q, n, *right.shape[2:]).swapaxes(0, 1)
        centre = np.tensordot(centre, r.T, 1) / n**0.5
    return left, centre, right
