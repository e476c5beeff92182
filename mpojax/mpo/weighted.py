"""Approximation where errors count by the inputs of the matrix: ||X (W - W_hat)||_F.

With the covariance S = X^T X (up to a factor) the squared error is tr((W - W_hat)^T S (W - W_hat)).
S is an array (in, in), or (in,) where it is diagonal: the rows of a table and their frequencies.
All functions work on the host in float64.

Low rank has a closed form: with the leading r eigenvectors V of W^T S W, W_hat = W V V^T is the
best matrix of rank r, also where S is singular. (Whitening, truncated SVD of S^(1/2) W and
unwhitening gives the same matrix.) Chains that cut the rows into digits have none, because S does
not factor over digits: `mpojax.mpo.alternating` improves them core by core.
"""

import math

import numpy as np

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
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge={ridge!r} must be a finite number of at least 0.")
    diagonal = s if s.ndim == 1 else np.diagonal(s)
    mean = float(diagonal.mean())
    if mean <= 0 or diagonal.min() < 0:
        raise ValueError(
            "covariance has no positive variance on its diagonal; it must come from at least one "
            "input that is not zero."
        )
    if s.ndim == 2 and np.abs(s - s.T).max() > 1e-6 * np.abs(s).max():
        raise ValueError("covariance is not symmetric; pass x^T x of the inputs.")
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
        pivots = np.diagonal(np.linalg.cholesky(s)) ** 2
    except np.linalg.LinAlgError:
        return True
    return bool(pivots.min() <= len(s) * np.finfo(np.float64).eps * pivots.max())


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
    w, s = np.asarray(w, np.float64), np.asarray(covariance, np.float64)
    if s.ndim == 1:
        return np.sqrt(s)[:, None] * w
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ (vectors.T @ w)


def low_rank_errors(w, covariance=None) -> np.ndarray:
    """Relative error of the best approximation of each rank, from rank 0 to min(in, out).

    From the eigenvalues of the smaller Gram matrix: exact down to about 1e-8. Zeros for a zero
    matrix, which every rank approximates exactly.
    """
    w = np.asarray(w, np.float64)
    if covariance is not None and w.shape[1] > w.shape[0]:
        w, covariance = whitened(w, covariance), None
    if covariance is not None:
        gram = w.T @ times_covariance(covariance, w)
    else:
        gram = w.T @ w if w.shape[1] <= w.shape[0] else w @ w.T
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return np.sqrt(tails / (tails[0] or 1.0))


def low_rank(w, rank: int, covariance=None) -> tuple[np.ndarray, np.ndarray]:
    """The two-core chain A B of least weighted error with this inner size, float64.

    Returns:
      Cores (1, in, 1, rank) and (rank, 1, out, 1); B has orthonormal rows.

    Raises:
      ValueError: a rank outside 1..min(in, out).
    """
    w = np.asarray(w, np.float64)
    if not 1 <= rank <= min(w.shape):
        raise ValueError(f"rank={rank} must lie in 1..{min(w.shape)} for a matrix {w.shape}.")
    if w.shape[1] <= w.shape[0]:
        weighted = w if covariance is None else times_covariance(covariance, w)
        vectors = np.linalg.eigh(w.T @ weighted)[1][:, ::-1][:, :rank]
    else:
        white = w if covariance is None else whitened(w, covariance)
        u = np.linalg.eigh(white @ white.T)[1][:, ::-1][:, :rank]
        vectors = np.linalg.qr(white.T @ u)[0]
    return (w @ vectors)[None, :, None, :], vectors.T[:, None, :, None]


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
    powers = [
        tuple((vectors * np.maximum(values, 1e-12) ** p) @ vectors.T for p in (0.5, -0.5))
        for values, vectors in roots
    ]
    padded = np.pad(np.asarray(w, np.float64), ((0, rows - w.shape[0]), (0, 0)))
    for k, (root, _) in enumerate(powers):
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
        marginal = np.einsum("aibajb->ij", s.reshape(before, digit, after, before, digit, after))
    return marginal * digit / np.trace(marginal)
