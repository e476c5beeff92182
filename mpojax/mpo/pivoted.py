"""Low rank without its redundancy: W = A [1 B] P with r of the columns as they are.

A two-core chain A B is the same for A G, G^-1 B with any invertible G (r, r): r^2 of its
r (in + out) numbers say nothing. G = B_p, the block of r *pivot* columns of B, leaves the identity
there:

    W P^T = A B_p [1, B_p^-1 B_rest]        A B_p are r columns of W itself

r (in + out - r) numbers and the order of the columns; full rank then costs what the dense matrix
does, where a plain chain costs more from r = in out / (in + out) on. A pivoted QR factorisation
chooses the columns, so that the entries of B_p^-1 B_rest stay of order 1. With inputs,

    u = x A B_p,    y = [u, u (B_p^-1 B_rest)] in the order of the columns.

Zhao et al., "Pivoting factorization" (2025, arXiv:2501.19090).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from mpojax import devices
from mpojax.mpo.shape import MPOShape


def pivot(cores) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], MPOShape]:
    """The pivoted form of a low-rank chain, float64 on the host.

    Args:
      cores: (1, in, 1, r) and (r, 1, out, 1) with r < out.

    Returns:
      ((1, in, 1, r), (r, 1, out - r, 1), (out,) int32), shape. Column j of W is column order[j] of
      [A, A B].

    Raises:
      ValueError: another chain, or a rank of `out` or more.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> w = np.random.default_rng(0).standard_normal((64, 48))
      >>> cores = mpo.low_rank(w, 24)
      >>> pivoted, shape = mpo.pivot(cores)
      >>> sum(core.size for core in cores), shape.num_params
      (2688, 2160)
      >>> bool(np.allclose(mpo.to_matrix(pivoted, shape), mpo.to_matrix(cores)))
      True
    """
    a, b = (np.asarray(core, np.float64) for core in cores)
    rank, columns = a.shape[-1], b.shape[2]
    shape = MPOShape.low_rank(a.shape[1], columns, rank, pivoted=True)
    # B[:, chosen] = Q [R_1, R_2] with B_p = Q R_1, so B_p^-1 B_rest = R_1^-1 R_2.
    q, r, chosen = scipy.linalg.qr(b[:, 0, :, 0], mode="economic", pivoting=True)
    rest = _solved(r[:, :rank], r[:, rank:])  # B_p^-1 B_rest
    order = np.empty(columns, np.int32)
    # The inverse permutation: column chosen[m] of W is column m of [A B_p, A B_rest].
    order[chosen] = np.arange(columns, dtype=np.int32)
    first = a[0, :, 0] @ (q @ r[:, :rank])  # A B_p
    return (first[None, :, None, :], rest[:, None, :, None], order), shape


def _solved(triangle, right) -> np.ndarray:
    """triangle^-1 right; of a singular one the shortest solution."""
    diagonal = np.abs(np.diagonal(triangle))  # falling, of a QR factorisation with pivots
    if diagonal[-1] > 1e-10 * diagonal[0]:
        return scipy.linalg.solve_triangular(triangle, right)
    return scipy.linalg.lstsq(triangle, right, cond=1e-12)[0]


def to_matrix(cores):
    """(in, out) of a pivoted chain (A, B, order)."""
    a, b, order = cores
    a = a[0, :, 0]
    xp = np if isinstance(a, np.ndarray) else jnp
    return xp.concatenate([a, a @ b[:, 0, :, 0]], axis=1)[:, order]


def apply(cores, x: jax.Array) -> jax.Array:
    """x (..., in) -> (..., out) for a pivoted chain; its cores are cast to the dtype of `x`."""
    a, b, order = cores
    u = product(x, a[0, :, 0])
    y = jnp.concatenate([u, product(u, b[:, 0, :, 0])], axis=-1)
    return _in_order(y, order)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (..., k) @ w (k, n) in the dtype of x.

    Of a single row on a CPU in two halves of k: XLA computes a small product on one core, which
    reads half as fast as two, but the products of a batch side by side.
    """
    w, k = w.astype(x.dtype), w.shape[0]
    if x.size != k or k % 2 or devices.platform() != "cpu":
        return x @ w
    halves = jnp.matmul(x.reshape(2, 1, -1), w.reshape(2, k // 2, -1))
    return jnp.sum(halves, axis=0).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _in_order(y, order):
    """Columns of y in an order that has each of them once.

    Its derivative, in reverse mode alone, puts them back: a gather, too, where that of `jnp.take`
    scatters, column by column on CPUs.
    """
    return jnp.take(y, order, axis=-1, mode="clip", unique_indices=True)


def _in_order_forward(y, order):
    return _in_order(y, order), order


def _in_order_backward(order, dy):
    # argsort of a permutation is its inverse.
    return _in_order(dy, jnp.argsort(order)), None


_in_order.defvjp(_in_order_forward, _in_order_backward)
