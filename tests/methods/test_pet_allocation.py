"""Budgets: what is dropped, in which order, at what cost; masks and smaller arrays."""

import numpy as np
import pytest

from mpojax import mpo
from mpojax.methods.pet import allocation
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet.groups import Chain, Entries, Module

# Chain of the specification: sites 12, 16, 32, 24, 16 with bonds 8, 16, 16, 8.
SITES = ((3, 4), (4, 4), (4, 8), (4, 6), (4, 4))
BONDS = (8, 16, 16, 8)
CHAIN = {"c": Chain(tuple("01234"))}
ENDS = (1, *BONDS, 1)
CHAIN_SIZES = {str(k): (ENDS[k], *SITES[k], ENDS[k + 1]) for k in range(5)}
LOW_RANK = {"l": Chain(("down", "up")), "b": Module(("bias",))}
SIZES = {"down": (6, 4), "up": (4, 5), "bias": (7,)}


def arrays(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def test_what_dropping_an_index_frees():
    whole = allocation.whole_masks(CHAIN, CHAIN_SIZES)
    total = allocation.cost(whole, CHAIN, CHAIN_SIZES)
    assert total == sum(np.prod(size) for size in CHAIN_SIZES.values())
    for bond, freed in enumerate((268, 640, 704, 400)):
        less = {"c": tuple(m.copy() for m in whole["c"])}
        less["c"][bond][3] = False
        assert total - allocation.cost(less, CHAIN, CHAIN_SIZES) == freed
    whole = allocation.whole_masks(LOW_RANK, SIZES)
    whole["l"][0][0] = False
    assert allocation.cost(whole, LOW_RANK, SIZES) == 3 * (6 + 5) + 7


def test_a_known_optimum_with_ties_by_order():
    scores = {"l": (np.float64([11, 22, 33, 44]),), "b": (np.float64(14),)}
    # Divided by cost: 1, 2, 3, 4 for the ranks (11 each), 2 for the bias (7): the rank comes first.
    found = allocation.allocate(scores, LOW_RANK, SIZES, 40)
    assert found["l"][0].tolist() == [False, True, True, True]
    assert found["b"][0]
    found = allocation.allocate(scores, LOW_RANK, SIZES, 39)
    assert found["l"][0].tolist() == [False, False, True, True]
    assert found["b"][0]
    raw = allocation.allocate(scores, LOW_RANK, SIZES, 40, by_cost=False)
    assert raw["l"][0].tolist() == [False, True, True, True]
    raw = allocation.allocate(scores, LOW_RANK, SIZES, 39, by_cost=False)
    assert not raw["b"][0]


def test_the_best_unit_that_fits_is_kept_where_nothing_would_be_left():
    """The ranks of 11 have the higher scores, but do not fit into 8."""
    scores = {"l": (np.float64([11, 22, 33, 44]),), "b": (np.float64(1),)}
    found = allocation.allocate(scores, LOW_RANK, SIZES, 8)
    assert found["b"][0]
    assert not found["l"][0].any()
    gone = {"l": found["l"][0][None] | True, "b": (np.bool_(False),)}
    with pytest.raises(ValueError, match="budget=8 is below every group that is left"):
        allocation.allocate(scores, LOW_RANK, SIZES, 8, gone)


@pytest.mark.parametrize("budget", [30, 400, 1000, 9000, 15_000])
def test_the_budget_is_met_from_below_and_nothing_returns(budget):
    rng = np.random.default_rng(budget)
    whole = allocation.whole_masks(CHAIN, CHAIN_SIZES)
    total = allocation.cost(whole, CHAIN, CHAIN_SIZES)
    budget, masks, before = min(budget, total), whole, total
    if budget < 100:
        with pytest.raises(ValueError, match="below the smallest group of the super-set, 100"):
            allocation.check_budget(budget, CHAIN, CHAIN_SIZES, whole)
        return
    for target in allocation.schedule(total, budget, 5):
        scores = {"c": tuple(rng.random(m.shape) for m in masks["c"])}
        kept = allocation.allocate(scores, CHAIN, CHAIN_SIZES, target, masks)
        cost = allocation.cost(kept, CHAIN, CHAIN_SIZES)
        assert cost <= target
        assert cost > target - 704 or cost == before
        for old, new in zip(masks["c"], kept["c"], strict=True):
            assert not (new & ~old).any()
        masks, before = kept, cost


def test_single_entries():
    spec = {"u": Entries(("a", "b"))}
    sizes = {"a": (2, 3), "b": (4,)}
    scores = {"u": (np.arange(6.0).reshape(2, 3), np.float64([2.5, 9, 2, 8]))}
    found = allocation.allocate(scores, spec, sizes, 5)
    # 2 of a comes before 2 of b: the first of equals goes first.
    assert found["u"][0].tolist() == [[False, False, False], [True, True, True]]
    assert found["u"][1].tolist() == [False, True, False, True]
    again = allocation.allocate(scores, spec, sizes, 3, found)
    assert allocation.cost(again, spec, sizes) == 3
    assert not again["u"][1][0]


def test_schedules():
    assert allocation.schedule(1000, 10, 2) == [100, 10]


def test_budgets_that_cannot_be_met():
    masks = allocation.whole_masks(LOW_RANK, SIZES)
    with pytest.raises(ValueError, match="budget=52 is more than the 51 parameters"):
        allocation.check_budget(52, LOW_RANK, SIZES, masks)
    with pytest.raises(ValueError, match="budget=6 is below the smallest group"):
        allocation.check_budget(6, LOW_RANK, SIZES, masks)
    scores = {"l": (np.full(4, np.nan),), "b": (np.float64(1),)}
    with pytest.raises(ValueError, match="scores of l are not finite"):
        allocation.allocate(scores, LOW_RANK, SIZES, 20)


def test_masked_and_compacted_are_the_same_matrix():
    params = arrays(CHAIN_SIZES)
    rng = np.random.default_rng(1)
    scores = {"c": tuple(rng.random(m) for m in BONDS)}
    masks = allocation.allocate(scores, CHAIN, CHAIN_SIZES, 9000)
    masked = pet_masks.apply_mask(params, masks, CHAIN, None)
    small = pet_masks.compact(params, masks, CHAIN)
    assert sum(a.size for a in small.values()) == allocation.cost(masks, CHAIN, CHAIN_SIZES)
    wide, narrow = (
        mpo.to_matrix(tuple(p[str(k)].astype(np.float64) for k in range(5)))
        for p in (masked, small)
    )
    np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-12 * np.abs(wide).max())
    entries = pet_masks.entry_masks(masks, CHAIN, CHAIN_SIZES)
    again = pet_masks.group_masks(entries, CHAIN)
    for one, other in zip(again["c"], masks["c"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropped_entries_go_back_to_their_reference():
    spec = {"u": Entries(("a",)), "b": Module(("bias",))}
    params = {"a": np.float32([1, 2, 3]), "bias": np.float32([4, 5]), "other": np.float32([6])}
    masks = {"u": (np.array([True, False, True]),), "b": (np.array(False),)}
    found = pet_masks.apply_mask(params, masks, spec, {"bias": np.float32([7, 8])})
    np.testing.assert_array_equal(found["a"], [1, 0, 3])
    np.testing.assert_array_equal(found["bias"], [7, 8])
    np.testing.assert_array_equal(found["other"], [6])
    indices, values = pet_masks.compact(params, masks, spec)["a"]
    assert indices.tolist() == [0, 2]
    assert values.tolist() == [1, 3]


def test_a_report_by_layer_and_module():
    spec = {
        "layers/0/query/adapter": Chain(("down", "up")),
        "embeddings/norm/bias": Module(("bias",)),
    }
    masks = {
        "layers/0/query/adapter": (np.array([True, False, False, True]),),
        "embeddings/norm/bias": (np.array(False),),
    }
    assert pet_masks.report(masks, spec, SIZES) == [
        {"layer": "0", "module": "query/adapter", "kept": 22, "total": 44},
        {"layer": "-", "module": "embeddings/norm/bias", "kept": 0, "total": 7},
    ]


@pytest.mark.parametrize("kept", [BONDS, (5, 9, 16, 3)])
def test_a_fixed_gauge(kept):
    rng = np.random.default_rng(0)
    params = {n: rng.standard_normal(s) for n, s in CHAIN_SIZES.items()}
    masks = {
        "c": tuple(rng.permutation(np.arange(d) < k) for d, k in zip(BONDS, kept, strict=True))
    }
    params = pet_masks.apply_mask(params, masks, CHAIN, None)
    grads = {n: rng.standard_normal(p.shape) for n, p in params.items()}
    new, left, (moved,) = pet_masks.regauge(params, masks, CHAIN, [(grads, False)])
    old_w, new_w = (mpo.to_matrix(tuple(p[str(k)] for k in range(5))) for p in (params, new))
    np.testing.assert_allclose(new_w, old_w, rtol=0, atol=1e-12 * np.abs(old_w).max())
    for mask, bond in zip(left["c"], kept, strict=True):
        assert mask[: mask.sum()].all()
        assert mask.sum() <= bond
    # Both sides of a bond are orthogonal in its components, which carry the singular values.
    right = new["4"][: left["c"][3].sum(), :, :, 0].reshape(left["c"][3].sum(), -1)
    gram = right @ right.T
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-10 * gram.max())
    # The law of gradients: <g, T> of a core stays what it was (for gradients inside of the bonds).
    whole = pet_masks.apply_mask(grads, masks, CHAIN, None)
    _, _, (moved,) = pet_masks.regauge(params, masks, CHAIN, [(whole, False)])
    for name in params:
        np.testing.assert_allclose(
            np.sum(moved[name] * new[name]),
            np.sum(whole[name] * params[name]),
            rtol=1e-9,
            atol=1e-8,
        )


def test_low_rank_in_its_gauge():
    rng = np.random.default_rng(0)
    params = {"down": rng.standard_normal((6, 4)), "up": rng.standard_normal((4, 5))}
    spec = {"l": LOW_RANK["l"]}
    masks = allocation.whole_masks(spec, SIZES)
    new, _, _ = pet_masks.regauge(params, masks, spec)
    np.testing.assert_allclose(
        new["down"] @ new["up"], params["down"] @ params["up"], rtol=0, atol=1e-13
    )
    values = np.linalg.svd(params["down"] @ params["up"], compute_uv=False)[:4]
    np.testing.assert_allclose(new["down"].T @ new["down"], np.diag(values), atol=1e-12)
    np.testing.assert_allclose(new["up"] @ new["up"].T, np.diag(values), atol=1e-12)
