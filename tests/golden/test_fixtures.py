"""Golden fixtures H, R, sin and low-bond: norms, spectra, entropies, errors, entries."""

import numpy as np
import pytest

from mpojax import mpo
from mpojax.mpo import spectra as spectra_lib
from tests.golden.matrices import decomposed, error_of, fixture, sliced

# One unit in the tenth printed decimal.
PRINTED = 1e-10

ALIGNED_GAUGES = ("left", "right", "central", "symmetric")


@pytest.mark.parametrize(
    ("name", "norm"),
    [("H", 13.741870968707), ("R", 48.145127840816), ("sin", 6.981207192562)],
)
def test_norm(name, norm):
    w, shape = fixture(name)
    assert np.linalg.norm(w) == pytest.approx(norm, abs=1e-12)
    assert np.linalg.norm(decomposed(name)[0][shape.central]) == pytest.approx(norm, abs=1e-12)


def test_h_entries_and_rank():
    w, shape = fixture("H")
    assert w[0, 0] == pytest.approx(-0.493062438057, abs=1e-12)
    assert w[47, 47] == pytest.approx(-0.175916749257, abs=1e-12)
    assert np.linalg.matrix_rank(w) == 48
    assert shape.bond_dims == (4, 24, 16, 4)
    assert [core.size for core in decomposed("H")[0]] == [16, 576, 2304, 256, 16]
    assert shape.num_params == 3168


@pytest.mark.parametrize(
    ("bond", "largest", "smallest", "entropy", "total"),
    [
        (1, (7.310815403, 6.9784158894, 6.6076085482), 6.559894573250, 1.3823450978, 27.4567344138),
        (
            2,
            (4.1793639770, 3.8350299052, 3.7041559957),
            1.568253264272,
            3.0476669483,
            65.0634020578,
        ),
        (
            3,
            (4.3869907153, 4.2263899366, 3.9739706233),
            2.442925822439,
            2.7190387585,
            54.2198596906,
        ),
        (
            4,
            (7.1696663684, 7.1117760882, 6.6602948639),
            6.519050167262,
            1.3829604095,
            27.4607874878,
        ),
    ],
)
def test_h_spectra(bond, largest, smallest, entropy, total):
    for spectra in (decomposed("H")[1], mpo.bond_spectra(decomposed("H")[0])):
        spectrum = spectra[bond - 1]
        np.testing.assert_allclose(spectrum[:3], largest, rtol=0, atol=PRINTED)
        assert spectrum[-1] == pytest.approx(smallest, abs=1e-12)
        assert mpo.entanglement_entropy(spectrum) == pytest.approx(entropy, abs=PRINTED)
        assert spectrum.sum() == pytest.approx(total, abs=PRINTED)


def test_entropy_uses_squared_values():
    """With values over their norm in place of squared ones bond 2 of H would leave its range."""
    spectrum = decomposed("H")[1][1]
    p = spectrum / np.linalg.norm(spectrum)
    assert -(p * np.log(p)).sum() == pytest.approx(7.5168, abs=1e-4)
    assert mpo.entanglement_entropy(spectrum) <= np.log(24)


def test_r_spectra():
    spectra = decomposed("R")[1]
    assert spectra[1][0] == pytest.approx(13.8517376829, abs=PRINTED)
    assert spectra[2][0] == pytest.approx(15.4902519104, abs=PRINTED)
    assert spectra[0].sum() == pytest.approx(96.2185466933, abs=PRINTED)


@pytest.mark.parametrize(("name", "total"), [("H", 27.4567344138), ("R", 96.2185466933)])
def test_first_core_of_symmetric_gauge_has_squared_norm_of_summed_spectrum(name, total):
    first = decomposed(name, "symmetric")[0][0]
    assert (first**2).sum() == pytest.approx(total, abs=PRINTED)


def test_sin_spectra():
    w, shape = fixture("sin")
    assert shape.bond_dims == (4, 4)
    assert [np.prod(core) for core in shape.core_shapes] == [16, 96, 16]
    relative = [spectrum / np.linalg.norm(w) for spectrum in decomposed("sin")[1]]
    np.testing.assert_allclose(
        relative,
        [
            [0.57750934, 0.54122937, 0.45418382, 0.40898751],
            [0.58100256, 0.50056459, 0.45960197, 0.44792538],
        ],
        rtol=0,
        atol=1e-8,
    )
    entropies = [mpo.entanglement_entropy(spectrum) for spectrum in decomposed("sin")[1]]
    np.testing.assert_allclose(entropies, [1.3506105470, 1.3640848308], rtol=0, atol=PRINTED)


