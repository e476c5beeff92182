"""Cheapest cuts, bond grids, and gauge maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpojax import mpo
from tests.golden.matrices import decomposed, fixture
from tests.golden.test_squeezing_order import ABSOLUTE, ABSOLUTE_COSTS, RELATIVE

SMALL = mpo.MPOShape((2, 3, 2), (3, 2, 2), (3, 2))
ONE_BY_ONE = mpo.BondGrid(multiple=1, per_bond=True)


def golden_picks(measure, count=12):
    """(matrix, bond, bond dimension, cost, parameters saved) of successive cuts, of bonds 2, 3."""
    names = ("H", "R")
    shapes = {name: fixture(name)[1] for name in names}
    spectra = {name: decomposed(name)[1] for name in names}
    picks = []
    for _ in range(count):
        # Bonds 1 and 4 are no candidates of the golden orders: their cuts cost far more.
        cut = mpo.cheapest_cut(
            {name: [name] for name in names}, shapes, spectra, ONE_BY_ONE, measure=measure
        )
        picks.append((cut.group, cut.bond, cut.bond_dim, cut.cost, cut.saved))
        shapes |= cut.shapes
    return picks


def test_relative_order_is_the_golden_one():
    picks = golden_picks("relative")
    assert [pick[:3] for pick in picks] == [golden[:3] for golden in RELATIVE]
    np.testing.assert_allclose([p[3] for p in picks], [g[3] for g in RELATIVE], atol=1e-8)


def test_absolute_order_is_the_golden_one():
    picks = golden_picks("absolute")
    assert [pick[:3] for pick in picks] == ABSOLUTE
    np.testing.assert_allclose([p[3] for p in picks], ABSOLUTE_COSTS, atol=1e-7)


def test_order_per_number_saved_is_the_golden_one():
    picks = golden_picks("per_number")
    assert [pick[:3] for pick in picks] == [golden[:3] for golden in RELATIVE]
    np.testing.assert_allclose(picks[0][3], 9.0443999e-05, rtol=1e-7)
    assert {pick[4] for pick in picks} == {120}


@pytest.mark.parametrize(
    ("grid", "bonds"),
    [
        (mpo.BondGrid(multiple=8), [24, 16, 8, 1]),
        (mpo.BondGrid(multiple=8, minimum=16), [24, 16]),
        (mpo.BondGrid(multiple=4, factor=0.5), [12, 4, 1]),
        (mpo.BondGrid(multiple=1), list(range(26, 0, -1))),
    ],
)
def test_a_grid_goes_down_to_its_minimum(grid, bonds):
    bond, seen = 27, []
    while (bond := grid.below(bond)) is not None:
        seen.append(bond)
    assert seen == bonds


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"multiple": 0}, "multiple=0"), ({"factor": 1.5}, "factor=1.5"), ({"minimum": -1}, "minim")],
)
def test_a_bad_grid_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        mpo.BondGrid(**fields)


def test_a_cap_lowers_all_bonds_of_all_members():
    shapes = {name: fixture(name)[1] for name in ("H", "R")}
    spectra = {name: decomposed(name)[1] for name in shapes}
    cut = mpo.cheapest_cut({"both": ["H", "R"]}, shapes, spectra, mpo.BondGrid(multiple=8))
    assert cut.bond_dim == 16
    assert {shape.bond_dims for shape in cut.shapes.values()} == {(4, 16, 16, 4)}
    expected = sum(np.sum(s[1][16:] ** 2) / np.sum(s[0] ** 2) for s in spectra.values())
    assert cut.cost == pytest.approx(expected, rel=1e-12)


def test_weights_and_bans_change_the_choice():
    shapes = {name: fixture(name)[1] for name in ("H", "R")}
    spectra = {name: decomposed(name)[1] for name in shapes}
    groups = {name: [name] for name in shapes}
    arguments = (groups, shapes, spectra, ONE_BY_ONE)
    assert mpo.cheapest_cut(*arguments).group == "R"
    assert mpo.cheapest_cut(*arguments, weights={"R": 2.0}).group == "H"
    assert mpo.cheapest_cut(*arguments, excluded=["R"]).group == "H"
    assert mpo.cheapest_cut(*arguments, excluded=["R", "H"]) is None


def test_stale_spectra_are_refused():
    shape, spectra = fixture("H")[1], decomposed("H")[1]
    short = [s[:3] for s in spectra]
    with pytest.raises(ValueError, match="stale"):
        mpo.cheapest_cut({"H": ["H"]}, {"H": shape}, {"H": short}, ONE_BY_ONE)


def test_a_planted_low_bond_is_emptied_first_at_no_cost():
    shape = fixture("R")[1]
    low = mpo.decompose(fixture("R")[0], shape.with_bonds(8))
    w = {"noise": fixture("H")[0], "planted": np.asarray(mpo.to_matrix(low, shape.with_bonds(8)))}
    spectra = {name: mpo.decompose_with_spectra(matrix, shape)[1] for name, matrix in w.items()}
    shapes = dict.fromkeys(w, shape)
    for bond in (16, 8):
        groups = {name: [name] for name in w}
        cut = mpo.cheapest_cut(groups, shapes, spectra, mpo.BondGrid(multiple=8))
        assert (cut.group, cut.bond_dim) == ("planted", bond)
        assert cut.cost < 1e-12
        shapes |= cut.shapes


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_gradients_follow_the_gauge(seed):
    """<g, dT> is the same in both gauges for every change dT that follows the maps."""
    rng = np.random.default_rng(seed)
    cores = [rng.standard_normal(core) for core in SMALL.core_shapes]
    new = mpo.canonicalize(cores)
    maps = mpo.gauge_maps(cores, new)
    gradients = [rng.standard_normal(core.shape) for core in cores]
    moved = mpo.transform_gradients(gradients, maps)
    for k, (core, gradient) in enumerate(zip(cores, gradients, strict=True)):
        left, right = maps[k][1], maps[k + 1][0]
        rebuilt = np.einsum("xa,aijb,by->xijy", left, core, right)
        np.testing.assert_allclose(rebuilt, new[k], atol=1e-9)
        change = rng.standard_normal(core.shape)
        image = np.einsum("xa,aijb,by->xijy", left, change, right)
        assert np.sum(moved[k] * image) == pytest.approx(np.sum(gradient * change), rel=1e-8)


def test_second_moments_stay_non_negative_and_frozen_cores_have_none():
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal(core) for core in SMALL.core_shapes]
    maps = mpo.gauge_maps(cores, mpo.canonicalize(cores))
    moments = [rng.random(cores[0].shape), None, rng.random(cores[2].shape)]
    moved = mpo.transform_gradients(moments, maps, squared=True)
    assert moved[1] is None
    assert min(moved[0].min(), moved[2].min()) >= 0
    # An orthogonal map keeps the total: here the maps of an unchanged chain.
    same = mpo.transform_gradients(moments, mpo.gauge_maps(cores, cores), squared=True)
    np.testing.assert_allclose(same[0], moments[0], atol=1e-9)


def test_masking_the_tails_equals_slicing_them():
    w, shape = fixture("H")[0], fixture("H")[1]
    cores = mpo.decompose(w, shape)
    bonds = (4, 16, 8, 4)
    ends = (1, *bonds, 1)
    masked = []
    for k, core in enumerate(cores):
        kept = np.zeros(core.shape)
        kept[: ends[k], :, :, : ends[k + 1]] = 1.0
        masked.append(core * kept)
    sliced = mpo.slice_bonds(cores, bonds)
    np.testing.assert_allclose(
        mpo.to_matrix(tuple(masked), shape),
        mpo.to_matrix(sliced, shape.with_bonds(bonds)),
        atol=1e-12,
    )
