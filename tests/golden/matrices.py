"""The golden fixture matrices of the specification, in float64."""

import functools

import numpy as np

from mpojax import mpo

BALANCED = ((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))
SAME = ((4, 4, 4, 4, 3), (4, 4, 4, 4, 3))
UP = ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))


def _h() -> np.ndarray:
    k = np.arange(2304, dtype=np.int64)
    return (((k * k * 31 + k * 17 + 7) % 1009) / 1009 - 0.5).reshape(48, 48)


def _sin() -> np.ndarray:
    k = np.arange(1, 97)
    return np.sin(k * k).reshape(12, 8)


_FIXTURES = {
    "H": (_h, (2, 2, 3, 2, 2), (2, 3, 2, 2, 2)),
    "R": (
        lambda: np.random.default_rng(0).standard_normal((48, 48)),
        (2, 2, 3, 2, 2),
        (2, 3, 2, 2, 2),
    ),
    "sin": (_sin, (2, 3, 2), (2, 2, 2)),
    "low-bond": (lambda: np.arange(480).reshape(24, 20) / 100, (2, 3, 4), (2, 5, 2)),
}


@functools.cache
def fixture(name: str) -> tuple[np.ndarray, mpo.MPOShape]:
    """The matrix `name` and its full-bond shape."""
    make, in_factors, out_factors = _FIXTURES[name]
    return make(), mpo.MPOShape(in_factors, out_factors)


@functools.cache
def decomposed(name: str, gauge: str = "central"):
    """(cores, spectra) of a fixture at full bonds."""
    return mpo.decompose_with_spectra(*fixture(name), gauge)


def error_of(w, cores) -> float:
    """Absolute Frobenius error of the matrix that `cores` stand for."""
    return float(np.linalg.norm(w - mpo.to_matrix(cores)))


def sliced(name: str, bonds, gauge: str = "central"):
    """Cores of a fixture cut by simultaneous slicing in one gauge."""
    return mpo.slice_bonds(decomposed(name, gauge)[0], bonds)
