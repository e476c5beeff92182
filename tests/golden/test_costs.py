"""Golden multiply-add counts of rebuilding, contracting and looking up."""

import pytest

from mpojax import mpo
from mpojax.mpo.embedding import lookup_multiply_adds, rebuild_multiply_adds
from tests.golden.matrices import BALANCED, SAME, UP

EMBEDDING = ((5, 10, 10, 10, 6), (2, 2, 4, 4, 2))


def contraction_multiply_adds(shape, strategy):
    """Multiply-adds of one token through cores that need no merging."""
    plan = mpo.plan(shape, tokens=1, training=False, prepared=True, strategy=strategy)
    assert plan.chosen.flops % 2 == 0
    return plan.chosen.flops // 2


def cheaper_chain(shape):
    """Multiply-adds of one token, one core after the other, in the cheaper direction."""
    names = ("chain_left_to_right", "chain_right_to_left")
    return min(contraction_multiply_adds(shape, name) for name in names)


@pytest.mark.parametrize(
    ("lists", "rebuild"),
    [
        (BALANCED, 227377152),
        (SAME, 237164800),
        (UP, 1361756160),
        (((4, 4, 4, 4, 3), (4, 4, 8, 6, 4)), 1285500928),
        (((4,) * 5, (4,) * 5), 538968064),
        (((4,) * 5, (4, 4, 8, 8, 4)), 3226468352),
        (EMBEDDING, 2614364800),
    ],
)
def test_rebuild_at_full_bonds(lists, rebuild):
    assert rebuild_multiply_adds(mpo.MPOShape(*lists)) == rebuild


@pytest.mark.parametrize(
    ("lists", "cap", "millions"),
    [
        (BALANCED, 131, 130.6),
        (BALANCED, 64, 50.6),
        (BALANCED, 32, 22.2),
        (BALANCED, 16, 10.3),
        (UP, 223, 791),
        (UP, 82, 235),
        (UP, 32, 82.1),
        (UP, 16, 39.5),
        (EMBEDDING, 240, 1307.3824),
    ],
)
def test_rebuild_under_a_cap(lists, cap, millions):
    found = rebuild_multiply_adds(mpo.MPOShape(*lists).with_bonds(cap)) / 1e6
    assert found == pytest.approx(millions, rel=5e-3)


@pytest.mark.parametrize(
    ("lists", "cap", "millions"),
    [
        (BALANCED, None, 95.6),
        (BALANCED, 131, 46.8),
        (BALANCED, 64, 13.0),
        (BALANCED, 32, 4.18),
        (BALANCED, 16, 1.53),
        (SAME, None, 129.9),
        (UP, None, 689),
        (UP, 223, 404),
        (UP, 82, 75.5),
        (UP, 32, 15.5),
        (UP, 16, 5.47),
        (((4, 4, 4, 4, 3), (4, 4, 8, 6, 4)), None, 498),
        (((4,) * 5, (4,) * 5), None, 302),
        (((4,) * 5, (4, 4, 8, 8, 4)), None, 1225),
    ],
)
def test_contraction_of_one_token(lists, cap, millions):
    shape = mpo.MPOShape(*lists)
    shape = shape if cap is None else shape.with_bonds(cap)
    assert cheaper_chain(shape) / 1e6 == pytest.approx(millions, rel=5e-3)


@pytest.mark.parametrize(("lists", "largest"), [(BALANCED, 8), (SAME, 7), (UP, 9)])
def test_largest_cap_at_which_contraction_needs_fewer_multiply_adds(lists, largest):
    shape = mpo.MPOShape(*lists)
    dense = contraction_multiply_adds(shape, "rebuild")
    assert dense == shape.num_dense_params
    winning = [cap for cap in range(1, 33) if cheaper_chain(shape.with_bonds(cap)) < dense]
    assert winning == list(range(1, largest + 1))


@pytest.mark.parametrize(("cap", "count"), [(480, 1914196), (240, 961876)])
def test_digit_look_up(cap, count):
    shape = mpo.MPOShape(*EMBEDDING).with_bonds(cap)
    assert lookup_multiply_adds(shape) == count
    tokens = rebuild_multiply_adds(shape) / count
    assert 1350 <= tokens <= 1400
