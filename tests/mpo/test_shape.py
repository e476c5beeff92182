"""Shapes: factor lists, automatic factorisation, clipping, round trips, refusals."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo import factors
from tests.mpo import helpers


@given(helpers.shapes(cut=True))
def test_dictionary_round_trip_through_json(shape):
    assert mpo.MPOShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape
    assert hash(mpo.MPOShape.from_dict(shape.to_dict())) == hash(shape)


def test_dictionary_keeps_true_sizes():
    shape = mpo.MPOShape((2, 3), (4, 2), (3,), 5, 7)
    assert mpo.MPOShape.from_dict(shape.to_dict()) == shape
    assert (shape.in_features, shape.padded_in_features) == (5, 6)
    assert (shape.out_features, shape.padded_out_features) == (7, 8)
    assert shape.is_padded
    assert shape.num_dense_params == 35


@given(helpers.shapes(min_cores=2), st.integers(1, 40))
def test_a_cap_needs_no_clipping(shape, cap):
    bonds = shape.with_bonds(cap).bond_dims
    assert bonds == tuple(min(cap, full) for full in shape.full_bond_dims)
    assert shape.with_bonds(cap).with_bonds(None) == shape
    assert shape.is_full


def test_bond_lists_are_clipped_to_what_neighbours_can_carry():
    shape = mpo.MPOShape((2, 2, 2, 2), (2, 2, 2, 2))
    assert shape.full_bond_dims == (4, 16, 4)
    assert shape.with_bonds((1, 16, 4)).bond_dims == (1, 4, 4)
    assert shape.with_bonds((4, 16, 1)).bond_dims == (4, 4, 1)
    assert shape.with_bonds((4, 1, 4)).bond_dims == (4, 1, 4)


def test_shape_is_frozen_and_hashable():
    shape = mpo.MPOShape([2, 3], [3, 2])
    assert shape == mpo.MPOShape((2, 3), (3, 2), (6,))
    assert {shape: 1}[mpo.MPOShape((2, 3), (3, 2))] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.bonds = (1,)


@pytest.mark.parametrize(("n", "central"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)])
def test_central_index(n, central):
    assert mpo.MPOShape((2,) * n, (2,) * n).central == central


@pytest.mark.parametrize(("rank", "bond"), [(None, 4), (3, 3)])
def test_low_rank(rank, bond):
    shape = mpo.MPOShape.low_rank(6, 4, rank)
    assert shape.core_shapes == ((1, 6, 1, bond), (bond, 1, 4, 1))
    assert shape.num_params == bond * 10


@given(st.integers(1, 5000), st.integers(1, 7))
def test_balanced_factors_multiply_to_the_size(size, n):
    found = factors.balanced_factors(size, n)
    assert len(found) == n
    assert math.prod(found) == size
    assert list(found) == sorted(found)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 6))
def test_balanced_shapes_hold_the_matrix(rows, columns, n):
    shape = mpo.MPOShape.balanced(rows, columns, n)
    assert shape.num_cores == n
    assert (shape.in_features, shape.out_features) == (rows, columns)
    assert rows <= shape.padded_in_features <= rows * 1.02 + 1
    assert columns <= shape.padded_out_features <= columns * 1.02 + 1


@pytest.mark.parametrize(
    ("sizes", "share"),
    [((768, 768), 0.12), ((768, 3072), 0.08), ((384, 1536), 0.12), ((30522, 768), 0.06)],
)
def test_balanced_shapes_of_transformers(sizes, share):
    shape = mpo.MPOShape.balanced(*sizes)
    assert shape.num_auxiliary_params / shape.num_params <= share
    assert shape.num_central_params == shape.padded_in_features * shape.padded_out_features
    assert helpers.identity_is_possible(shape)


def test_sizes_without_useful_factors_are_padded():
    shape = mpo.MPOShape.balanced(30522, 768)
    assert 30522 < shape.padded_in_features <= 30522 * 1.02
    assert max(shape.in_factors) <= 16
    assert not mpo.MPOShape.balanced(768, 3072).is_padded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), (4,)), r"in_factors \(2, 3\) and out_factors \(4,\) must have the same length"),
        (((2, 0), (4, 1)), r"in_factors must be .* at least 1, got \(2, 0\)"),
        (((), ()), r"in_factors must be a non-empty list"),
        (((2, 3), (4, -1)), r"out_factors must be .* got \(4, -1\)"),
        (((2, 3), (4, 1), None, 7), r"in_features=7 does not fit in_factors \(2, 3\)"),
        (((2, 3), (4, 1), None, 0), r"in_features=0 does not fit"),
        (((2, 3), (4, 1), None, 6, 5), r"out_features=5 does not fit out_factors \(4, 1\)"),
        (((2, 3), (4, 1), (4,)), r"bond 1 is 4, outside 1..3"),
        (((2, 3), (4, 1), (0,)), r"bond 1 is 0, outside 1..3"),
        (((2, 3), (4, 1), (1, 1)), r"2 entries; a chain of 2 cores has 1 inner bonds"),
    ],
)
def test_bad_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        mpo.MPOShape(*arguments)


@pytest.mark.parametrize("cap", [0, -3])
def test_bad_cap(cap):
    with pytest.raises(ValueError, match=f"bond cap={cap} must be an integer"):
        mpo.MPOShape((2, 3), (3, 2)).with_bonds(cap)


@pytest.mark.parametrize("cap", [np.int64(3), np.int32(3)])
def test_numpy_integers_are_integers(cap):
    shape = mpo.MPOShape(np.array([2, 3]), (np.int64(3), 2))
    assert shape.with_bonds(cap).bond_dims == shape.with_bonds(np.array([3])).bond_dims == (3,)
    assert all(type(factor) is int for factor in (*shape.in_factors, *shape.out_factors))
    cores = helpers.random_cores(shape)
    assert mpo.truncate(cores, cap)[0].shape == (1, 2, 3, 3)
    spectra = mpo.bond_spectra(cores)
    assert mpo.truncation_error_bound(spectra, cap) == mpo.truncation_error_bound(spectra, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mpo.MPOShape((2.5, 3), (3, 2)),
        lambda: mpo.MPOShape((2, 3), (3, 2), (2.7,)),
        lambda: mpo.MPOShape((2, 3), (3, 2)).with_bonds(2.7),
    ],
    ids=["factor", "bond", "cap"],
)
def test_fractions_are_not_rounded_silently(make):
    with pytest.raises(TypeError):
        make()


def test_unknown_fields_are_named():
    fields = mpo.MPOShape((2, 3), (3, 2)).to_dict() | {"rank": 3}
    with pytest.raises(ValueError, match="MPOShape: unknown 'rank'"):
        mpo.MPOShape.from_dict(fields)


def test_many_cores_take_no_longer_than_their_factors():
    shape = mpo.MPOShape.balanced(64, 96, 64)
    assert shape.num_cores == 64
    assert (shape.padded_in_features, shape.padded_out_features) == (64, 96)
