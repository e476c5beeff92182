"""Alternating least squares: a chain improved core by core in a weighted norm.

With all cores but one fixed, the error tr((W - W_hat)^T S (W - W_hat)) is a convex quadratic of
that core. Conjugate gradients lower it from where it stands, so the error never grows from one
step to the next; the operator is applied through the matrix (S @ W_hat), never formed. Before each
core is solved its neighbours are made orthonormal, which leaves S alone to condition the problem.
"""

import dataclasses
import functools
import math

import numpy as np

from mpojax.mpo import canonical, contract, decomposition, weighted
from mpojax.mpo.shape import MPOShape

# Below this relative error a chain counts as exact.
_EXACT = 1e-13


@dataclasses.dataclass(frozen=True)
class Fit:
    """A chain fitted in a weighted norm.

    Attributes:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k), float64, in the central gauge.
      errors: relative weighted errors, the first of the start, then one for each sweep.
    """

    cores: tuple[np.ndarray, ...]
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """||X (W - W_hat)|| / ||X W|| at the end."""
        return self.errors[-1]


def fit(
    w,
    shape: MPOShape,
    covariance=None,
    *,
    start=None,
    sweeps: int = 4,
    steps: int = 6,
    tolerance: float = 1e-3,
) -> Fit:
    """The chain of this shape with a small weighted error; deterministic, on the host.

    Starts from `start`, or from the better of two truncations: of W, and of W whitened digit by
    digit. The error is never above that of the start. Low rank is solved in closed form.

    Args:
      w: (in_features, out_features).
      shape: factor lists and bonds.
      covariance: S, (in, in) or (in,), as `weighted.regularized` gives it, or a `Metric`; None for
        the plain Frobenius norm.
      start: cores of this shape to improve, where that is done in sweeps.
      sweeps: at most this many passes over all cores, there and back alternating.
      steps: conjugate gradient steps for each core of a pass.
      tolerance: stop when a sweep lowers the squared error by less than this share.

    Raises:
      ValueError: a matrix or start that does not fit the shape, or non-finite entries.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> rng = np.random.default_rng(0)
      >>> x, w = rng.standard_normal((200, 16)) * np.arange(16), rng.standard_normal((16, 16))
      >>> fit = mpo.fit(w, mpo.MPOShape((4, 4), (4, 4)).with_bonds(6), x.T @ x)
      >>> fit.error < fit.errors[0]
      True
    """
    w = np.asarray(w, np.float64)
    decomposition._check(w, shape)
    metric = weighted.Metric.of(covariance)
    s = None if metric is None else metric.matrix
    if start is not None and tuple(np.shape(core) for core in start) != shape.core_shapes:
        raise ValueError(
            f"start has cores {[np.shape(c) for c in start]}; {shape.core_shapes} are needed."
        )
    # Full chains are exact, low rank is solved in closed form: nothing of a start is of use.
    in_closed_form = shape.is_full or shape.is_low_rank
    if start is None or in_closed_form:
        start = _start(w, shape, metric)
    cores = [np.asarray(core, np.float64) for core in start]
    problem = Problem(w, shape, s)
    errors = [problem.error(cores)]
    for sweep in range(0 if in_closed_form else sweeps):
        if errors[-1] <= _EXACT:
            break
        improved = problem.sweep(cores, steps, backward=sweep % 2 == 1)
        error = problem.error(improved)
        if error > errors[-1]:  # rounding alone can do this
            break
        cores = improved
        errors.append(error)
        if errors[-1] ** 2 > (1 - tolerance) * errors[-2] ** 2:
            break
    return Fit(canonical.canonicalize(tuple(cores)), tuple(errors))


def _start(w, shape, metric):
    if metric is not None and shape.is_low_rank:
        return weighted.low_rank(w, shape.bond_dims[0], metric)
    # In the plain norm within sqrt(n - 1) of the best chain (Oseledets, 2011, corollary 2.4).
    plain = decomposition.decompose(w, shape)
    if metric is None or shape.is_full:
        return plain
    # Neither is always the better start: whitening digit by digit ignores how digits correlate.
    candidates = [plain, weighted.digit_whitened(w, shape, metric.matrix)]
    squares = [
        weighted.weighted_square(w - contract.to_matrix(cores, shape), metric.matrix)
        for cores in candidates
    ]
    return candidates[int(np.argmin(squares))]


