"""Shared by the kernel tests: factor lists, random chains, oracles written without the kernels."""

import functools
import math

import numpy as np
from hypothesis import strategies as st

from mpojax import mpo

GAUGES = ("central", "left", "right", "symmetric")

# Every factor list of the specification, by length.
FACTOR_LISTS = {
    2: [(32, 24), (32, 32), (32, 64), (48, 48), (64, 48), (64, 64), (210, 240)],
    3: [
        (4, 8, 4),
        (4, 16, 4),
        (8, 8, 8),
        (8, 12, 8),
        (8, 16, 8),
        (8, 16, 16),
        (12, 16, 12),
        (12, 16, 16),
        (16, 16, 16),
        (30, 40, 25),
        (32, 30, 32),
        (35, 40, 36),
    ],
    5: [
        (2, 2, 4, 4, 2),
        (2, 2, 8, 2, 2),
        (2, 4, 4, 4, 2),
        (2, 4, 8, 4, 2),
        (4, 4, 4, 4, 3),
        (3, 4, 4, 4, 4),
        (4, 4, 4, 4, 4),
        (4, 4, 8, 4, 4),
        (4, 4, 8, 6, 3),
        (4, 4, 8, 6, 4),
        (4, 4, 8, 8, 4),
        (5, 10, 10, 10, 6),
        (6, 8, 10, 8, 8),
        (4, 8, 20, 12, 4),
        (5, 10, 14, 12, 6),
    ],
    7: [
        (2, 2, 2, 2, 2, 2, 2),
        (2, 2, 2, 4, 2, 2, 2),
        (2, 2, 2, 8, 2, 2, 2),
        (2, 2, 4, 4, 3, 2, 2),
        (2, 2, 4, 4, 4, 2, 2),
        (2, 4, 4, 4, 4, 2, 2),
        (2, 3, 4, 4, 4, 3, 2),
        (2, 4, 4, 4, 4, 3, 2),
        (2, 4, 4, 4, 4, 4, 2),
        (4, 5, 5, 7, 6, 4, 3),
    ],
    9: [
        (2, 2, 2, 2, 2, 2, 2, 2, 2),
        (2, 2, 2, 2, 3, 2, 2, 2, 2),
        (2, 2, 2, 2, 4, 2, 2, 2, 2),
        (2, 2, 2, 4, 4, 2, 2, 2, 2),
        (2, 2, 2, 3, 4, 3, 2, 2, 2),
        (2, 2, 2, 4, 4, 3, 2, 2, 2),
        (2, 2, 2, 4, 4, 4, 2, 2, 2),
        (2, 2, 5, 5, 7, 6, 3, 2, 2),
    ],
}
ALL_FACTOR_LISTS = [factors for lists in FACTOR_LISTS.values() for factors in lists]


def small_partner(factors) -> tuple[int, ...]:
    """A list of the same length with product 2, the 2 at the central site."""
    centre = (len(factors) - 1) // 2
    return tuple(2 if k == centre else 1 for k in range(len(factors)))


@st.composite
def shapes(draw, min_cores=1, max_cores=7, max_side=64, cut=False):
    """Random chains, factors of 1 included; `cut` draws bonds below the full ones too."""
    n = draw(st.integers(min_cores, max_cores))
    lists = []
    for _ in range(2):
        factors = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
        while math.prod(factors) > max_side:
            factors[factors.index(max(factors))] -= 1
        lists.append(factors)
    shape = mpo.MPOShape(*lists)
    if cut:
        shape = shape.with_bonds(tuple(draw(st.integers(1, d)) for d in shape.full_bond_dims))
    return shape


def seeds():
    """Seeds of random numbers."""
    return st.integers(0, 2**32 - 1)


def random_matrix(shape, seed=0, dtype=np.float64):
    """A Gaussian matrix for a shape."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape.in_features, shape.out_features)).astype(dtype)


def random_cores(shape, seed=0, dtype=np.float64):
    """Gaussian cores in no gauge."""
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.standard_normal(core) / np.sqrt(core[0])).astype(dtype) for core in shape.core_shapes
    )


def unfolding(w, shape, k):
    """M_k: digits interleaved as (i_1, j_1, i_2, j_2, ...), split after site k."""
    n = shape.num_cores
    digits = w.reshape(shape.in_factors + shape.out_factors)
    mixed = digits.transpose([axis for m in range(n) for axis in (m, n + m)])
    return mixed.reshape(math.prod(shape.site_sizes[:k]), -1)


def left_block(cores, k):
    """Cores 1..k as a matrix (a_1..a_k, d_k)."""
    run = functools.reduce(lambda a, b: np.tensordot(a, b, axes=1), cores[:k])
    return run.reshape(-1, run.shape[-1])


def right_block(cores, k):
    """Cores k+1..n as a matrix (d_k, a_{k+1}..a_n)."""
    run = functools.reduce(lambda a, b: np.tensordot(a, b, axes=1), cores[k:])
    return run.reshape(run.shape[0], -1)


def rebuilt(cores):
    """The matrix of a chain by plain sums over bonds; numpy or jax arrays."""
    n = len(cores)
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    bonds = [next(letters) for _ in range(n + 1)]
    rows, columns = ([next(letters) for _ in range(n)] for _ in range(2))
    terms = ",".join(bonds[k] + rows[k] + columns[k] + bonds[k + 1] for k in range(n))
    result = bonds[0] + "".join(rows) + "".join(columns) + bonds[n]
    if all(isinstance(core, np.ndarray) for core in cores):
        out = np.einsum(f"{terms}->{result}", *cores, optimize=True)
    else:
        import jax.numpy as jnp

        out = jnp.einsum(f"{terms}->{result}", *cores, precision="highest")
    return out.reshape(
        math.prod(core.shape[1] for core in cores), math.prod(core.shape[2] for core in cores)
    )


def identity_is_possible(shape) -> bool:
    """Whether the full bonds are the products of the outer site sizes."""
    sizes, centre = shape.site_sizes, shape.central
    left = [math.prod(sizes[: k + 1]) for k in range(centre)]
    right = [math.prod(sizes[k:]) for k in range(centre + 1, len(sizes))]
    return list(shape.bond_dims) == left + right
