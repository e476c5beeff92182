"""Gauges of a chain and rounding on its cores, never through the dense matrix.

The freedom T_k -> T_k p, T_{k+1} -> p^-1 T_{k+1} leaves the matrix unchanged. A gauge fixes it:

| gauge     | left of the cut             | right of the cut             | scale of W in   |
| central   | orthonormal for k < central | orthonormal for k >= central | central core    |
| left      | orthonormal                 | singular values              | last core       |
| right     | singular values             | orthonormal                  | first core      |
| symmetric | sqrt of singular values     | sqrt of singular values      | two outer cores |

In all four, bond k is aligned with the singular vectors of the k-th unfolding, so that slicing a
bond drops its smallest singular values. Arrays of numpy are treated in float64 on the host, arrays
of jax in their own dtype (jit-able, vmap-able).
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.mpo import shape as shape_lib

CANONICAL_GAUGES = ("central", "left", "right", "symmetric")
_GAUGE = checks.one_of(*CANONICAL_GAUGES)


def canonicalize(cores, gauge: str = "central"):
    """Brings cores into a gauge; the matrix they stand for does not change.

    One QR sweep from the right, then one SVD sweep from the left on the cores, O(n a d^3). Training
    leaves every gauge, so trained cores are passed through here before their bonds are read or cut.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k), in any gauge.
      gauge: "central", "left", "right" or "symmetric".

    Returns:
      Tuple of cores with bonds at most the old ones (clipped where they exceeded the full bonds).

    Raises:
      ValueError: unknown gauge.
    """
    return canonicalize_with_spectra(cores, gauge)[0]


def canonicalize_with_spectra(cores, gauge: str = "central"):
    """As `canonicalize`; also returns the exact singular values of every bond, descending."""
    checks.check_value("gauge", gauge, _GAUGE)
    xp, cores, restore = backend(cores)
    with _full_precision():
        lefts, spectra, carries, rights = _sweep(xp, cores)
    return restore(_assemble(xp, gauge, lefts, spectra, carries, rights)), spectra


def truncate(cores, bonds, method: str = "sequential", gauge: str = "central"):
    """Cuts bonds: tensor-train rounding on the cores, never through the dense matrix.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k), in any gauge.
      bonds: int cap for every bond, or one int for each of the n - 1 inner bonds, at most the
        current ones.
      method: "sequential" cuts inside the sweep from the left (squared error is exactly the sum of
        what each step discards); "slicing" cuts all bonds at once in a canonical gauge.
      gauge: gauge of the result.

    Returns:
      Tuple of cores; the error lies between max_k eps_k and sqrt(sum_k eps_k^2).

    Raises:
      ValueError: unknown method or gauge, or bonds outside 1..current.

    Example:
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> w = np.random.default_rng(0).standard_normal((64, 64))
      >>> full = mpo.decompose(w, mpo.MPOShape.balanced(64, 64, n=3))
      >>> [core.shape for core in mpo.truncate(full, 8)]
      [(1, 4, 4, 8), (8, 4, 4, 8), (8, 4, 4, 1)]
    """
    checks.check(
        {"gauge": gauge, "method": method},
        {"gauge": _GAUGE, "method": checks.one_of("sequential", "slicing")},
    )
    bonds = _new_bonds(cores, bonds)
    xp, cores, restore = backend(cores)
    with _full_precision():
        if method == "sequential":
            # Each cut is an orthogonal projection of the last result: the squares of what the steps
            # discard add up.
            lefts, _, carries, _ = _sweep(xp, cores, bonds)
            # Left-orthonormal cores with the scale in the last one: the truncated matrix, but
            # aligned with the old bonds. The second sweep, on small cores, restores the gauge.
            cut = [*lefts, carries[-1]]
        else:
            cut = slice_bonds(_assemble(xp, "central", *_sweep(xp, cores)), bonds)
        return restore(_assemble(xp, gauge, *_sweep(xp, cut)))


def slice_bonds(cores, bonds):
    """Keeps the leading entries of every bond, T_k[:r_{k-1}, :, :, :r_k], and nothing else.

    Only in a canonical gauge does this drop the smallest singular values; elsewhere (identity
    chain, trained cores) it drops arbitrary directions. `truncate` is the safe call.
    """
    bonds = (1, *_new_bonds(cores, bonds), 1)
    return tuple(core[: bonds[k], :, :, : bonds[k + 1]] for k, core in enumerate(cores))


def _new_bonds(cores, bonds):
    current = tuple(core.shape[3] for core in cores[:-1])
    shape = shape_lib.shape_from_cores(cores)
    if isinstance(bonds, numbers.Integral):
        return shape.with_bonds(tuple(min(bonds, now) for now in shape.bond_dims)).bond_dims
    bonds = tuple(bonds)
    if len(bonds) == len(current) and any(b > now for b, now in zip(bonds, current, strict=True)):
        raise ValueError(f"bonds {bonds} exceed the current bonds {current}; they can only shrink.")
    return shape.with_bonds(tuple(map(min, bonds, shape.full_bond_dims))).bond_dims


def _full_precision():
    """Default precision may mean TF32 or bfloat16 products on accelerators."""
    return jax.default_matmul_precision("highest")


def backend(cores):
    """numpy in float64 for numpy cores, jax.numpy otherwise; and the cast back."""
    if all(isinstance(core, np.ndarray) for core in cores):
        dtype = cores[0].dtype

        def restore(new):
            return tuple(np.ascontiguousarray(core, dtype=dtype) for core in new)

        return np, [core.astype(np.float64) for core in cores], restore
    return jnp, list(cores), tuple


def _sweep(xp, cores, bonds=None):
    """QR from the right, then SVD from the left, cut to `bonds` on the way.

    Returns:
      (left-orthonormal cores 1..n-1, spectra, carries, right-orthonormal cores). carries[k] is
      S_k V_k^T Q_{k+1}, the core right of bond k with the scale of W in it.
    """
    # T_k = L Q with orthonormal rows Q; L goes left
    cores = list(cores)
    for k in range(len(cores) - 1, 0, -1):
        bond, *rest = cores[k].shape
        q, r = xp.linalg.qr(cores[k].reshape(bond, -1).T)
        cores[k] = q.T.reshape(-1, *rest)
        cores[k - 1] = xp.tensordot(cores[k - 1], r.T, axes=1)
    # carries[0] now holds the scale of W; every later core has orthonormal rows.
    lefts, spectra, carries, rotations = [], [], [cores[0]], []
    for k in range(len(cores) - 1):
        *rest, bond = carries[-1].shape
        matrix = carries[-1].reshape(-1, bond)
        # all cores right of k have orthonormal rows: s are those of the whole unfolding
        u, s, vt = xp.linalg.svd(matrix, full_matrices=False)
        spectra.append(s)
        keep = s.shape[0] if bonds is None else bonds[k]
        u, s, vt = u[:, :keep], s[:keep], vt[:keep]
        lefts.append(u.reshape(*rest, -1))
        rotations.append(vt)
        # u^T matrix rather than s v^T: equal, but free of the rounding of s and v.
        carries.append(xp.tensordot(u.T @ matrix, cores[k + 1], axes=1))
    # Bond k is turned by V_k^T on both of its sides: right-orthonormal cores aligned with the
    # singular vectors that the sweep from the left has found.
    rights = [
        xp.tensordot(rotations[k - 1], cores[k], axes=1)
        if k == len(cores) - 1
        else xp.tensordot(xp.tensordot(rotations[k - 1], cores[k], axes=1), rotations[k].T, axes=1)
        for k in range(1, len(cores))
    ]
    return lefts, spectra, carries, rights


def _assemble(xp, gauge, lefts, spectra, carries, rights):
    """Cores of one gauge from the parts of an uncut `_sweep`; no division by singular values."""
    n = len(carries)
    if n == 1:
        return (carries[0],)
    if gauge == "symmetric":
        return _symmetric(xp, [*lefts, carries[-1]], spectra)
    centre = {"central": (n - 1) // 2, "left": n - 1, "right": 0}[gauge]
    if centre == n - 1:
        return (*lefts, carries[-1])
    # U_c S_c with orthonormal cores on both sides: norm(middle) = norm(W).
    middle = lefts[centre] * spectra[centre][None, None, None, :]
    # `rights` begins with core 1: rights[centre:] are the cores behind the centre.
    return (*lefts[:centre], middle, *rights[centre:])


def from_central(cores, spectra, gauge: str):
    """Left, right or symmetric gauge from cores in the central one, with one QR for each core
    passed.

    The bonds are aligned with singular vectors already, so that the triangular factors are
    diagonal.
    """
    xp = np if isinstance(cores[0], np.ndarray) else jnp
    cores, n = list(cores), len(cores)
    if gauge == "right":
        for k in range((n - 1) // 2, 0, -1):
            bond, *rest = cores[k].shape
            q, r = xp.linalg.qr(cores[k].reshape(bond, -1).T)
            cores[k] = q.T.reshape(-1, *rest)
            cores[k - 1] = xp.tensordot(cores[k - 1], r.T, axes=1)
        return tuple(cores)
    for k in range((n - 1) // 2, n - 1):
        *rest, bond = cores[k].shape
        q, r = xp.linalg.qr(cores[k].reshape(-1, bond))
        cores[k] = q.reshape(*rest, -1)
        cores[k + 1] = xp.tensordot(r, cores[k + 1], axes=1)
    return tuple(cores) if gauge == "left" else _symmetric(xp, cores, spectra)


def _symmetric(xp, left_gauge, spectra):
    """Symmetric gauge from the left one: a factor sqrt(lambda) on both sides of every bond.

    Any positive diagonal keeps the matrix, so values below the relative cut-off are raised to it
    instead of being divided by: zero and rank-deficient matrices stay exact and finite.
    """
    roots = [_positive_root(xp, s) for s in spectra]
    cores = list(left_gauge)
    for k, root in enumerate(roots):
        # T_k S_k^(1/2) . S_k^(-1/2) T_{k+1}: an identity is put into every bond.
        cores[k] = cores[k] * root[None, None, None, :]
        cores[k + 1] = cores[k + 1] / root[:, None, None, None]
    return tuple(cores)


def _positive_root(xp, s):
    # Well above the rounding of singular values, which is relative to the largest of them.
    cutoff = 1e-12 if s.dtype == np.float64 else 1e-6
    largest = xp.max(s)
    floor = xp.where(largest > 0, largest * cutoff, 1).astype(s.dtype)
    return xp.sqrt(xp.maximum(s, floor))
