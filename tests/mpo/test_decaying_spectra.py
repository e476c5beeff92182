"""Singular values over many decades: what stays exact, and down to where cuts are optimal."""

import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers

LISTS = {
    "wide right site": ((2, 2, 16), (2, 2, 16)),
    "wide left site": ((16, 2, 2), (16, 2, 2)),
    "many sites": ((2, 2, 2, 2, 2), (1, 2, 2, 2, 1)),
    "low rank, tall": ((48, 1), (1, 24)),
    "low rank, wide": ((24, 1), (1, 48)),
}


def decaying(shape, decades):
    rng = np.random.default_rng(0)
    rank = min(shape.in_features, shape.out_features)
    left, right = (
        np.linalg.qr(rng.standard_normal((size, rank)))[0]
        for size in (shape.in_features, shape.out_features)
    )
    return (left * np.logspace(0, -decades, rank)) @ right.T


@pytest.mark.parametrize("decades", [6, 18])
@pytest.mark.parametrize("gauge", helpers.GAUGES)
@pytest.mark.parametrize("name", LISTS)
def test_full_bonds_stay_exact(name, gauge, decades):
    shape = mpo.MPOShape(*LISTS[name])
    w = decaying(shape, decades)
    cores = mpo.decompose(w, shape, gauge)
    assert all(np.isfinite(core).all() for core in cores)
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-13


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8, 1e-11])
@pytest.mark.parametrize("name", ["low rank, tall", "low rank, wide"])
def test_rounding_on_cores_has_no_floor(name, tolerance):
    """Rounding works by QR and SVD: the bound holds for tails far below the square root of eps."""
    shape = mpo.MPOShape(*LISTS[name])
    w = decaying(shape, 12)
    cores = mpo.decompose(w, shape)
    spectra = mpo.bond_spectra(cores)
    bonds = mpo.bonds_for_tolerance(spectra, tolerance)
    bound = mpo.truncation_error_bound(spectra, bonds) / np.linalg.norm(w)
    for method in ("sequential", "slicing"):
        cut = mpo.truncate(cores, bonds, method=method)
        error = mpo.relative_error(w, mpo.to_matrix(cut))
        assert error <= tolerance
        assert error == pytest.approx(bound, rel=1e-3, abs=1e-14)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-7])
@pytest.mark.parametrize("name", ["low rank, tall", "low rank, wide"])
def test_direct_cuts_are_optimal_above_the_resolution_of_gram_matrices(name, tolerance):
    shape = mpo.MPOShape(*LISTS[name])
    w = decaying(shape, 12)
    spectra = mpo.bond_spectra(mpo.decompose(w, shape))
    bonds = mpo.bonds_for_tolerance(spectra, tolerance)
    cut = mpo.decompose(w, shape.with_bonds(bonds))
    bound = mpo.truncation_error_bound(spectra, bonds) / np.linalg.norm(w)
    assert mpo.relative_error(w, mpo.to_matrix(cut)) <= bound * 1.01
