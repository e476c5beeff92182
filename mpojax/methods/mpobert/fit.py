"""Auxiliary cores of one layer around a central core that is given: alternating least squares.

With the cores on each side of the centre merged, W = (L ⊗ R) C is linear in the left side and in
the right side by itself. Both are solved in turn, then split into their cores again, which is exact
where their inner bonds are full.
"""

import numpy as np

from mpojax import mpo
from mpojax.mpo import contract, decomposition


def fit_auxiliary(w, start, shape: mpo.MPOShape, sweeps: int = 8, tolerance: float = 1e-4):
    """Cores around the central one of `start` that come close to `w`; on the host, float64.

    Args:
      w: (in_features, out_features).
      start: n cores; the central one stays as it is.
      shape: of the chain.
      sweeps: at most so many solutions of either side.
      tolerance: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
      (cores, relative error ||W - W_hat|| / ||W||).
    """
    w = np.asarray(w, np.float64)
    cores = [np.asarray(core, np.float64) for core in start]
    centre = shape.central
    middle = cores[centre]
    left, right = _side(cores[:centre], True), _side(cores[centre + 1 :], False)
    bond_left, bond_right = middle.shape[0], middle.shape[-1]
    # W as (left sites) x (central site) x (right sites): W ~ L M R, M fixed.
    target = decomposition._interleave(w, shape).reshape(left.shape[0], -1, right.shape[1])
    norm = np.linalg.norm(target) or 1.0
    middle = middle.reshape(bond_left, -1, bond_right)
    error = _error(target, left, middle, right) / norm
    for _ in range(sweeps):
        # L = argmin ||L (M R) - W||, then R = argmin ||(L M) R - W||: each is least squares.
        with_right = (middle @ right).reshape(bond_left, -1)
        new_left = _solve(with_right, target.reshape(left.shape[0], -1))
        with_left = np.einsum("pa,amb->pmb", new_left, middle).reshape(-1, bond_right)
        new_right = _solve(with_left.T, target.reshape(-1, right.shape[1]).T).T
        new_error = _error(target, new_left, middle, new_right) / norm
        if new_error >= error:  # rounding alone can do this
            break
        improvement = 1.0 - new_error / error
        left, right, error = new_left, new_right, new_error
        if improvement < tolerance:
            break
    cores[:centre] = _split_left(left, shape)
    cores[centre + 1 :] = _split_right(right, shape)
    found = tuple(cores)
    # Splitting cuts inner bonds that are not full, which the error above does not know of.
    if not shape.is_full:
        error = np.linalg.norm(w - contract.to_matrix(found, shape)) / (np.linalg.norm(w) or 1.0)
    return found, float(error)


def _side(cores, is_left: bool) -> np.ndarray:
    """The cores of one side as a matrix: (sites, bond) left of the centre, (bond, sites) right."""
    if not cores:
        return np.ones((1, 1))
    merged = cores[0].reshape(cores[0].shape[0], -1, cores[0].shape[-1])
    for core in cores[1:]:
        flat = core.reshape(core.shape[0], -1, core.shape[-1])
        # Bonds inside the side are summed; its sites (i_k j_k) are joined into one index.
        merged = np.einsum("apb,bqc->apqc", merged, flat).reshape(
            merged.shape[0], -1, flat.shape[-1]
        )
    return merged[0] if is_left else merged[..., 0]


def _solve(inputs, target):
    """X with the least ||X inputs - target||; the shortest such where it is not unique."""
    # Normal equations: inputs has few rows (a bond) and many columns.
    # X = target inputs^T (inputs inputs^T)^+
    return np.linalg.lstsq(inputs @ inputs.T, inputs @ target.T, rcond=1e-12)[0].T


def _error(target, left, middle, right) -> float:
    approximation = np.einsum("pa,amb->pmb", left, middle) @ right
    return float(np.linalg.norm(target - approximation))


def _split_left(left, shape: mpo.MPOShape) -> list[np.ndarray]:
    """(sites, bond) -> the cores left of the centre, orthonormal but for the last."""
    cores, rest = [], left
    bonds = (1, *shape.bond_dims)
    for k in range(shape.central - 1):
        # L = U (S V^T): U is the core, the rest goes to the right.
        u, s, vt = np.linalg.svd(
            rest.reshape(bonds[k] * shape.site_sizes[k], -1), full_matrices=False
        )
        # Fewer singular values than the bond holds: zeros, which change no product.
        cores.append(_padded(u, bonds[k + 1], axis=1).reshape(shape.core_shapes[k]))
        rest = _padded(s[:, None] * vt, bonds[k + 1], axis=0)
    if shape.central:
        cores.append(rest.reshape(shape.core_shapes[shape.central - 1]))
    return cores


def _split_right(right, shape: mpo.MPOShape) -> list[np.ndarray]:
    """(bond, sites) -> the cores right of the centre, orthonormal but for the first."""
    cores, rest, n = [], right, shape.num_cores
    bonds = (1, *shape.bond_dims, 1)
    for k in range(n - 1, shape.central + 1, -1):
        rows = rest.reshape(-1, shape.site_sizes[k] * bonds[k + 1])
        u, s, vt = np.linalg.svd(rows, full_matrices=False)
        cores.insert(0, _padded(vt, bonds[k], axis=0).reshape(shape.core_shapes[k]))
        # (U S) V^T: V^T is the core, U S goes to the left.
        rest = _padded(u * s, bonds[k], axis=1)
    if shape.central < n - 1:
        cores.insert(0, rest.reshape(shape.core_shapes[shape.central + 1]))
    return cores


def _padded(matrix, size: int, axis: int):
    """Cut, or filled up with zeros, to `size` along an axis."""
    matrix = np.take(matrix, range(min(size, matrix.shape[axis])), axis=axis)
    missing = size - matrix.shape[axis]
    widths = [(0, missing if a == axis else 0) for a in range(2)]
    return np.pad(matrix, widths) if missing else matrix
