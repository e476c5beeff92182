"""The basis of a bond in which its indices are scored: fixed, since training leaves it arbitrary.

A diagonal change of basis moves no score, a rotation does (only their sum stays). On the host, in
float64; the matrix that a chain stands for does not change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpojax import mpo
from mpojax.methods.pet.allocation import Masks
from mpojax.methods.pet.groups import Groups, Spec

GAUGES = ("svd", "raw", "score")

Moments = Sequence[tuple[Mapping[str, Any], bool]]


def regauge(
    params: Mapping[str, Any], masks: Masks, spec: Spec, moments: Moments = ()
) -> tuple[dict[str, Any], Masks, list[dict[str, Any]]]:
    """Every chain with its bonds along singular vectors: index a carries the a-th singular value.

    What is left of a bond comes first, by descending singular value; what is dropped is zero. For
    low rank this is A <- Q_a U sqrt(s), B <- sqrt(s) V^T Q_b^T. First moments and gradients follow
    exactly, second moments by the squared maps, see `mpo.transform_gradients`.

    Args:
      params: {array path: array}; those of no chain stay.
      masks: what is left; bonds wider than what they can carry lose indices.
      spec: {unit: groups}.
      moments: ({array path: array}, is it a second moment?) pairs.

    Returns:
      (params, masks, moments in the same order), float32 as they came.
    """
    params, masks = dict(params), dict(masks)
    held = [dict(values) for values, _ in moments]
    for unit, groups in spec.items():
        if groups.kind != "chain" or not all(mask.any() for mask in masks[unit]):
            continue
        old = _alive([params[name] for name in groups.arrays], masks[unit])
        new = mpo.canonicalize(tuple(old), "symmetric")
        maps = mpo.gauge_maps(old, new)
        shapes = [np.shape(params[name]) for name in groups.arrays]
        params |= _padded(groups, new, shapes, params)
        for values, (_, squared) in zip(held, moments, strict=True):
            parts = _alive([values[name] for name in groups.arrays], masks[unit])
            moved = mpo.transform_gradients(parts, maps, squared=squared)
            values |= _padded(groups, moved, shapes, values)
        bonds = [core.shape[3] for core in new[:-1]]
        masks[unit] = tuple(
            np.arange(len(mask)) < bond for mask, bond in zip(masks[unit], bonds, strict=True)
        )
    return params, masks, held


def rotate(
    params: Mapping[str, Any],
    spec: Spec,
    rotations: Mapping[str, Sequence[np.ndarray]],
    moments: Moments = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Chains in other orthonormal bases: T_k <- T_k Q, T_{k+1} <- Q^T T_{k+1}.

    Args:
      params: {array path: array}.
      spec: {unit: groups}.
      rotations: {unit of a chain: one orthogonal (d_k, d_k) for each inner bond}.
      moments: as for `regauge`; gradients and first moments rotate as the cores do.
    """
    params, held = dict(params), [dict(values) for values, _ in moments]
    for unit, bases in rotations.items():
        groups = spec[unit]
        shapes = [np.shape(params[name]) for name in groups.arrays]
        every = [(params, False), *((v, s) for v, (_, s) in zip(held, moments, strict=True))]
        for values, squared in every:
            cores = [_four_axes(values[n], k) for k, n in enumerate(groups.arrays)]
            for k, basis in enumerate(bases):
                basis = np.square(basis) if squared else basis
                cores[k] = np.tensordot(cores[k], basis, axes=1)
                cores[k + 1] = np.tensordot(basis.T, cores[k + 1], axes=1)
            values |= _padded(groups, cores, shapes, values)
    return params, held


def score_basis(open_bond: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(basis Q (d, d), scores (d,)) that separate the scores of a bond most.

    Q are eigenvectors of the symmetric part of `pet_groups.open_bonds`, inside of what is left; no
    orthonormal basis separates the signed scores further. Largest sizes first.
    """
    alive = np.flatnonzero(mask)
    inside = np.asarray(open_bond, np.float64)[np.ix_(alive, alive)]
    values, vectors = np.linalg.eigh((inside + inside.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    basis, scores = np.eye(len(mask)), np.zeros(len(mask))
    basis[np.ix_(alive, alive)] = vectors[:, order]
    scores[alive] = -values[order]
    return basis, scores


def _alive(values: Sequence, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cores without what is dropped, (d, i, j, d') float64."""
    parts = []
    for k, value in enumerate(values):
        core = _four_axes(value, k)
        core = core if k == 0 else core[np.flatnonzero(masks[k - 1])]
        parts.append(core if k == len(masks) else core[..., np.flatnonzero(masks[k])])
    return parts


def _four_axes(value, k: int) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.ndim == 4:
        return value
    return value[None, :, None, :] if k == 0 else value[:, None, :, None]


def _padded(groups: Groups, cores, shapes, like: Mapping) -> dict[str, np.ndarray]:
    """Cores with zeros where bonds became smaller, in the shapes that they had."""
    found = {}
    for name, core, shape in zip(groups.arrays, cores, shapes, strict=True):
        core = np.asarray(core)
        if len(shape) == 2:  # a factor of low rank: (in, rank) or (rank, out)
            first = name == groups.arrays[0]
            core = core[0, :, 0, :] if first else core[:, 0, :, 0]
        whole = np.zeros(shape, np.asarray(like[name]).dtype)
        whole[tuple(slice(0, size) for size in core.shape)] = core
        found[name] = whole
    return found
