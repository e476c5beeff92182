"""Approximation where errors count by the inputs of the matrix: ||X (W - W_hat)||_F.

With the covariance S = X^T X (up to a factor) the squared error is tr((W - W_hat)^T S (W - W_hat)).
S is an array (in, in), or (in,) where it is diagonal: the rows of a table and their frequencies.
All functions work on the host in float64.

Errors of outputs may count differently, too: with the second moments G of the loss' gradients at
the outputs (G = R R^T), tr(G E^T S E) / 2 of an error E predicts the rise of the loss (Kronecker-
factored curvature; Martens & Grosse, 2015, arXiv:1503.05671).

Low rank has a closed form: with the leading r eigenvectors V of W^T S W, W_hat = W V V^T is the
best matrix of rank r, also where S is singular. (Whitening, truncated SVD of S^(1/2) W and
unwhitening gives the same matrix.) Chains that cut the rows into digits have none, because S does
not factor over digits: `mpojax.mpo.alternating` improves them core by core.
"""

import functools
import math

import numpy as np
import scipy.linalg

from mpojax import checks
from mpojax.mpo import decomposition
from mpojax.mpo.shape import MPOShape

# Relative to the mean of the diagonal; keeps directions without any input from being thrown away.
DEFAULT_RIDGE = 1e-3


def regularized(covariance, in_features: int, ridge: float = DEFAULT_RIDGE) -> np.ndarray:
    """S + ridge * mean(diag S) * 1, scaled to a mean diagonal of 1; checked.

    Args:
      covariance: (in_features, in_features), symmetric, or its diagonal (in_features,); any scale.
      in_features: rows of the matrix.
      ridge: at least 0, relative to the mean of the diagonal.

    Raises:
      ValueError: another shape, non-finite or asymmetric entries, negative or no variance, or a
        singular covariance with ridge=0.
    """
    s = np.asarray(covariance, np.float64)
    if s.shape not in ((in_features,), (in_features, in_features)):
        raise ValueError(
            f"covariance has shape {s.shape}; for a matrix with {in_features} rows it must be "
            f"({in_features}, {in_features}), or ({in_features},) where it is diagonal."
        )
    if not np.all(np.isfinite(s)):
        raise ValueError(
            "covariance holds NaN or infinite entries; check the inputs it was collected from."
        )
    checks.check_value("ridge", ridge, checks.number(0))
    diagonal = s if s.ndim == 1 else np.diagonal(s)
    mean = float(diagonal.mean())
    if mean <= 0 or diagonal.min() < 0:
        raise ValueError(
            "covariance has no positive variance on its diagonal; it must come from at least one "
            "input that is not zero."
        )
    if s.ndim == 2 and np.abs(s - s.T).max() > 1e-6 * np.abs(s).max():
        raise ValueError("covariance is not symmetric; pass x^T x of the inputs.")
    # The scale of S cancels in every relative error; at a mean of 1 the ridge is relative, too.
    s = s / mean + (ridge if s.ndim == 1 else ridge * np.eye(in_features))
    if ridge == 0 and _is_singular(s):
        raise ValueError(
            "covariance is singular: the inputs do not reach every direction. Use more inputs "
            f"than the {in_features} rows of the matrix, or ridge above 0, such as "
            f"ridge={DEFAULT_RIDGE}."
        )
    return s


def _is_singular(s) -> bool:
    if s.ndim == 1:
        return bool(s.min() <= 0)
    try:
        # Pivots are Schur complements: one at the rounding of the largest is a zero eigenvalue.
        pivots = np.diagonal(np.linalg.cholesky(s)) ** 2
    except np.linalg.LinAlgError:
        return True
    return bool(pivots.min() <= len(s) * np.finfo(np.float64).eps * pivots.max())


