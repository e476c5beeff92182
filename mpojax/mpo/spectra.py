"""Measures on the bonds of a chain: singular values, entropy, error bounds, tolerances."""

import math
import numbers
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.mpo import canonical


def bond_spectra(cores) -> list:
    """Singular values of each inner bond of the matrix that `cores` stand for, descending.

    Exact to rounding in any gauge (QR and SVD on the cores). List of n - 1 arrays.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> cores = mpo.decompose(np.eye(4), mpo.MPOShape((2, 2), (2, 2)))
      >>> [spectrum.round(3).tolist() for spectrum in mpo.bond_spectra(cores)]
      [[2.0, 0.0, 0.0, 0.0]]
    """
    return canonical.canonicalize_with_spectra(cores)[1]


def pool_spectra(
    stack: Sequence[Sequence[np.ndarray]], weights: Sequence[float] | None = None
) -> list[np.ndarray]:
    """One set of spectra for several matrices of one shape that are to share their bonds.

    Each matrix is first scaled to unit norm; pooled squared values are the sums over the matrices,
    so that a tail of the pooled spectrum is the summed squared relative error of all of them.

    Args:
      stack: for each matrix the list of its spectra, one array per bond.
      weights: factor of each matrix' squared relative error; default 1.
    """
    pooled, factors = [], np.asarray([1.0] * len(stack) if weights is None else weights)
    for bond in zip(*stack, strict=True):
        squares = np.stack([np.asarray(s, np.float64) ** 2 for s in bond])
        totals = squares.sum(axis=1, keepdims=True)
        shares = squares / np.where(totals > 0, totals, 1)
        # s_i^2 = sum over matrices m of weight_m s_(m,i)^2 / ||W_m||^2
        pooled.append(np.sqrt((factors[:, None] * shares).sum(axis=0)))
    return pooled


def entanglement_entropy(spectrum):
    """Entropy of a bond in nats, -sum p ln p with p = lambda^2 / sum lambda^2; 0 for a zero matrix.

    Between 0 and ln(d); exp of it is an effective rank. The squared values are used: with the
    values themselves the formula can leave that range (MPOP paper, equation 6, misprint).
    """
    xp = np if isinstance(spectrum, np.ndarray) else jnp
    # p does not change with the scale of the spectrum, but squares may leave float32 unscaled.
    weights = (spectrum / _unit(xp, spectrum)) ** 2
    total = xp.sum(weights)
    p = weights / xp.where(total > 0, total, 1).astype(weights.dtype)
    # lim p ln p = 0 for p -> 0; the inner `where` keeps the gradient of log finite there.
    return -xp.sum(xp.where(p > 0, p * xp.log(xp.where(p > 0, p, 1)), 0))


def local_errors(spectra, bonds):
    """eps_k, the norm of the singular values that bond k loses when it is cut to bonds[k]."""
    if isinstance(bonds, numbers.Integral):
        bonds = (bonds,) * len(spectra)
    if len(bonds) != len(spectra) or min(bonds, default=1) < 1:
        raise ValueError(f"bonds must be {len(spectra)} integers of at least 1, got {bonds}.")
    xp = np if all(isinstance(s, np.ndarray) for s in spectra) else jnp
    return xp.stack([_norm(xp, s[bond:]) for s, bond in zip(spectra, bonds, strict=True)])


def truncation_error_bound(spectra, bonds):
    """Upper bound sqrt(sum_k eps_k^2) on the Frobenius error of cutting to `bonds` (int or tuple).

    Holds for sequential truncation and for slicing; max_k eps_k is a lower bound of both, and with
    a single cut bond the error equals it (MPOP paper, appendix, theorem 1).
    """
    errors = local_errors(spectra, bonds)
    xp = np if isinstance(errors, np.ndarray) else jnp
    return _norm(xp, errors)


def bonds_for_tolerance(spectra, tolerance: float) -> tuple[int, ...]:
    """Smallest bonds for which the relative Frobenius error is at most `tolerance`, guaranteed.

    Each bond may lose tolerance * ||W|| / sqrt(n - 1).

    Raises:
      ValueError: tolerance outside [0, 1).
    """
    checks.check_value("tolerance", tolerance, checks.number(0, below=1))
    bonds = []
    for spectrum in spectra:
        squares = np.asarray(spectrum, np.float64) ** 2
        # tails[r] = eps_k^2 for a bond cut to r; tails[0] = norm(W)^2
        tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        # sum_k eps_k^2 <= tolerance^2 ||W||^2, an equal part of it for each of the n - 1 bonds
        allowed = tolerance**2 * tails[0] / len(spectra)
        # argmax of booleans: the first, and so the smallest, r whose tail fits.
        bonds.append(max(1, int(np.argmax(tails <= allowed))))
    return tuple(bonds)


def relative_error(w, w_hat) -> float:
    """||W - W_hat||_F / ||W||_F in float64 on the host; 0 when both are zero."""
    w, w_hat = np.asarray(w, np.float64), np.asarray(w_hat, np.float64)
    error, norm = np.linalg.norm(w - w_hat), np.linalg.norm(w)
    return float(error / norm) if norm > 0 else (0.0 if error == 0 else math.inf)


def _unit(xp, values):
    """The largest of `values`, or 1: squares of float32 leave its range beyond 1e19 and 1e-19."""
    largest = xp.max(values, initial=0)
    return xp.where(largest > 0, largest, 1).astype(values.dtype)


def _norm(xp, values):
    """Euclidean norm of non-negative values without overflow or underflow; 0 for none."""
    unit = _unit(xp, values)
    return unit * xp.linalg.norm(values / unit)
