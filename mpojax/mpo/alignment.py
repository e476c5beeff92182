"""Two chains of equal shape in comparable gauges, and distances that no gauge can change.

Cores are defined up to a change of basis at every bond; even the symmetric gauge leaves the signs
of singular vectors free, and near-equal singular values may swap. Differences between raw cores
therefore measure luck. Here signs are fixed, and the student's bonds are rotated onto the teacher's
(orthogonal Procrustes) from both ends to the central core, which absorbs the rotations.

Numpy cores are treated on the host in float64, jax cores in their dtype, under jit.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mpojax import checks
from mpojax.mpo import canonical
from mpojax.mpo.shape import MPOShape


def over_parameterised_shape(
    in_features: int,
    out_features: int,
    num_inner_cores: int,
    factor_overrides: Mapping[int, tuple[Sequence[int], Sequence[int]]] | None = None,
) -> MPOShape:
    """Full-bond chain of `num_inner_cores` + 2 cores with more parameters than the matrix.

    Each size is split into two factors as equal as can be, the larger first (768 = 32 x 24, 3072 =
    64 x 48); between them are factors of one, whose cores are square matrices on the bonds.

    Args:
      in_features, out_features: of the matrix.
      num_inner_cores: how many factors of one.
      factor_overrides: {size: (factors before, factors behind those of one)}, instead of the two
        factors.

    Raises:
      ValueError: a negative `num_inner_cores`, or factors that do not multiply to their size.
    """
    checks.check({"num_inner_cores": num_inner_cores}, {"num_inner_cores": checks.integer(0)})
    lists = []
    for size in (in_features, out_features):
        if factor_overrides and size in factor_overrides:
            before, behind = factor_overrides[size]
            lists.append((*before, *(1,) * num_inner_cores, *behind))
            if math.prod(lists[-1]) != size:
                raise ValueError(f"the factors {before}, {behind} do not multiply to {size}.")
            continue
        # The largest divisor up to the root: the two factors are as equal as can be.
        small = next(k for k in range(int(size**0.5), 0, -1) if size % k == 0)
        lists.append((size // small, *(1,) * num_inner_cores, small))
    return MPOShape(*lists)


def sign_fix(cores: Sequence) -> tuple:
    """The same chain with the largest entry of every column of its left unfoldings positive.

    Bond by bond from the left: column a of core k and row a of core k + 1 change sign together.
    Of equal largest entries the first counts.
    """
    xp, cores, restore = canonical.backend(cores)
    for k in range(len(cores) - 1):
        unfolded = cores[k].reshape(-1, cores[k].shape[3])
        # (d_k,): row of the largest entry of each column of the (d_{k-1} i j, d_k) unfolding
        places = xp.argmax(xp.abs(unfolded), axis=0)
        largest = xp.take_along_axis(unfolded, places[None], axis=0)[0]
        signs = xp.where(largest < 0, -1.0, 1.0).astype(cores[k].dtype)
        # A_k D and D A_{k+1} with D = diag(signs), D D = 1: the matrix stays.
        cores[k] = cores[k] * signs[None, None, None]
        cores[k + 1] = cores[k + 1] * signs[:, None, None, None]
    return restore(cores)


def align(student: Sequence, teacher: Sequence) -> tuple:
    """The student's chain with its bonds rotated onto the teacher's; its matrix stays.

    From the left up to the central core, from the right down to it; each rotation is the best
    orthogonal one for its core alone (Procrustes). With three cores no auxiliary core can come
    closer to the teacher's in this way.

    Args:
      student, teacher: cores (d_{k-1}, i_k, j_k, d_k) of equal shapes.

    Raises:
      ValueError: other shapes.
    """
    _check(student, teacher)
    xp, cores, restore = canonical.backend(student)
    _, goal, _ = canonical.backend(teacher)
    central = (len(cores) - 1) // 2
    for k in range(central):
        one, other = (c[k].reshape(-1, c[k].shape[3]) for c in (cores, goal))
        # min_Q |A_s Q - A_t|, with unfoldings (d_{k-1} i j, d_k); Q^T goes to the next core.
        q = _rotation(xp, one.T @ other)
        cores[k] = xp.tensordot(cores[k], q, axes=1)
        cores[k + 1] = xp.tensordot(q.T, cores[k + 1], axes=1)
    for k in range(len(cores) - 1, central, -1):
        one, other = (c[k].reshape(c[k].shape[0], -1) for c in (cores, goal))
        # min_Q |Q^T A_s - A_t|, with unfoldings (d_{k-1}, i j d_k).
        q = _rotation(xp, one @ other.T)
        cores[k] = xp.tensordot(q.T, cores[k], axes=1)
        cores[k - 1] = xp.tensordot(cores[k - 1], q, axes=1)
    return restore(cores)


def core_distance(student: Sequence, teacher: Sequence, relative: bool = True):
    """Mean over auxiliary cores of the squared difference over the teacher's mean square.

    The central core does not count. About 2 for unrelated cores, 0 for equal ones. With
    `relative=False` the plain mean squared difference, as in the paper (equation 5).
    """
    _check(student, teacher)
    central = (len(student) - 1) // 2
    parts = [
        jnp.mean(jnp.square(s - t)) / (_mean_square(t) if relative else 1.0)
        for k, (s, t) in enumerate(zip(student, teacher, strict=True))
        if k != central
    ]
    return sum(parts) / len(parts)


def projector_distance(student: Sequence, teacher: Sequence):
    """Distance of the spaces that the bonds span, invariant under orthogonal gauges of either.

    Mean over bonds of |B_s B_s^T - B_t B_t^T|^2 / |B_t B_t^T|^2, with B the cores left of the bond
    contracted, up to the central core, and right of it beyond: from d x d Gram matrices alone.
    """
    _check(student, teacher)
    pairs = zip(
        _grams(student, student), _grams(teacher, teacher), _grams(student, teacher), strict=True
    )
    parts = []
    for own, goal, both in pairs:
        # |B_s B_s^T - B_t B_t^T|^2 = |B_s^T B_s|^2 + |B_t^T B_t|^2 - 2 |B_s^T B_t|^2
        square = jnp.sum(own * own.T) + jnp.sum(goal * goal.T) - 2 * jnp.sum(jnp.square(both))
        scale = jnp.sum(goal * goal.T)
        parts.append(square / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny))
    return sum(parts) / len(parts)


def _grams(one: Sequence, other: Sequence) -> list[jax.Array]:
    """B_one^T B_other of every bond: left blocks up to the central core, right ones beyond."""
    central = (len(one) - 1) // 2
    found = []
    gram = jnp.ones((1, 1), jnp.asarray(one[0]).dtype)
    for k in range(central):
        # G_k[c, d] = sum_{a b i j} G_{k-1}[a, b] A_k[a, i, j, c] B_k[b, i, j, d]
        gram = jnp.einsum("ab,aijc,bijd->cd", gram, one[k], other[k], precision="highest")
        found.append(gram)
    gram = jnp.ones((1, 1), gram.dtype)
    for k in range(len(one) - 1, central, -1):
        # the same from the right: (d_{k-1}, d_{k-1})
        gram = jnp.einsum("cd,aijc,bijd->ab", gram, one[k], other[k], precision="highest")
        found.append(gram)
    return found


def _mean_square(core):
    mean = jnp.mean(jnp.square(core))
    return jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)  # of a zero matrix


def _rotation(xp, product):
    """The orthogonal Q that maximises <Q, product>."""
    # <Q, U S V^T> = <U^T Q V, S> is largest where U^T Q V = 1
    u, _, v = xp.linalg.svd(product)
    return u @ v


def _check(student: Sequence, teacher: Sequence) -> None:
    shapes = [[tuple(core.shape) for core in cores] for cores in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"cores of shapes {shapes[0]} cannot be compared with {shapes[1]}: decompose both "
            "matrices with the same factor lists and bonds."
        )
