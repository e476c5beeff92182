"""Properties of cutting bonds on random chains: bounds, gauges, rounding, recovery."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo import spectra as spectra_lib
from tests.mpo import helpers

METHODS = ("sequential", "slicing")


def error_of(w, cores):
    return float(np.linalg.norm(w - mpo.to_matrix(cores)))


@given(helpers.shapes(min_cores=2, cut=True), helpers.seeds(), st.sampled_from(METHODS))
def test_error_lies_between_its_bounds(shape, seed, method):
    w = helpers.random_matrix(shape, seed)
    full = mpo.decompose(w, shape.with_bonds(None))
    spectra = mpo.bond_spectra(full)
    cut = mpo.truncate(full, shape.bond_dims, method=method)
    assert tuple(core.shape for core in cut) == shape.core_shapes
    error, slack = error_of(w, cut), 1e-13 * np.linalg.norm(w)
    errors = spectra_lib.local_errors(spectra, shape.bond_dims)
    assert max(errors) - slack <= error
    assert error <= mpo.truncation_error_bound(spectra, shape.bond_dims) + slack
    if np.sum(np.array(shape.bond_dims) < shape.full_bond_dims) == 1:
        assert error == pytest.approx(max(errors), abs=slack)


@given(helpers.shapes(min_cores=2), helpers.seeds(), st.data())
def test_one_cut_bond_has_exactly_its_local_error(shape, seed, data):
    k = data.draw(st.integers(0, shape.num_cores - 2))
    bonds = list(shape.bond_dims)
    bonds[k] = data.draw(st.integers(1, bonds[k]))
    # A very small bond forces its neighbours below their full dimension.
    assume(shape.with_bonds(tuple(bonds)).bond_dims == tuple(bonds))
    w = helpers.random_matrix(shape, seed)
    full = mpo.decompose(w, shape)
    expected = spectra_lib.local_errors(mpo.bond_spectra(full), bonds)[k]
    cuts = [mpo.truncate(full, tuple(bonds), method=method) for method in METHODS]
    for cores in (*cuts, mpo.decompose(w, shape.with_bonds(tuple(bonds)))):
        assert error_of(w, cores) == pytest.approx(expected, abs=1e-12 * np.linalg.norm(w))


def sequential_losses(w, shape):
    """delta_k by a plain TT-SVD written out, and its result."""
    rest, bonds, lefts, losses = w, (1, *shape.bond_dims, 1), [], []
    rest = helpers.unfolding(w, shape, 1)
    for k in range(1, shape.num_cores):
        u, s, vt = np.linalg.svd(
            rest.reshape(bonds[k - 1] * shape.site_sizes[k - 1], -1), full_matrices=False
        )
        losses.append(np.linalg.norm(s[bonds[k] :]))
        lefts.append(u[:, : bonds[k]].reshape(shape.core_shapes[k - 1]))
        rest = s[: bonds[k], None] * vt[: bonds[k]]
    return losses, (*lefts, rest.reshape(shape.core_shapes[-1]))


@given(helpers.shapes(min_cores=2, cut=True), helpers.seeds())
def test_sequential_error_is_the_sum_of_what_each_step_discards(shape, seed):
    w = helpers.random_matrix(shape, seed)
    norm = np.linalg.norm(w)
    losses, plain = sequential_losses(w, shape)
    full = mpo.decompose(w, shape.with_bonds(None))
    eps = spectra_lib.local_errors(mpo.bond_spectra(full), shape.bond_dims)
    assert np.all(losses <= eps + 1e-13 * norm)
    for cores in (mpo.decompose(w, shape), mpo.truncate(full, shape.bond_dims)):
        error = error_of(w, cores)
        assert error**2 == pytest.approx(np.sum(np.square(losses)), abs=1e-11 * norm**2)
        kept = np.linalg.norm(mpo.to_matrix(cores)) ** 2
        assert kept + error**2 == pytest.approx(norm**2, rel=1e-11)
        # Singular values of Gaussian unfoldings are apart: the matrix itself is the same.
        difference = np.linalg.norm(mpo.to_matrix(cores) - helpers.rebuilt(plain))
        assert difference <= 1e-6 * norm


@given(helpers.shapes(min_cores=2, max_side=36, cut=True), helpers.seeds())
def test_slicing_is_the_same_in_all_aligned_gauges(shape, seed):
    w = helpers.random_matrix(shape, seed)
    full, cuts = shape.with_bonds(None), []
    for gauge in helpers.GAUGES:
        cores = mpo.slice_bonds(mpo.decompose(w, full, gauge), shape.bond_dims)
        assert tuple(core.shape for core in cores) == shape.core_shapes
        cuts.append(mpo.to_matrix(cores))
    # The product of projectors Pi_1 ... Pi_{n-1} W, from plain singular vectors.
    projected = w
    for k in range(shape.num_cores - 1, 0, -1):
        u = np.linalg.svd(helpers.unfolding(w, shape, k), full_matrices=False)[0]
        u = u[:, : shape.bond_dims[k - 1]]
        moved = u @ (u.T @ helpers.unfolding(projected, shape, k))
        projected = folded(moved, shape)
    for cut in cuts:
        assert np.linalg.norm(cut - projected) <= 1e-6 * np.linalg.norm(w)


def folded(unfolded, shape):
    """Inverse of `helpers.unfolding`."""
    n = shape.num_cores
    mixed = unfolded.reshape([f for pair in zip(*factor_lists(shape), strict=True) for f in pair])
    order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
    return mixed.transpose(order).reshape(shape.in_features, shape.out_features)


def factor_lists(shape):
    return shape.in_factors, shape.out_factors


@given(helpers.shapes(min_cores=2, cut=True), helpers.seeds(), st.sampled_from(helpers.GAUGES))
def test_truncating_equals_decomposing_at_the_same_bonds(shape, seed, gauge):
    w = helpers.random_matrix(shape, seed)
    direct = mpo.decompose(w, shape, gauge)
    rounded = mpo.truncate(mpo.decompose(w, shape.with_bonds(None)), shape.bond_dims, gauge=gauge)
    assert [core.shape for core in direct] == [core.shape for core in rounded]
    difference = mpo.to_matrix(direct) - mpo.to_matrix(rounded)
    assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(w)
    for one, other in zip(mpo.bond_spectra(direct), mpo.bond_spectra(rounded), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8 * np.linalg.norm(w))


@given(helpers.shapes(cut=True), helpers.seeds(), st.sampled_from(helpers.GAUGES))
def test_recanonicalising_any_cores_keeps_the_matrix(shape, seed, gauge):
    cores = helpers.random_cores(shape, seed)
    w = mpo.to_matrix(cores)
    norm = np.linalg.norm(w)
    restored, spectra = mpo.canonicalize_with_spectra(cores, gauge)
    assert [core.shape for core in restored] == [core.shape for core in cores]
    assert np.linalg.norm(mpo.to_matrix(restored) - w) <= 1e-13 * norm
    for k, spectrum in enumerate(spectra, start=1):
        values = np.linalg.svd(helpers.unfolding(w, shape, k), compute_uv=False)
        np.testing.assert_allclose(spectrum, values[: len(spectrum)], rtol=0, atol=1e-13 * norm)
        assert np.linalg.norm(values[len(spectrum) :]) <= 1e-13 * norm


@given(helpers.shapes(min_cores=2, max_cores=5), helpers.seeds())
def test_recanonicalising_perturbed_cores_returns_true_spectra(shape, seed):
    cores = mpo.decompose(helpers.random_matrix(shape, seed), shape)
    noise = helpers.random_cores(shape, seed + 1)
    moved = tuple(core + 0.1 * change for core, change in zip(cores, noise, strict=True))
    w = mpo.to_matrix(moved)
    for k, spectrum in enumerate(mpo.bond_spectra(moved), start=1):
        values = np.linalg.svd(helpers.unfolding(w, shape, k), compute_uv=False)
        np.testing.assert_allclose(spectrum, values, rtol=0, atol=1e-13 * np.linalg.norm(w))


@given(helpers.shapes(min_cores=2, max_cores=5, max_side=48, cut=True), helpers.seeds())
def test_planted_bonds_are_recovered(shape, seed):
    # Well-conditioned sites: orthonormal cores around a Gaussian centre.
    cores = mpo.canonicalize(helpers.random_cores(shape, seed))
    rng = np.random.default_rng(seed)
    flat = [core.reshape(-1, core.shape[-1]) for core in cores]
    assume(all(np.linalg.matrix_rank(core) == min(core.shape) for core in flat))
    cores = list(cores)
    cores[shape.central] = rng.standard_normal(cores[shape.central].shape)
    w = mpo.to_matrix(cores)
    worst = max(s[0] / s[-1] for s in mpo.bond_spectra(tuple(cores)))
    found = mpo.decompose(w, shape)
    assert mpo.relative_error(w, mpo.to_matrix(found)) <= 1e-14 * max(100, worst)
    full = mpo.decompose(w, shape.with_bonds(None))
    assert mpo.relative_error(w, mpo.to_matrix(mpo.truncate(full, shape.bond_dims))) <= 1e-12


@given(helpers.shapes(min_cores=2, max_cores=5), helpers.seeds(), st.floats(0, 0.95))
def test_bonds_for_tolerance_keep_their_promise(shape, seed, tolerance):
    w = helpers.random_matrix(shape, seed)
    full = mpo.decompose(w, shape)
    spectra = mpo.bond_spectra(full)
    bonds = mpo.bonds_for_tolerance(spectra, tolerance)
    allowed = tolerance * np.linalg.norm(w)
    assert mpo.truncation_error_bound(spectra, bonds) <= allowed * (1 + 1e-12)
    clipped = shape.with_bonds(bonds).bond_dims
    for method in METHODS:
        cut = mpo.truncate(full, clipped, method=method)
        assert error_of(w, cut) <= allowed + 1e-12 * np.linalg.norm(w)
    # Smallest: one less at any bond would exceed that bond's share.
    share = allowed / np.sqrt(len(spectra))
    for bond, spectrum in zip(bonds, spectra, strict=True):
        assert bond == 1 or np.linalg.norm(spectrum[bond - 1 :]) > share * (1 - 1e-12)