# (fixture, bonds, parameters or None, slicing, sequential, sqrt(sum eps^2), max eps or None)
ERRORS = [
    ("H", (4, 8, 8, 4), 736, 10.8710791935, 10.6986464928, 12.4410705793, 9.3272962469),
    ("H", (4, 16, 16, 4), 2208, *[5.4575414158] * 4),
    ("H", (4, 20, 16, 4), 2688, *[3.4067527641] * 4),
    ("H", (4, 24, 8, 4), 1888, *[8.2329692020] * 4),
    ("H", (4, 16, 8, 4), 1312, 9.1381569959, 9.0948742201, 9.8775776477, 8.2329692020),
    ("R", (4, 8, 8, 4), 736, 38.3381550947, 37.7851974988, 43.8554869347, 33.1015554881),
    ("R", (4, 16, 8, 4), 1312, 31.9830329226, 31.7954353929, 34.5220393576, 28.7678771991),
    ("R", (4, 16, 16, 4), 2208, *[19.0835123303] * 4),
    ("sin", (3, 3), 78, 4.1009392516, 3.8656150433, 4.2344801795, None),
    ("sin", (2, 2), 40, 5.5468024273, 5.3958756889, 6.1870388908, None),
    ("sin", (1, 1), 14, 6.5820379535, 6.4613634483, 8.0478483019, None),
    ("low-bond", (1, 1), 27, 6.6800223683, 6.6793849288, 7.0411453377, None),
]


@pytest.mark.parametrize(
    ("name", "bonds", "params", "slicing", "sequential", "bound", "largest"), ERRORS
)
def test_truncation_errors(name, bonds, params, slicing, sequential, bound, largest):
    w, shape = fixture(name)
    cores, spectra = decomposed(name)
    assert shape.with_bonds(bonds).num_params == params
    for gauge in ALIGNED_GAUGES:
        assert error_of(w, sliced(name, bonds, gauge)) == pytest.approx(slicing, abs=PRINTED)
    by_slicing = mpo.truncate(cores, bonds, method="slicing")
    assert error_of(w, by_slicing) == pytest.approx(slicing, abs=PRINTED)
    assert error_of(w, mpo.truncate(cores, bonds)) == pytest.approx(sequential, abs=PRINTED)
    direct = mpo.decompose(w, shape.with_bonds(bonds))
    assert error_of(w, direct) == pytest.approx(sequential, abs=PRINTED)
    assert mpo.truncation_error_bound(spectra, bonds) == pytest.approx(bound, abs=PRINTED)
    if largest is not None:
        assert max(spectra_lib.local_errors(spectra, bonds)) == pytest.approx(largest, abs=PRINTED)


@pytest.mark.parametrize(("cap", "bonds"), [(8, (4, 8, 8, 4)), (16, (4, 16, 16, 4))])
def test_scalar_cap_is_the_capped_list(cap, bonds):
    assert fixture("H")[1].with_bonds(cap).bond_dims == bonds


@pytest.mark.parametrize(("bond", "relative"), [(3, 0.58742552), (2, 0.79453342), (1, 0.94282232)])
def test_sin_relative_errors(bond, relative):
    w, _ = fixture("sin")
    cut = mpo.to_matrix(sliced("sin", bond))
    assert mpo.relative_error(w, cut) == pytest.approx(relative, abs=1e-8)


@pytest.mark.parametrize("gauge", ALIGNED_GAUGES)
def test_sin_entries_of_the_sliced_matrix(gauge):
    cut = mpo.to_matrix(sliced("sin", 2, gauge))
    entries = [cut[0, 0], cut[5, 3], cut[11, 7]]
    np.testing.assert_allclose(entries, [0.11365389, 0.56696776, -0.87650150], rtol=0, atol=1e-8)


def test_low_bond_matrix_is_exact_at_its_bonds():
    w, shape = fixture("low-bond")
    spectra = mpo.bond_spectra(decomposed("low-bond")[0])
    assert [int((s > 1e-12 * s[0]).sum()) for s in spectra] == [2, 2]
    small = shape.with_bonds(2)
    assert small.num_params == 84
    for cores in (
        mpo.decompose(w, small),
        mpo.truncate(decomposed("low-bond")[0], 2),
        sliced("low-bond", 2),
    ):
        assert mpo.relative_error(w, mpo.to_matrix(cores)) <= 1e-13


def test_slicing_the_identity_gauge_drops_arbitrary_directions():
    w, _ = fixture("R")
    bonds = (4, 16, 16, 4)
    assert error_of(w, sliced("R", bonds, "identity")) == pytest.approx(28.4589456224, abs=PRINTED)
    # `truncate` re-canonicalises first and is safe from any gauge.
    safe = mpo.truncate(decomposed("R", "identity")[0], bonds, method="slicing")
    assert error_of(w, safe) == pytest.approx(19.0835123303, abs=PRINTED)