class Problem:
    """The quadratic problems of one matrix; matrices are padded here, padding weighs nothing."""

    def __init__(self, w, shape: MPOShape, s):
        self.w, self.shape, self.s = w, shape, s
        # S W once: the right-hand side of every core's problem, and the norm.
        self.weighted_w = self._weighted(w)
        self.norm = math.sqrt(max(float(np.vdot(w, self.weighted_w)), 0.0))

    def error(self, cores) -> float:
        """Relative weighted error; the plain norm of the chain where W has no output at all."""
        # tr(D^T S D) with D = W - W_hat
        difference = self.w - contract.to_matrix(tuple(cores), self.shape)
        square = max(float(np.vdot(difference, self._weighted(difference))), 0.0)
        return math.sqrt(square) / (self.norm or 1.0)

    def sweep(self, cores, steps: int, backward: bool) -> list[np.ndarray]:
        """Solves for every core once, from the left, or from the right."""
        # With orthonormal cores on both sides the normal equations are as well conditioned as S.
        cores, n = _orthonormal_towards(list(cores), len(cores) - 1 if backward else 0), len(cores)
        for k in reversed(range(n)) if backward else range(n):
            cores[k] = self.solved(cores, k, steps)
            follower = k - 1 if backward else k + 1
            # The next core to be solved takes the scale, so that all others stay orthonormal.
            if 0 <= follower < n:
                _move_scale(cores, k, follower)
        return cores

    def solved(self, cores, k: int, steps: int) -> np.ndarray:
        """Core k after conjugate gradients on its normal equations."""
        site = Site(cores, k)
        operator = functools.partial(self.normal, site)
        residual = self.residual(site, cores[k])
        return conjugate_gradients(cores[k], residual, steps, self.scale, operator)

    def residual(self, site: "Site", core) -> np.ndarray:
        """A^T S (W - A x), with the linear map A from core x to the matrix."""
        return site.adjoint(self._padded(self.weighted_w - self._weighted_chain(site, core)))

    def normal(self, site: "Site", core) -> np.ndarray:
        """A^T S A x."""
        return site.adjoint(self._padded(self._weighted_chain(site, core)))

    @property
    def scale(self) -> float:
        """The largest entry of S W."""
        return float(np.abs(self.weighted_w).max())

    def _weighted_chain(self, site, core):
        matrix = site.matrix(core)
        return self._weighted(matrix[: self.shape.in_features, : self.shape.out_features])

    def _weighted(self, matrix):
        return matrix if self.s is None else weighted.times_covariance(self.s, matrix)

    def _padded(self, matrix):
        rows = self.shape.padded_in_features - matrix.shape[0]
        columns = self.shape.padded_out_features - matrix.shape[1]
        return np.pad(matrix, ((0, rows), (0, columns))) if rows or columns else matrix


def conjugate_gradients(x, residual, steps: int, scale: float, operator) -> np.ndarray:
    """A solution of operator(x) = b, improved from `x` by so many steps; b is of size `scale`.

    min_x tr((W - A x)^T S (W - A x)) has the operator A^T S A and the residual A^T S (W - A x).
    """
    square = float(np.vdot(residual, residual))
    direction = residual
    # After x.size steps conjugate gradients are at the solution.
    for _ in range(min(steps, x.size)):
        if square <= (_EXACT * scale) ** 2:
            break
        image = operator(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0:  # a direction without any input
            break
        # alpha = r^T r / p^T A^T S A p
        x = x + (square / curvature) * direction
        residual = residual - (square / curvature) * image
        previous, square = square, float(np.vdot(residual, residual))
        # beta = r'^T r' / r^T r
        direction = residual + (square / previous) * direction
    return x


class Site:
    """The linear map from one core to the (padded) matrix, and its adjoint."""

    def __init__(self, cores, k: int):
        one = np.ones((1, 1, 1, 1))
        self.left = contract.merge_run(cores[:k]) if k else one
        right = contract.merge_run(cores[k + 1 :], from_right=True) if k + 1 < len(cores) else one
        _, self.il, self.jl, p = self.left.shape
        q, self.ir, self.jr, _ = right.shape
        self.left, self.right = self.left.reshape(-1, p), right.reshape(q, -1)
        self.core = cores[k].shape

    def matrix(self, core) -> np.ndarray:
        p, i, j, q = self.core
        il, jl, ir, jr = self.il, self.jl, self.ir, self.jr
        # W = L T_k R; (L T_k) R or L (T_k R), whichever takes fewer multiply-adds
        if self._left_first():
            t = (self.left @ core.reshape(p, -1)).reshape(-1, q) @ self.right
        else:
            t = self.left @ (core.reshape(-1, q) @ self.right).reshape(p, -1)
        # Row and column digits alternate core by core; a matrix has all row digits first.
        t = t.reshape(il, jl, i, j, ir, jr).transpose(0, 2, 4, 1, 3, 5)
        return t.reshape(il * i * ir, jl * j * jr)

    def adjoint(self, matrix) -> np.ndarray:
        p, i, j, q = self.core
        il, jl, ir, jr = self.il, self.jl, self.ir, self.jr
        t = matrix.reshape(il, i, ir, jl, j, jr).transpose(0, 3, 1, 4, 2, 5)
        # A^T: L^T G R^T, in the order of `matrix`, whose cost it has.
        if self._left_first():
            t = (t.reshape(-1, ir * jr) @ self.right.T).reshape(il * jl, -1)
            return (self.left.T @ t).reshape(p, i, j, q)
        t = (self.left.T @ t.reshape(il * jl, -1)).reshape(-1, ir * jr)
        return (t @ self.right.T).reshape(p, i, j, q)

    def _left_first(self) -> bool:
        (outer, p), (q, last) = self.left.shape, self.right.shape
        site = self.core[1] * self.core[2]
        # Multiply-adds of (L T) R against those of L (T R).
        return outer * p * site * q + outer * site * q * last <= (
            p * site * q * last + outer * p * site * last
        )


def _orthonormal_towards(cores, centre: int):
    """The same chain with orthonormal cores on both sides of `centre`."""
    for k in range(centre):
        _move_scale(cores, k, k + 1)
    for k in range(len(cores) - 1, centre, -1):
        _move_scale(cores, k, k - 1)
    return cores


def _move_scale(cores, k: int, neighbour: int):
    """Makes core k orthonormal towards its neighbour, which takes the triangular factor."""
    p, i, j, q = cores[k].shape
    if neighbour > k:
        # T_k = Q r, and r goes to the right; to the left below, of the transpose.
        basis, r = np.linalg.qr(cores[k].reshape(-1, q))
        cores[k] = basis.reshape(p, i, j, -1)
        cores[neighbour] = np.tensordot(r, cores[neighbour], axes=1)
    else:
        basis, r = np.linalg.qr(cores[k].reshape(p, -1).T)
        cores[k] = basis.T.reshape(-1, i, j, q)
        cores[neighbour] = np.tensordot(cores[neighbour], r.T, axes=1)
