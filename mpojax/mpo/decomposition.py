"""From a dense matrix to a chain of cores.

The sweep works from both ends to the central core. A bond left of it needs the left singular
vectors of its unfolding, a bond right of it the right ones; both are eigenvectors of the Gram
matrix of the short side, which is small (144 to 768 for the usual factor lists). This costs a few
matrix products instead of singular value decompositions of the long unfoldings, and is backward
stable: the eigenvectors are orthonormal to rounding whatever the singular values are. n - 1
factorisations; the left, right and symmetric gauges add one QR for each core that the scale passes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.mpo import canonical
from mpojax.mpo.shape import MPOShape

GAUGES = (*canonical.CANONICAL_GAUGES, "identity")


def decompose(w, shape: MPOShape, gauge: str = "central"):
    """Writes a matrix as a chain of cores; exact at full bonds, truncated otherwise.

    With bonds below the full ones the result is that of sequential truncation (TT-SVD) from the
    left. What is cut is resolved down to about 1e-8 of the norm in float64 and 1e-4 in float32;
    `truncate` on full-bond cores has no such floor.

    Args:
      w: matrix (in_features, out_features). A numpy array is decomposed on the host in float64 and
        the cores come back as numpy arrays in its dtype; a jax array runs in its own dtype under
        jit and can be batched with `jax.vmap`.
      shape: factor lists and bonds; static.
      gauge: "central" (default: orthonormal auxiliary cores, scale in the central one), "left",
        "right", "symmetric" (the gauge of the papers' released code), or "identity" (exact, no
        factorisation, full bonds only; never slice it).

    Returns:
      Tuple of n cores (d_{k-1}, i_k, j_k, d_k).

    Raises:
      ValueError: a shape or dtype of `w` that does not fit, an unknown gauge, the identity gauge
        with cut bonds, or (on the host) non-finite entries.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> w = np.random.default_rng(0).standard_normal((64, 64))
      >>> shape = mpo.MPOShape.balanced(64, 64, n=3)
      >>> exact = mpo.decompose(w, shape)
      >>> bool(np.allclose(mpo.to_matrix(exact), w))
      True
      >>> small = mpo.decompose(w, shape.with_bonds(8))
      >>> 0 < mpo.relative_error(w, mpo.to_matrix(small)) < 1
      True
    """
    if gauge == "identity":  # exact without any factorisation; the spectra would need them
        _check(w, shape)
        return identity_cores(w, shape)
    return decompose_with_spectra(w, shape, gauge)[0]


def decompose_with_spectra(w, shape: MPOShape, gauge: str = "central"):
    """As `decompose`; also returns the singular values of each bond, descending.

    They come from Gram matrices: exact relative to the largest value down to about 1e-8 of it in
    float64 and 3e-4 in float32 (`bond_spectra` has no such floor). With cut bonds, the values at
    bond k are those of what the cuts before it have left.
    """
    checks.check_value("gauge", gauge, checks.one_of(*GAUGES))
    _check(w, shape)
    if isinstance(w, np.ndarray):
        cores, spectra = _decompose(np, w.astype(np.float64), shape, gauge)
        return tuple(np.ascontiguousarray(core, dtype=w.dtype) for core in cores), spectra
    return _decompose_jit(w, shape, gauge)


def _check(w, shape):
    if w.shape != (shape.in_features, shape.out_features):
        raise ValueError(
            f"w has shape {w.shape}, but the factor lists {shape.in_factors} x {shape.out_factors} "
            f"describe a matrix of shape {(shape.in_features, shape.out_features)}."
        )
    if w.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"w has dtype {w.dtype}; a matrix is decomposed in float32 or float64, cast it first."
        )
    if isinstance(w, np.ndarray) and not np.all(np.isfinite(w)):
        raise ValueError("w holds NaN or infinite entries; only finite weights have a chain form.")


def identity_cores(w, shape: MPOShape):
    """The exact chain without any factorisation: identity auxiliary cores around the matrix itself.

    The rebuilt matrix is bitwise equal to `w`. Needs full bonds whose two central ones equal the
    products of the outer site sizes, as for all balanced factor lists.

    Raises:
      ValueError: bonds are cut, or the central bonds are smaller than those products.
    """
    xp = np if isinstance(w, np.ndarray) else jnp
    sizes, centre = shape.site_sizes, shape.central
    left = np.cumprod([1, *sizes[:centre]]).tolist()
    right = np.cumprod([1, *reversed(sizes[centre + 1 :])]).tolist()
    needed = (*left[1:], *reversed(right[1:]))
    if shape.bond_dims != needed:
        raise ValueError(
            f"the identity gauge needs bonds {needed} (products of the outer site sizes), but the "
            f"shape has {shape.bond_dims}. Use gauge='central' for other bonds."
        )
    # Digits left of C pass through: eye(a_1 ... a_k) as (a_1 ... a_(k-1), i_k, j_k, a_1 ... a_k).
    before = [
        xp.eye(left[k + 1], dtype=w.dtype).reshape(shape.core_shapes[k]) for k in range(centre)
    ]
    # The mirror image right of it: eye(a_k ... a_n) as (a_k ... a_n, i_k, j_k, a_(k+1) ... a_n).
    after = [
        xp.eye(right[shape.num_cores - k], dtype=w.dtype).reshape(shape.core_shapes[k])
        for k in range(centre + 1, shape.num_cores)
    ]
    middle = _interleave(w, shape).reshape(shape.core_shapes[centre])
    return (*before, middle, *after)


def central_to_matrix(core, shape: MPOShape):
    """The matrix (..., in, out) that a central core stands for between identity auxiliary cores.

    The inverse of what `identity_cores` does to a matrix, padding kept; leading axes are batches.

    Raises:
      ValueError: the central bonds are not the products of the outer site sizes.
    """
    _check_central_bonds(shape)
    n, lead = shape.num_cores, core.ndim - 4
    factors = [f for pair in zip(shape.in_factors, shape.out_factors, strict=True) for f in pair]
    # (..., i_1, j_1, ..., i_n, j_n) -> (..., i_1, ..., i_n, j_1, ..., j_n)
    axes = [*range(lead), *(lead + 2 * k for k in range(n)), *(lead + 2 * k + 1 for k in range(n))]
    sites = core.reshape(*core.shape[:lead], *factors)
    sizes = (shape.padded_in_features, shape.padded_out_features)
    return sites.transpose(axes).reshape(*core.shape[:lead], *sizes)


def matrix_to_central(matrix, shape: MPOShape):
    """The central core (..., d, i, j, d') of a padded matrix (..., in, out); see above."""
    _check_central_bonds(shape)
    n, lead = shape.num_cores, matrix.ndim - 2
    # (..., i_1, ..., i_n, j_1, ..., j_n) -> (..., i_1, j_1, ..., i_n, j_n)
    axes = [*range(lead), *(lead + axis for k in range(n) for axis in (k, n + k))]
    split = matrix.reshape(*matrix.shape[:lead], *shape.in_factors, *shape.out_factors)
    return split.transpose(axes).reshape(*matrix.shape[:lead], *shape.core_shapes[shape.central])


def is_matrix_between_identities(shape: MPOShape) -> bool:
    """True if the central core alone has an entry for each entry of the (padded) matrix."""
    centre = shape.central
    left = math.prod(shape.site_sizes[:centre])
    right = math.prod(shape.site_sizes[centre + 1 :])
    size = shape.core_shapes[centre]
    return (size[0], size[3]) == (left, right)


def _check_central_bonds(shape: MPOShape):
    if not is_matrix_between_identities(shape):
        raise ValueError(
            f"the central core {shape.core_shapes[shape.central]} of this shape has cut bonds: it "
            "is no matrix by itself."
        )


@functools.partial(jax.jit, static_argnames=("shape", "gauge"))
def _decompose_jit(w, shape, gauge):
    # Default precision may mean TF32 or bfloat16 products on accelerators.
    with jax.default_matmul_precision("highest"):
        return _decompose(jnp, w, shape, gauge)


def _decompose(xp, w, shape, gauge):
    if gauge == "identity":
        cores = identity_cores(w, shape)
        # Bonds of identity cores are not aligned with singular vectors: a sweep of its own.
        return cores, canonical.canonicalize_with_spectra(cores)[1]
    cores, spectra = _central_sweep(xp, w, shape)
    if not shape.is_full:
        # Cutting later bonds leaves earlier ones unaligned; cheap to repair on the cut cores.
        cores = canonical.canonicalize(cores, gauge)
    elif gauge != "central":
        cores = canonical.from_central(cores, spectra, gauge)
    return cores, spectra


def _central_sweep(xp, w, shape):
    """Cuts bonds from left to right; the scale of `w` ends in the central core."""
    # Squares in the Gram matrices must neither overflow nor vanish: work at unit scale.
    scale = xp.max(xp.abs(w))
    scale = xp.where(scale > 0, scale, 1).astype(w.dtype)
    rest = _interleave(w / scale, shape)
    bonds, centre = (1, *shape.bond_dims, 1), shape.central
    cores, spectra = [], []
    for k in range(centre):
        u, rest, s = _split_left(xp, rest.reshape(bonds[k] * shape.site_sizes[k], -1), bonds[k + 1])
        cores.append(u)
        spectra.append(s * scale)
    # From here on `rest` is the right part of the chain with orthonormal rows and `row_scale` their
    # singular values: cutting bond k needs the singular vectors of the scaled rows.
    row_scale = xp.ones((bonds[centre],), w.dtype)
    for k in range(centre, shape.num_cores - 1):
        rows = rest.reshape(bonds[k], -1)
        # (d i j, what is right): diag(s) V^T has the singular vectors of the whole matrix
        scaled = (row_scale[:, None] * rows).reshape(bonds[k] * shape.site_sizes[k], -1)
        v, s = _right_vectors(xp, scaled, bonds[k + 1])
        # The unscaled rows: singular values only choose the directions, the scale stays in C.
        cores.append(rows.reshape(scaled.shape) @ v)
        spectra.append(s * scale)
        # rest has orthonormal rows again: (d_k, what is right of the bond)
        rest, row_scale = v.T, s[: bonds[k + 1]]
    cores.append(rest)
    cores[centre] = cores[centre] * scale
    return tuple(c.reshape(s) for c, s in zip(cores, shape.core_shapes, strict=True)), spectra


def _split_left(xp, matrix, rank):
    """Leading left singular vectors u (p, rank), the rest u^T matrix, and all singular values."""
    u, s = _right_vectors(xp, matrix.T, rank)
    # M ~ u (u^T M): the projection onto the leading left singular vectors
    return u, u.T @ matrix, s


def _right_vectors(xp, matrix, rank):
    """Leading right singular vectors (q, rank) of a (p, q) matrix, and its min(p, q) values."""
    p, q = matrix.shape
    if q <= p:
        # M^T M = V diag(s^2) V^T; eigh sorts ascending
        values, vectors = xp.linalg.eigh(matrix.T @ matrix)
        vectors = _orthonormalized(xp, vectors[:, ::-1][:, :rank])
    else:
        # M M^T = U diag(s^2) U^T, and M^T U = V diag(s)
        values, u = xp.linalg.eigh(matrix @ matrix.T)
        # QR instead of dividing by the values: null directions are completed orthonormally.
        vectors = xp.linalg.qr(matrix.T @ u[:, ::-1][:, :rank])[0]
    # Rounding leaves eigenvalues of a singular Gram matrix slightly below zero.
    return vectors, xp.sqrt(xp.maximum(values[::-1], 0))


def _orthonormalized(xp, vectors):
    """One Newton-Schulz step: float32 eigenvectors alone are orthonormal only to about 1e-6."""
    if vectors.dtype != np.float32:
        return vectors
    # X (3 - X^T X) / 2 squares the departure of X^T X from the identity.
    return vectors @ (
        1.5 * xp.eye(vectors.shape[1], dtype=np.float32) - 0.5 * (vectors.T @ vectors)
    )


def _interleave(w, shape):
    """Zero-pads and reorders (i_1..i_n, j_1..j_n) to (i_1, j_1, i_2, j_2, ...), flattened."""
    xp = np if isinstance(w, np.ndarray) else jnp
    rows = shape.padded_in_features - shape.in_features
    columns = shape.padded_out_features - shape.out_features
    if rows or columns:
        w = xp.pad(w, ((0, rows), (0, columns)))
    n = shape.num_cores
    # (i_1, ..., i_n, j_1, ..., j_n) -> (i_1, j_1, ..., i_n, j_n)
    axes = [axis for k in range(n) for axis in (k, n + k)]
    return w.reshape(*shape.in_factors, *shape.out_factors).transpose(axes).reshape(-1)
