"""Properties of decompositions on random chains (float64, host): exactness, spectra, gauges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo import decomposition
from tests.mpo import helpers


def assert_exact(w, cores, tolerance=1e-13):
    assert all(np.isfinite(core).all() for core in cores)
    rebuilt = mpo.to_matrix(cores)
    np.testing.assert_allclose(rebuilt, helpers.rebuilt(cores), rtol=0, atol=1e-12 * norm_of(w))
    assert np.linalg.norm(rebuilt - w) <= tolerance * norm_of(w)


def norm_of(w):
    return float(np.linalg.norm(w))


@given(helpers.shapes(), helpers.seeds(), st.sampled_from(helpers.GAUGES))
def test_full_bonds_are_exact_in_every_gauge(shape, seed, gauge):
    w = helpers.random_matrix(shape, seed)
    cores = mpo.decompose(w, shape, gauge)
    assert tuple(core.shape for core in cores) == shape.core_shapes
    assert_exact(w, cores)
    single = w.astype(np.float32)
    cores = mpo.decompose(single, shape, gauge)
    assert all(core.dtype == np.float32 for core in cores)
    assert mpo.relative_error(single, mpo.to_matrix(cores)) <= 2e-6


@given(helpers.shapes(), helpers.seeds(), st.sampled_from([np.float32, np.float64]))
def test_identity_gauge_is_bitwise_exact_where_it_exists(shape, seed, dtype):
    w = helpers.random_matrix(shape, seed, dtype)
    if not helpers.identity_is_possible(shape):
        with pytest.raises(ValueError, match="identity gauge needs bonds"):
            mpo.decompose(w, shape, "identity")
        return
    for cores in (mpo.decompose(w, shape, "identity"), decomposition.identity_cores(w, shape)):
        assert tuple(core.shape for core in cores) == shape.core_shapes
        np.testing.assert_array_equal(mpo.to_matrix(cores), w)


@given(helpers.shapes(min_cores=2), helpers.seeds(), st.sampled_from(helpers.GAUGES))
def test_spectra_are_singular_values_of_the_unfoldings(shape, seed, gauge):
    w = helpers.random_matrix(shape, seed)
    cores, quick = mpo.decompose_with_spectra(w, shape, gauge)
    exact = mpo.bond_spectra(cores)
    for k in range(1, shape.num_cores):
        expected = np.linalg.svd(helpers.unfolding(w, shape, k), compute_uv=False)
        assert len(exact[k - 1]) == len(quick[k - 1]) == shape.bond_dims[k - 1]
        np.testing.assert_allclose(exact[k - 1], expected, rtol=0, atol=1e-13 * norm_of(w))
        np.testing.assert_allclose(quick[k - 1], expected, rtol=0, atol=3e-8 * norm_of(w))
        assert np.sum(exact[k - 1] ** 2) == pytest.approx(norm_of(w) ** 2, rel=1e-12)
        entropy = mpo.entanglement_entropy(exact[k - 1])
        assert -1e-12 <= entropy <= math.log(shape.bond_dims[k - 1]) + 1e-12


@given(helpers.shapes(min_cores=2), helpers.seeds())
def test_transposing_swaps_the_lists_and_keeps_the_spectra(shape, seed):
    w = helpers.random_matrix(shape, seed)
    swapped = mpo.MPOShape(shape.out_factors, shape.in_factors)
    assert swapped.bond_dims == shape.bond_dims
    assert swapped.num_params == shape.num_params
    spectra = mpo.bond_spectra(mpo.decompose(w, shape))
    transposed = mpo.bond_spectra(mpo.decompose(w.T, swapped))
    for one, other in zip(spectra, transposed, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * norm_of(w))


@given(helpers.shapes(min_cores=2), helpers.seeds(), st.sampled_from(helpers.GAUGES))
def test_gram_matrices_at_every_bond(shape, seed, gauge):
    w = helpers.random_matrix(shape, seed)
    cores = mpo.decompose(w, shape, gauge)
    for k, spectrum in enumerate(mpo.bond_spectra(cores), start=1):
        left, right = helpers.left_block(cores, k), helpers.right_block(cores, k)
        ones, squares = np.eye(len(spectrum)), np.diag(spectrum**2)
        expected = {
            "left": (ones, squares),
            "right": (squares, ones),
            "central": (ones, squares) if k <= shape.central else (squares, ones),
            "symmetric": (np.diag(spectrum), np.diag(spectrum)),
        }[gauge]
        for found, wanted in zip((left.T @ left, right @ right.T), expected, strict=True):
            tolerance = 1e-11 * max(1.0, abs(wanted).max())
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@given(helpers.shapes(), helpers.seeds())
def test_central_core_carries_the_norm(shape, seed):
    w = helpers.random_matrix(shape, seed)
    centre = mpo.decompose(w, shape)[shape.central]
    assert norm_of(centre) == pytest.approx(norm_of(w), rel=1e-13)


@given(helpers.shapes(min_cores=2, max_cores=5), helpers.seeds())
def test_change_of_the_central_core_moves_the_matrix_by_its_norm(shape, seed):
    cores = list(mpo.decompose(helpers.random_matrix(shape, seed), shape))
    change = np.random.default_rng(seed).standard_normal(cores[shape.central].shape)
    before = mpo.to_matrix(cores)
    cores[shape.central] = cores[shape.central] + change
    assert norm_of(mpo.to_matrix(cores) - before) == pytest.approx(norm_of(change), rel=1e-11)


@given(helpers.shapes(min_cores=2), helpers.seeds(), st.sampled_from([1e-6, 1e-2, 9.0, 1e5]))
def test_symmetric_gauge_scales_only_its_outer_cores(shape, seed, scale):
    w = helpers.random_matrix(shape, seed)
    cores = mpo.decompose(w, shape, "symmetric")
    scaled = mpo.decompose(scale * w, shape, "symmetric")
    assert norm_of(cores[0]) ** 2 == pytest.approx(np.sum(mpo.bond_spectra(cores)[0]), rel=1e-11)
    for k, (core, other) in enumerate(zip(cores, scaled, strict=True)):
        factor = math.sqrt(scale) if k in (0, shape.num_cores - 1) else 1.0
        assert norm_of(other) == pytest.approx(factor * norm_of(core), rel=1e-9)


@given(helpers.shapes(cut=True))
def test_counts_agree_with_leaf_sizes(shape):
    cores = helpers.random_cores(shape)
    assert sum(core.size for core in cores) == shape.num_params
    assert shape.num_central_params + shape.num_auxiliary_params == shape.num_params
    bonds = (1, *shape.bond_dims, 1)
    for k, size in enumerate(shape.site_sizes):
        assert bonds[k + 1] <= bonds[k] * size
        assert bonds[k] <= bonds[k + 1] * size


# With two cores the first one is central and holds less or more than the matrix.
ODD_LISTS = [factors for factors in helpers.ALL_FACTOR_LISTS if len(factors) % 2]


@pytest.mark.parametrize("factors", ODD_LISTS, ids=str)
def test_central_core_holds_the_whole_matrix_at_full_bonds(factors):
    shape = mpo.MPOShape(factors, factors)
    assert shape.num_central_params == shape.in_features * shape.out_features
    assert helpers.identity_is_possible(shape)


STRUCTURED = {
    "zero": lambda rows, columns: np.zeros((rows, columns)),
    "one entry": lambda rows, columns: np.eye(rows, columns) * (np.arange(columns) == 0),
    "identity": np.eye,
    "rank one": lambda rows, columns: np.outer(
        np.random.default_rng(0).standard_normal(rows), np.cos(np.arange(columns))
    ),
    "constant": lambda rows, columns: np.full((rows, columns), 3.0),
    "duplicated rows": lambda rows, columns: np.ones((rows, 1)) * np.sin(np.arange(columns) + 1),
}


@given(
    helpers.shapes(),
    st.sampled_from(sorted(STRUCTURED)),
    st.sampled_from(helpers.GAUGES),
)
def test_structured_inputs_are_exact_and_finite(shape, name, gauge):
    w = STRUCTURED[name](shape.in_features, shape.out_features)
    cores, spectra = mpo.decompose_with_spectra(w, shape, gauge)
    assert all(np.isfinite(spectrum).all() for spectrum in spectra)
    assert_exact(w, cores, 1e-12)
    cut = mpo.truncate(cores, 1, gauge=gauge)
    assert all(np.isfinite(core).all() for core in cut)


@given(helpers.shapes(min_cores=1, max_cores=5), helpers.seeds(), st.data())
def test_padded_matrices_are_exact_and_padding_stays_zero(shape, seed, data):
    rows = data.draw(st.integers(1, shape.padded_in_features))
    columns = data.draw(st.integers(1, shape.padded_out_features))
    padded = mpo.MPOShape(shape.in_factors, shape.out_factors, None, rows, columns)
    w = helpers.random_matrix(padded, seed)
    for gauge in helpers.GAUGES:
        cores = mpo.decompose(w, padded, gauge)
        rebuilt = mpo.to_matrix(cores, padded)
        assert rebuilt.shape == (rows, columns)
        assert norm_of(rebuilt - w) <= 1e-12 * norm_of(w)
        whole = mpo.to_matrix(cores)
        assert whole.shape == (shape.in_features, shape.out_features)
        assert norm_of(whole[rows:]) + norm_of(whole[:, columns:]) <= 1e-12 * norm_of(w)
