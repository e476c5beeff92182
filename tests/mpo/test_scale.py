"""Scale-freeness: w and a tiny or huge multiple of it give the same relative error, never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from mpojax.mpo import spectra as spectra_lib
from tests.mpo import helpers

SCALES = (1e-30, 1e-8, 1.0, 1e30)
LISTS = ((2, 3, 2), (3, 2, 2))
CUT = (4, 3)


def relative(w, cores):
    cores = [np.asarray(core, np.float64) for core in cores]
    assert all(np.isfinite(core).all() for core in cores)
    return mpo.relative_error(w, mpo.to_matrix(cores))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gauge", helpers.GAUGES)
def test_host(gauge, dtype):
    shape = mpo.MPOShape(*LISTS)
    w = helpers.random_matrix(shape, 1, dtype)
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    expected = relative(w, mpo.decompose(w, shape.with_bonds(CUT), gauge))
    for scale in SCALES:
        scaled = w * dtype(scale)
        full = mpo.decompose(scaled, shape, gauge)
        assert relative(scaled, full) <= tolerance
        for cut in (
            mpo.decompose(scaled, shape.with_bonds(CUT), gauge),
            mpo.truncate(full, CUT, gauge=gauge),
        ):
            assert relative(scaled, cut) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gauge", ["central", "symmetric"])
def test_jit(gauge, dtype, x64):
    shape = mpo.MPOShape(*LISTS)

    @jax.jit
    def both(w):
        full, spectra = mpo.decompose_with_spectra(w, shape, gauge)
        measures = jnp.stack(
            [
                mpo.truncation_error_bound(spectra, CUT),
                spectra_lib.local_errors(spectra, CUT).max(),
                mpo.entanglement_entropy(spectra[1]),
            ]
        )
        return full, mpo.truncate(full, CUT, gauge=gauge), measures

    w = helpers.random_matrix(shape, 1, dtype)
    tolerance = 5e-6 if dtype == np.float32 else 1e-12
    _, cut, measures = both(jnp.asarray(w))
    expected = relative(w, cut)
    for scale in SCALES:
        scaled = w * dtype(scale)
        full, cut, found = both(jnp.asarray(scaled))
        assert relative(scaled, full) <= tolerance
        assert relative(scaled, cut) == pytest.approx(expected, rel=1e-4)
        wanted = np.asarray(measures, np.float64) * [scale, scale, 1.0]
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", SCALES)
def test_measures_of_spectra(scale, dtype, x64):
    spectrum = np.array([3.0, 2.0, 1.0, 0.0])
    p = spectrum[:3] ** 2 / 14
    entropy = -(p * np.log(p)).sum()
    values = spectrum.astype(dtype) * dtype(scale)
    for spectra in ([values], [jnp.asarray(values)]):
        assert float(mpo.entanglement_entropy(spectra[0])) == pytest.approx(entropy, rel=1e-5)
        bound = float(mpo.truncation_error_bound(spectra, 1))
        assert bound == pytest.approx(scale * 5**0.5, rel=1e-5)
        assert float(spectra_lib.local_errors(spectra, 4)[0]) == 0.0
    assert mpo.bonds_for_tolerance([values], 0.3) == (2,)
    np.testing.assert_allclose(mpo.pool_spectra([[values], [values]])[0], spectrum / 7**0.5)


def test_zero_spectra_are_finite():
    for zeros in (np.zeros(3), jnp.zeros(3)):
        assert float(mpo.entanglement_entropy(zeros)) == 0
        assert float(mpo.truncation_error_bound([zeros], 1)) == 0
    assert mpo.bonds_for_tolerance([np.zeros(3)], 0.1) == (1,)
    assert not mpo.pool_spectra([[np.zeros(3)]])[0].any()
    assert mpo.relative_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert mpo.relative_error(np.zeros((2, 2)), np.ones((2, 2))) == float("inf")