class Metric:
    """The norm ||S^(1/2) M||_F of outputs for inputs of covariance S, factorised once.

    Attributes:
      covariance: S as it was measured, float64: what errors are reported by.
      matrix: S with a ridge: what approximations are fitted by.
    """

    def __init__(self, covariance, matrix=None):
        """`matrix` is `covariance` itself where none is given: no ridge."""
        self.covariance = np.asarray(covariance, np.float64)
        self.matrix = self.covariance if matrix is None else np.asarray(matrix, np.float64)

    @classmethod
    def of(cls, covariance: "Metric | np.ndarray | None") -> "Metric | None":
        """A covariance as a metric; None, the plain norm, stays None."""
        if covariance is None or isinstance(covariance, Metric):
            return covariance
        return cls(covariance)

    @functools.cached_property
    def _root(self) -> tuple[np.ndarray, np.ndarray]:
        """S^(1/2) = V diag(r) V^T as (r, V)."""
        values, vectors = np.linalg.eigh(self.matrix)
        return np.sqrt(np.maximum(values, 0)), vectors

    @functools.cached_property
    def _triangle(self) -> tuple[np.ndarray, np.ndarray]:
        """(L, rows) with S[rows, rows] = L L^T; also of a singular S, far cheaper than its root."""
        # Pivoted Cholesky stops at the rank: columns behind it were never computed.
        factor, order, rank, _ = scipy.linalg.lapack.dpstrf(self.matrix, lower=1)
        triangle = np.tril(factor)
        triangle[:, rank:] = 0.0
        return triangle, order - 1  # LAPACK counts from 1

    def halved(self, w) -> np.ndarray:
        """H W, float64, for some H with H^T H = S: every product W^T S W is that of these."""
        w = np.asarray(w, np.float64)
        if self.matrix.ndim == 1:
            return np.sqrt(self.matrix)[:, None] * w
        triangle, rows = self._triangle
        # S[rows, rows] = L L^T: H = L^T P with the permutation (P W) = W[rows].
        return triangle.T @ w[rows]

    @functools.cached_property
    def cholesky(self) -> np.ndarray:
        """R, lower triangular, with S = R R^T; S must be positive definite."""
        return np.linalg.cholesky(self.matrix)

    def whitened(self, w) -> np.ndarray:
        """S^(1/2) W with the symmetric root, float64: its Frobenius norm is that of the outputs."""
        w = np.asarray(w, np.float64)
        if self.matrix.ndim == 1:
            return np.sqrt(self.matrix)[:, None] * w
        root, vectors = self._root
        # V diag(r) V^T W, without forming the root
        return (vectors * root) @ (vectors.T @ w)

    def times(self, matrix) -> np.ndarray:
        """S @ matrix."""
        return times_covariance(self.matrix, matrix)


def ridged(moments, ridge: float) -> np.ndarray:
    """M + ridge * mean(diag M) * 1 in float64, in the units of M; of zeros, the identity."""
    moments = np.asarray(moments, np.float64)
    mean = np.trace(moments) / len(moments)
    return moments + (ridge * mean if mean > 0 else 1.0) * np.eye(len(moments))


def corrected(w, covariance, cross=None, residual=None, ridge: float = 1e-3) -> np.ndarray:
    """The matrix that maps changed inputs X' to the outputs that W gave for X.

    min over T of ||X W + D - X' T||^2 + l ||W - T||^2, where l is `ridge` times the mean square
    of an input: T = (X'^T X' + l)^-1 (X'^T X W + X'^T D + l W).

    Args:
      w: (in, out).
      covariance: X'^T X' / n, (in, in).
      cross: X'^T X / n, (in, in); None where `residual` has the part of it.
      residual: X'^T D / n, (in, out), of what the outputs should have besides; None for nothing.
        Without `cross` X'^T (X W + D) / n.
      ridge: at least 0; the covariance alone must then be positive definite.
    """
    w, covariance = np.asarray(w, np.float64), np.asarray(covariance, np.float64)
    # l = ridge * tr(C) / in
    weight = ridge * np.trace(covariance) / len(covariance)
    if not np.any(covariance):
        return w  # nothing has entered
    right = weight * w
    if cross is not None:
        right += np.asarray(cross, np.float64) @ w
    if residual is not None:
        right += residual
    factor = scipy.linalg.cho_factor(covariance + weight * np.eye(len(covariance)), lower=True)
    return scipy.linalg.cho_solve(factor, right)


def times_covariance(covariance, matrix) -> np.ndarray:
    """S @ matrix, for both forms of S."""
    return covariance[:, None] * matrix if covariance.ndim == 1 else covariance @ matrix


def weighted_square(matrix, covariance=None) -> float:
    """tr(M^T S M), or the squared Frobenius norm without S."""
    matrix = np.asarray(matrix, np.float64)
    weighted = matrix if covariance is None else times_covariance(covariance, matrix)
    return float(max(np.vdot(matrix, weighted), 0.0))


