"""Golden structured inputs: planted bonds, identity, Kronecker, rank one, mixed-up factor lists."""

import numpy as np
import pytest

from mpojax import mpo
from tests.golden.matrices import BALANCED, UP, error_of


def bond_ranks(spectra):
    """Values above the resolution of Gram matrices count."""
    return [int((spectrum > 1e-6 * spectrum[0]).sum()) for spectrum in spectra]


def _kron():
    rng = np.random.default_rng(3)
    return np.kron(rng.standard_normal((12, 12)), rng.standard_normal((64, 64)))


def _rank_one():
    rng = np.random.default_rng(4)
    return np.outer(rng.standard_normal(768), rng.standard_normal(768))


@pytest.mark.parametrize(
    ("make", "ranks"),
    [
        (lambda: np.eye(768), [6, 6, 6, 6]),
        (_kron, [12, 6, 72, 12]),
        # The rank of a bond is the product of those of the two vectors: (3, 12, 16, 4) x
        # (4, 16, 12, 3).
        (_rank_one, [12, 192, 192, 12]),
    ],
    ids=["identity", "kronecker", "rank-one"],
)
def test_bond_ranks(make, ranks):
    w, shape = make(), mpo.MPOShape(*BALANCED)
    cores, spectra = mpo.decompose_with_spectra(w, shape)
    assert bond_ranks(spectra) == ranks
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-12
    small = mpo.decompose(w, shape.with_bonds(tuple(ranks)))
    assert mpo.relative_error(w, mpo.to_matrix(small)) <= 1e-12


def test_zero_matrix_of_real_size():
    cores, spectra = mpo.decompose_with_spectra(np.zeros((768, 768)), mpo.MPOShape(*BALANCED))
    assert all(np.isfinite(core).all() for core in cores)
    assert not mpo.to_matrix(cores).any()
    assert not any(spectrum.any() for spectrum in spectra)


@pytest.fixture(scope="module")
def planted():
    """A 3072 x 768 matrix of exact bonds 12, 48, 48, 16 and its full-bond shape."""
    rng = np.random.default_rng(1)
    shape = mpo.MPOShape(UP[1], UP[0])
    cores = [
        rng.standard_normal(core) / np.sqrt(core[0])
        for core in shape.with_bonds((12, 48, 48, 16)).core_shapes
    ]
    return mpo.to_matrix(cores), shape


def test_planted_matrix_is_recovered_with_its_own_lists(planted):
    w, shape = planted
    assert bond_ranks(mpo.decompose_with_spectra(w, shape)[1]) == [12, 48, 48, 16]
    cores = mpo.decompose(w, shape.with_bonds(48))
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-12


def test_lists_of_another_matrix_scramble_the_bonds(planted):
    """The released code overwrote the lists of the up-projection with those of the down one."""
    w, shape = planted[0].reshape(768, 3072), mpo.MPOShape(*UP)
    cores = mpo.decompose(w, shape)
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-13
    cut = mpo.to_matrix(mpo.slice_bonds(cores, 48))
    assert mpo.relative_error(w, cut) == pytest.approx(0.9168104570, abs=1e-10)


@pytest.mark.parametrize("bonds", [None, (3, 7, 6, 3)])
def test_central_core_by_least_squares(bonds):
    """C = L^T interleave(W) R^T with orthonormal sides: no inverse, right after truncation too."""
    shape = mpo.MPOShape((2, 2, 3, 2, 2), (2, 3, 2, 2, 2), bonds)
    w = np.random.default_rng(5).standard_normal((48, 48))
    first, second, centre, fourth, fifth = mpo.decompose(w, shape)
    left = np.einsum("aijb,bklc->ikjlc", first, second)
    right = np.einsum("dope,eqrf->doqpr", fourth, fifth)
    digits = w.reshape(2, 2, 3, 2, 2, 2, 3, 2, 2, 2)
    solved = np.einsum("ikmoqjlnpr,ikjlc,doqpr->cmnd", digits, left, right)
    if shape.is_full:
        np.testing.assert_allclose(solved, centre, rtol=0, atol=1e-12)
    # No other centre between these sides comes closer, the rounded one included.
    best = error_of(w, (first, second, solved, fourth, fifth))
    assert best <= error_of(w, (first, second, centre, fourth, fifth)) + 1e-12
    for change in np.random.default_rng(6).standard_normal((5, *centre.shape)):
        other = error_of(w, (first, second, solved + change, fourth, fifth))
        assert other**2 == pytest.approx(best**2 + np.linalg.norm(change) ** 2)
