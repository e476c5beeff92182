"""Choosing bonds of many matrices under one budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo import allocation
from tests.mpo import helpers


def spectra_of(shape, seed):
    rng = np.random.default_rng(seed)
    w = helpers.random_matrix(shape, seed) * rng.uniform(0.1, 10)
    return mpo.bond_spectra(mpo.decompose(w, shape))


def total(shapes, counts=None):
    counts = counts or [1] * len(shapes)
    return sum(count * shape.num_params for count, shape in zip(counts, shapes, strict=True))


def relative_squared_bound(spectra, bonds):
    return float(mpo.truncation_error_bound(spectra, bonds) ** 2 / np.sum(spectra[0] ** 2))


@given(
    st.lists(helpers.shapes(min_cores=1, max_cores=5, max_side=24), min_size=1, max_size=3),
    helpers.seeds(),
    st.floats(0, 1),
    st.floats(0, 1),
    st.data(),
)
def test_budget_is_kept_and_more_budget_never_cuts_more(shapes, seed, one, other, data):
    counts = [data.draw(st.integers(1, 4)) for _ in shapes]
    spectra = [spectra_of(shape, seed) for shape in shapes]
    least = total([shape.with_bonds(1) for shape in shapes], counts)
    most = total(shapes, counts)
    found = []
    for share in sorted((one, other)):
        budget = least + int(share * (most - least))
        chosen = mpo.allocate(shapes, spectra, budget, counts=counts)
        assert total(chosen, counts) <= budget
        for shape, given_shape in zip(chosen, shapes, strict=True):
            assert shape.in_factors == given_shape.in_factors
            pairs = zip(shape.bond_dims, given_shape.bond_dims, strict=True)
            assert all(1 <= bond <= full for bond, full in pairs)
        found.append(chosen)
    for small, large in zip(*found, strict=True):
        assert all(a <= b for a, b in zip(small.bond_dims, large.bond_dims, strict=True))


@given(helpers.seeds(), st.floats(0, 1))
def test_one_matrix_with_one_bond_equals_brute_force(seed, share):
    shape = mpo.MPOShape((3, 2), (2, 4))
    spectra = spectra_of(shape, seed)
    candidates = [shape.with_bonds(bond) for bond in range(1, shape.bond_dims[0] + 1)]
    low, high = candidates[0].num_params, candidates[-1].num_params
    budget = low + int(share * (high - low))
    fitting = [c for c in candidates if c.num_params <= budget]
    best = min(fitting, key=lambda c: relative_squared_bound(spectra, c.bond_dims))
    assert mpo.allocate([shape], [spectra], budget) == [best]


@given(helpers.seeds(), st.integers(0, 15))
def test_equal_matrices_with_one_bond_equal_brute_force(seed, cuts):
    """Every cut saves the same, so the cheapest cut first is optimal."""
    shape = mpo.MPOShape((3, 2), (2, 3))
    spectra = [spectra_of(shape, seed + k) for k in range(3)]
    step = shape.num_params - shape.with_bonds(shape.bond_dims[0] - 1).num_params
    budget = 3 * shape.num_params - cuts * step
    chosen = mpo.allocate([shape] * 3, spectra, budget)
    bonds = range(1, shape.bond_dims[0] + 1)

    def loss(choice):
        pairs = zip(spectra, choice, strict=True)
        return sum(relative_squared_bound(values, bond) for values, bond in pairs)

    fitting = [
        choice
        for choice in itertools.product(bonds, repeat=3)
        if total([shape.with_bonds(bond) for bond in choice]) <= budget
    ]
    assert loss([c.bond_dims[0] for c in chosen]) == pytest.approx(min(map(loss, fitting)))


def test_a_budget_that_holds_everything_cuts_nothing():
    shape = mpo.MPOShape((2, 3, 2), (3, 2, 2))
    assert mpo.allocate([shape], [spectra_of(shape, 0)], shape.num_params) == [shape]
    assert mpo.allocate([shape], [spectra_of(shape, 0)], 10**9) == [shape]


def test_smallest_budget_gives_bonds_of_one():
    shapes = [mpo.MPOShape((2, 3, 2), (3, 2, 2)), mpo.MPOShape.low_rank(6, 4)]
    spectra = [spectra_of(shape, k) for k, shape in enumerate(shapes)]
    smallest = [shape.with_bonds(1) for shape in shapes]
    assert mpo.allocate(shapes, spectra, total(smallest)) == smallest


@pytest.mark.parametrize(
    "shape",
    [
        mpo.MPOShape((4, 1, 4), (4, 1, 4)),
        mpo.MPOShape((2, 3, 1, 1, 2, 2), (3, 2, 1, 1, 2, 3)),
        mpo.MPOShape((1, 4, 1, 4, 1), (1, 4, 1, 4, 1)),
    ],
    ids=str,
)
def test_bonds_joined_by_a_site_of_size_one_shrink_together(shape):
    spectra = spectra_of(shape, 3)
    for budget in range(shape.with_bonds(1).num_params, shape.num_params + 1, 7):
        (chosen,) = mpo.allocate([shape], [spectra], budget)
        assert chosen.num_params <= budget
        # Nothing wasted: the next larger allocation would not fit.
        larger = mpo.allocate([shape], [spectra], budget + 60)[0]
        assert larger.num_params >= chosen.num_params


def test_planted_tail_goes_first():
    """A matrix of exact low bond among noise loses its empty tail before anything else."""
    shape = mpo.MPOShape((2, 3, 2), (3, 2, 2))
    small = shape.with_bonds(2)
    planted = mpo.bond_spectra(
        mpo.canonicalize(mpo.decompose(mpo.to_matrix(helpers.random_cores(small, 1)), shape))
    )
    noise = spectra_of(shape, 2)
    budget = shape.num_params + small.num_params
    assert mpo.allocate([shape, shape], [noise, planted], budget) == [shape, small]


def test_counts_and_weights():
    shape = mpo.MPOShape((3, 2), (2, 3))
    spectra = [spectra_of(shape, 5)] * 2
    budget = shape.num_params + shape.with_bonds(3).num_params
    important, other = mpo.allocate([shape] * 2, spectra, budget, weights=[100.0, 1.0])
    assert important.bond_dims[0] > other.bond_dims[0]
    # A pooled entry stands for `count` matrices: four alike entries and one entry of count four.
    pooled = mpo.pool_spectra([spectra[0]] * 4)
    alone = mpo.allocate([shape], [pooled], 4 * shape.with_bonds(4).num_params, counts=[4])
    assert alone == [shape.with_bonds(4)]
    apart = mpo.allocate([shape] * 4, [spectra[0]] * 4, 4 * shape.with_bonds(4).num_params)
    assert apart == [shape.with_bonds(4)] * 4


def test_pooled_spectra_sum_relative_squared_errors():
    shape = mpo.MPOShape((2, 3, 2), (3, 2, 2))
    stack = [spectra_of(shape, seed) for seed in range(4)]
    pooled = mpo.pool_spectra(stack)
    for bonds in [(3, 3), (1, 1), (6, 2)]:
        expected = sum(relative_squared_bound(spectra, bonds) for spectra in stack)
        assert mpo.truncation_error_bound(pooled, bonds) ** 2 == pytest.approx(expected)
    with_zero = mpo.pool_spectra([*stack, [np.zeros_like(s) for s in stack[0]]])
    np.testing.assert_allclose(with_zero[0], pooled[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 13}, r"budget of 13 parameters is below the 16 that all bonds at 1 need"),
        ({"counts": [1, 2]}, r"one entry for each matrix, got 1, 1, 2 and 2"),
        ({"weights": []}, r"one entry for each matrix, got 1, 1, 1 and 0"),
        ({"spectra": [[np.ones(6)]]}, r"spectra of lengths \(6,\) do not cover the bonds \(6, 4\)"),
        ({"spectra": [[np.ones(6), np.ones(3)]]}, r"lengths \(6, 3\) do not cover the bonds"),
    ],
)
def test_bad_requests(change, message):
    shape = mpo.MPOShape((2, 3, 2), (3, 2, 2))
    request = {"shapes": [shape], "spectra": [[np.ones(6), np.ones(4)]], "budget": 50}
    with pytest.raises(ValueError, match=message):
        mpo.allocate(**(request | change))


def test_a_chain_that_saves_nothing_is_kept_dense_and_its_saving_goes_to_others():
    square = mpo.MPOShape((2, 3, 2), (3, 2, 2))  # 144 dense, more as a chain
    important, other = spectra_of(square, 1), spectra_of(square, 2)
    budget = square.num_params + 60
    arguments = ([square] * 2, [important, other], budget)
    plain = mpo.allocate(*arguments, weights=[1e6, 1])
    kept = mpo.allocate_or_keep(*arguments, weights=[1e6, 1])
    assert plain[0].num_params > square.num_dense_params
    assert kept[0] is None
    assert plain[1].num_params < kept[1].num_params <= budget - square.num_dense_params


@given(helpers.seeds(), st.floats(0, 1))
def test_keeping_meets_the_budget_and_never_keeps_a_useless_chain(seed, share):
    shapes = [
        mpo.MPOShape((2, 3, 2), (3, 2, 2)),
        mpo.MPOShape((2, 2), (3, 4)),
        mpo.MPOShape.low_rank(9, 8),
    ]
    spectra = [spectra_of(shape, seed + k) for k, shape in enumerate(shapes)]
    counts, weights = [2, 1, 3], [1.0, 2.0, 5.0]
    least = total([shape.with_bonds(1) for shape in shapes], counts)
    budget = least + int(share * (total(shapes, counts) - least))
    chosen = mpo.allocate_or_keep(shapes, spectra, budget, counts, weights, loss="log")
    used = sum(
        count * (full.num_dense_params if shape is None else shape.num_params)
        for count, full, shape in zip(counts, shapes, chosen, strict=True)
    )
    assert used <= budget
    assert all(s is None or s.num_params < s.num_dense_params for s in chosen)
    dense = sum(c * s.num_dense_params for c, s in zip(counts, shapes, strict=True))
    if budget >= dense:
        assert chosen == [None] * 3


def test_the_logarithmic_loss_leaves_something_of_every_matrix():
    shape = mpo.MPOShape.low_rank(12, 12)
    spectra = [[np.ones(12)], [np.ones(12)]]
    budget = 10 * 24
    squared = mpo.allocate([shape] * 2, spectra, budget, weights=[1.0, 3.0])
    log = mpo.allocate([shape] * 2, spectra, budget, weights=[1.0, 3.0], loss="log")
    assert [s.bond_dims[0] for s in squared] == [1, 9]
    assert 1 < log[0].bond_dims[0] < log[1].bond_dims[0]


@pytest.mark.parametrize("loss", ["squared", "log"])
def test_losses_sum_to_the_loss_of_what_is_cut(loss):
    spectrum = np.array([3.0, 2, 1, 0])
    growth = allocation.losses(spectrum, loss)
    shares = spectrum**2 / 14
    for bond in range(1, 5):
        kept = shares[:bond].sum()
        expected = 1 - kept if loss == "squared" else -np.log(kept)
        assert growth[bond:].sum() == pytest.approx(expected)
    assert not allocation.losses(np.zeros(3), loss).any()


def test_weighted_pools_sum_weighted_errors():
    shape = mpo.MPOShape((2, 3, 2), (3, 2, 2))
    stack, weights = [spectra_of(shape, seed) for seed in range(3)], [1.0, 5.0, 0.5]
    pooled = mpo.pool_spectra(stack, weights)
    expected = sum(
        w * relative_squared_bound(s, (3, 2)) for w, s in zip(weights, stack, strict=True)
    )
    assert mpo.truncation_error_bound(pooled, (3, 2)) ** 2 == pytest.approx(expected)
