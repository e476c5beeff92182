"""Golden anchors on matrices of real size: default_rng(0).standard_normal(shape)."""

import functools

import numpy as np
import pytest

from mpojax import mpo
from tests.golden.matrices import BALANCED, SAME, UP

LISTS = {"balanced": BALANCED, "same": SAME, "up": UP}
PRINTED = 1e-8


@functools.cache
def anchor(name):
    """(w, shape, central cores, spectra) of one anchor."""
    shape = mpo.MPOShape(*LISTS[name])
    w = np.random.default_rng(0).standard_normal((shape.in_features, shape.out_features))
    return w, shape, *mpo.decompose_with_spectra(w, shape)


@pytest.mark.parametrize(
    ("name", "norm"), [("balanced", 768.58669214), ("same", 768.58669214), ("up", 1535.68358741)]
)
def test_norm_and_exactness(name, norm):
    w, shape, cores, _ = anchor(name)
    assert np.linalg.norm(w) == pytest.approx(norm, abs=PRINTED)
    assert np.linalg.norm(cores[shape.central]) == pytest.approx(norm, abs=PRINTED)
    assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-13


@pytest.mark.parametrize(
    ("name", "bond", "smallest", "largest"),
    [
        ("balanced", 2, 41.75740241, 69.02696725),
        ("same", 2, 32.47637044, 63.37906400),
        ("same", 3, 52.06203432, 75.46836035),
    ],
)
def test_range_of_spectra(name, bond, smallest, largest):
    spectrum = anchor(name)[3][bond - 1]
    assert spectrum[0] == pytest.approx(largest, abs=PRINTED)
    assert spectrum[-1] == pytest.approx(smallest, abs=PRINTED)


@pytest.mark.parametrize(
    ("name", "entropies"),
    [
        ("balanced", [2.48479334, 5.22619631, 5.22612803, 2.48473181]),
        ("up", [2.48487037, 5.24969806, 5.91940619, 2.77253320]),
    ],
)
def test_entropies(name, entropies):
    found = [mpo.entanglement_entropy(spectrum) for spectrum in anchor(name)[3]]
    np.testing.assert_allclose(found, entropies, rtol=0, atol=PRINTED)


@pytest.mark.parametrize(
    ("name", "cap", "slicing", "bound", "sequential"),
    [
        ("balanced", 149, 0.52786926, 0.55255668, 0.52417510),
        ("balanced", 96, 0.78916977, 0.88813648, 0.77972323),
        ("balanced", 45, 0.94402764, 1.16934044, 0.93271156),
        ("same", 208, *[0.32622706] * 3),
        ("same", 144, *[0.54901658] * 3),
        ("same", 45, 0.94233562, 1.16104426, 0.93252566),
        ("up", 308, *[0.36465851] * 3),
        ("up", 192, *[0.62802380] * 3),
        ("up", 82, 0.92526164, 1.10895176, 0.91634893),
    ],
)
def test_relative_errors_under_a_cap(name, cap, slicing, bound, sequential):
    w, shape, cores, spectra = anchor(name)
    sliced = mpo.to_matrix(mpo.slice_bonds(cores, cap))
    assert mpo.relative_error(w, sliced) == pytest.approx(slicing, abs=PRINTED)
    found = mpo.truncation_error_bound(spectra, cap) / np.linalg.norm(w)
    assert found == pytest.approx(bound, abs=PRINTED)
    cut = mpo.to_matrix(mpo.decompose(w, shape.with_bonds(cap)))
    assert mpo.relative_error(w, cut) == pytest.approx(sequential, abs=PRINTED)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("balanced", [4.300, 0.03594, 0.01791, 0.03594, 4.300]),
        ("up", [6.078, 0.03605, 0.01068, 0.02297, 4.898]),
    ],
)
@pytest.mark.slow
def test_core_sizes_of_the_symmetric_gauge(name, sizes):
    """Entry sizes differ by a factor of 240 to 570: one Adam step size does not suit this gauge."""
    cores = mpo.canonicalize(anchor(name)[2], "symmetric")
    found = [float(np.sqrt((core**2).mean())) for core in cores]
    np.testing.assert_allclose(found, sizes, rtol=1e-3)