def weighted_relative_error(w, w_hat, covariance=None) -> float:
    """||X (W - W_hat)|| / ||X W|| for inputs of this covariance; 0 when both are zero."""
    w = np.asarray(w, np.float64)
    error = weighted_square(w - np.asarray(w_hat, np.float64), covariance)
    norm = weighted_square(w, covariance)
    return math.sqrt(error / norm) if norm > 0 else (0.0 if error == 0 else math.inf)


def whitened(w, covariance) -> np.ndarray:
    """S^(1/2) W with the symmetric root, float64: its Frobenius norm is that of the outputs."""
    return Metric.of(covariance).whitened(w)


class LowRank:
    """The best approximations of one matrix, of every rank, from one eigendecomposition.

    min over A (in, r), B (r, out) of ||S^(1/2) (W - A B) R||_F is reached at A = W R V,
    B = V^T R^-1 with the leading r eigenvectors V of R^T W^T S W R; the error is the root of the
    other eigenvalues' sum. Without a curvature R is the identity.
    """

    def __init__(
        self,
        w,
        covariance: "Metric | np.ndarray | None" = None,
        curvature: "Metric | np.ndarray | None" = None,
    ):
        """`w` (in_features, out_features); `covariance` None for the plain norm.

        `curvature` (out_features, out_features) is positive definite, see `ridged`.
        """
        # No copy in float64 is kept: many of these live until their ranks are known.
        self.w, self.metric = np.asarray(w), Metric.of(covariance)
        self.curvature = Metric.of(curvature)

    @functools.cached_property
    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """(eigenvalues, descending; eigenvectors) of the smaller of W^T S W and its companion."""
        values, vectors = np.linalg.eigh(self._gram())
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    @functools.cached_property
    def _values(self) -> np.ndarray:
        """The eigenvalues; alone they take a third of the time."""
        if "_eigen" in self.__dict__:
            return self._eigen[0]
        return np.maximum(np.linalg.eigvalsh(self._gram())[::-1], 0.0)

    def _gram(self) -> np.ndarray:
        if self._is_wide:
            # (H W R)(H W R)^T has the same eigenvalues as (H W R)^T (H W R), and is (in, in).
            white = self._white(self._of_curvature())
            return white @ white.T
        w = self._of_curvature()
        return w.T @ (w if self.metric is None else self.metric.times(w))

    @property
    def _is_wide(self) -> bool:
        return self.w.shape[1] > self.w.shape[0]

    def _of_curvature(self) -> np.ndarray:
        """W R, float64."""
        w = np.asarray(self.w, np.float64)
        if self.curvature is None:
            return w
        # Not a product with a triangle, half the work: scipy's holds the interpreter's lock.
        return w @ self.curvature.cholesky

    def _white(self, w_of_curvature) -> np.ndarray:
        """H W R, whose rows are as many as those of W."""
        return w_of_curvature if self.metric is None else self.metric.halved(w_of_curvature)

    @property
    def spectrum(self) -> np.ndarray:
        """Singular values of S^(1/2) W, descending; exact down to about 1e-8 of the largest."""
        return np.sqrt(self._values)

    @property
    def squared_errors(self) -> np.ndarray:
        """Squared error of each rank r, from 0 to min(in, out): sum_{k > r} s_k^2."""
        # From the smallest upwards, so that small tails keep their digits.
        return np.append(np.cumsum(self._values[::-1])[::-1], 0.0)

    @property
    def errors(self) -> np.ndarray:
        """Relative error of each rank, from 0 to min(in, out); zeros for a zero matrix."""
        squares = self.squared_errors
        return np.sqrt(squares / (squares[0] or 1.0))

    def cores(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The two-core chain A B: (1, in, 1, rank) and (rank, 1, out, 1).

        The rows of B are orthonormal, with a curvature those of B R.

        Raises:
          ValueError: a rank outside 1..min(in, out).
        """
        size = self.w.shape
        checks.check_value("rank", rank, checks.integer(1, min(size)).noted(f"of a matrix {size}"))
        vectors, w = self._eigen[1][:, :rank], self._of_curvature()
        if self._is_wide:
            # QR instead of dividing by the values: null directions are completed orthonormally.
            vectors = np.linalg.qr(self._white(w).T @ vectors)[0]
        # A = W R V, (in, r); B = V^T, (r, out)
        left, right = w @ vectors, vectors.T
        if self.curvature is not None:
            right = scipy.linalg.solve_triangular(
                self.curvature.cholesky, vectors, lower=True, trans="T"
            ).T  # V^T R^-1
        return left[None, :, None, :], right[:, None, :, None]


def low_rank_errors(w, covariance=None) -> np.ndarray:
    """Relative error of the best approximation of each rank; see `LowRank.errors`."""
    return LowRank(w, covariance).errors


def low_rank(w, rank: int, covariance=None) -> tuple[np.ndarray, np.ndarray]:
    """The two-core chain of least weighted error with this inner size; see `LowRank.cores`.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> rng = np.random.default_rng(0)
      >>> x, w = rng.standard_normal((100, 3)) @ rng.standard_normal((3, 16)), rng.random((16, 8))
      >>> cores = mpo.low_rank(w, 3, x.T @ x)  # inputs of rank 3: exact on them
      >>> bool(np.allclose(x @ mpo.to_matrix(cores), x @ w))
      True
    """
    return LowRank(w, covariance).cores(rank)


def digit_whitened(w, shape: MPOShape, covariance) -> tuple[np.ndarray, ...]:
    """Cores of the truncation of K^(1/2) W, unwhitened; K is a Kronecker product close to S.

    K has one factor for each core, the covariance of its row digit, so that whitening acts on each
    core alone and the bonds stay. Exact (K = S) where one core holds all rows.

    Args:
      w: (in_features, out_features).
      shape: factor lists and bonds.
      covariance: positive definite, (in, in) or (in,).
    """
    rows = shape.padded_in_features
    s = np.asarray(covariance, np.float64)
    if rows > shape.in_features:  # rows of padding: of mean variance, and zero in `w`
        extra = rows - shape.in_features
        s = np.pad(s, [(0, extra)] * s.ndim)
        filling = np.full(extra, s.mean() if s.ndim == 1 else np.trace(s) / shape.in_features)
        s[shape.in_features :, ...] += filling if s.ndim == 1 else _tail_eye(filling, rows)
    factors = [_digit_covariance(s, shape.in_factors, k) for k in range(shape.num_cores)]
    roots = [np.linalg.eigh(factor) for factor in factors]
    # K = kron_k S_k, so K^p = kron_k S_k^p: a factor for each row digit
    # Values are floored: a direction without input must not blow up in the inverse root.
    powers = [
        tuple((vectors * np.maximum(values, 1e-12) ** p) @ vectors.T for p in (0.5, -0.5))
        for values, vectors in roots
    ]
    padded = np.pad(np.asarray(w, np.float64), ((0, rows - w.shape[0]), (0, 0)))
    for k, (root, _) in enumerate(powers):
        # (digits before, i_k, digits after, out): the root acts on digit k alone
        after = math.prod(shape.in_factors[k + 1 :])
        padded = np.einsum(
            "ab,xbyz->xayz", root, padded.reshape(-1, shape.in_factors[k], after, w.shape[1])
        ).reshape(rows, -1)
    whole = MPOShape(shape.in_factors, shape.out_factors, shape.bonds, None, shape.out_features)
    cores = decomposition.decompose(padded, whole)
    return tuple(
        np.einsum("ab,pbjq->pajq", inverse, core)
        for (_, inverse), core in zip(powers, cores, strict=True)
    )


def _tail_eye(filling, rows):
    return np.eye(len(filling), rows, rows - len(filling)) * filling[:, None]


def _digit_covariance(s, in_factors, k) -> np.ndarray:
    """Mean over all other digits of the covariance of row digit k, at unit mean diagonal."""
    before, digit = math.prod(in_factors[:k]), in_factors[k]
    if s.ndim == 1:
        marginal = np.diag(s.reshape(before, digit, -1).sum(axis=(0, 2)))
    else:
        after = len(s) // (before * digit)
        # S_k[i, j] = sum over the other digits (a, b) of S[(a i b), (a j b)]
        marginal = np.einsum("aibajb->ij", s.reshape(before, digit, after, before, digit, after))
    # tr(S_k) = i_k: a mean diagonal of 1
    return marginal * digit / np.trace(marginal)
