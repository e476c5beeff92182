"""Golden squeezing orders on fixtures H and R."""

import numpy as np
import pytest

from mpojax import mpo
from tests.golden.matrices import decomposed, fixture

NAMES = ("H", "R")
# Every pick of the golden orders saves 120 numbers: bond 2 with d_1 a_2 + a_3 d_3 = 24 + 96.
SAVED = 120

# (matrix, bond, new rank) in the order of relative squared cost.
RELATIVE = [
    ("R", 2, 23, 0.01085328),
    ("H", 2, 23, 0.01302389),
    ("R", 2, 22, 0.01331564),
    ("H", 2, 22, 0.01366286),
    ("R", 2, 21, 0.01488067),
    ("H", 2, 21, 0.01597773),
    ("H", 2, 20, 0.01879509),
    ("R", 2, 20, 0.01913114),
    ("H", 2, 19, 0.01973388),
    ("H", 2, 18, 0.02148694),
    ("R", 2, 19, 0.02282278),
    ("R", 2, 18, 0.02340332),
]
ABSOLUTE = [
    *[("H", 2, rank) for rank in range(23, 14, -1)],
    ("H", 3, 15),
    ("H", 2, 14),
    ("H", 2, 13),
]
ABSOLUTE_COSTS = [
    *(2.4594183, 2.5800803, 3.0172188, 3.5492470, 3.7265269, 4.0575728),
    *(4.9254315, 5.4692628, 5.9141958, 5.9678866, 6.1633202, 6.5481390),
]


def allocated(saved):
    """Bonds of H and R when `allocate` has to save that many numbers."""
    shapes = [fixture(name)[1] for name in NAMES]
    spectra = [decomposed(name)[1] for name in NAMES]
    budget = sum(shape.num_params for shape in shapes) - saved
    return dict(zip(NAMES, mpo.allocate(shapes, spectra, budget), strict=True))


def test_allocation_follows_the_golden_order():
    before = allocated(0)
    for step, (name, bond, rank, _) in enumerate(RELATIVE, start=1):
        now = allocated(SAVED * step)
        expected = list(before[name].bond_dims)
        expected[bond - 1] = rank
        assert now[name].bond_dims == tuple(expected)
        other = NAMES[1 - NAMES.index(name)]
        assert now[other] == before[other]
        before = now


@pytest.mark.parametrize(("name", "bond", "rank", "cost"), RELATIVE)
def test_relative_costs(name, bond, rank, cost):
    spectrum, shape = decomposed(name)[1][bond - 1], fixture(name)[1]
    norm = np.linalg.norm(fixture(name)[0])
    assert (spectrum[rank] / norm) ** 2 == pytest.approx(cost, abs=1e-8)
    bonds = list(shape.bond_dims)
    bonds[bond - 1] = rank
    larger = shape.with_bonds((*bonds[: bond - 1], rank + 1, *bonds[bond:]))
    assert larger.num_params - shape.with_bonds(tuple(bonds)).num_params == SAVED


def test_cost_per_number_of_the_first_pick():
    name, bond, rank, _ = RELATIVE[0]
    loss = decomposed(name)[1][bond - 1][rank] ** 2 / np.linalg.norm(fixture(name)[0]) ** 2
    assert loss / SAVED == pytest.approx(9.0443999e-05, abs=1e-12)


def test_absolute_order():
    """Absolute costs keep picking the matrix of the smaller norm."""
    costs = sorted(
        (value**2, name, bond, rank)
        for name in NAMES
        for bond in (2, 3)
        for rank, value in enumerate(decomposed(name)[1][bond - 1])
    )[: len(ABSOLUTE)]
    assert [cost[1:] for cost in costs] == ABSOLUTE
    np.testing.assert_allclose([cost[0] for cost in costs], ABSOLUTE_COSTS, rtol=0, atol=1e-7)
