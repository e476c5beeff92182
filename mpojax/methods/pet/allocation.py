"""Choice of the groups of a super-set to prune, so that the rest meets a budget of parameters."""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from mpojax.methods.pet.groups import Entries, Masks, Sizes, Spec


def whole_masks(spec: Spec, sizes: Sizes) -> Masks:
    """Masks of which nothing is dropped."""
    return {
        name: tuple(np.ones(shape, bool) for shape in unit.mask_shapes(sizes))
        for name, unit in spec.items()
    }


def cost(masks: Mapping[str, Sequence[np.ndarray]], spec: Spec, sizes: Sizes) -> int:
    """Parameters that are left."""
    return sum(unit.cost(masks[name], sizes) for name, unit in spec.items())


def check_budget(budget: int, spec: Spec, sizes: Sizes, masks: Masks) -> None:
    """Raises ValueError for a budget above what there is, or below the smallest group."""
    whole = cost(masks, spec, sizes)
    if budget > whole:
        raise ValueError(
            f"budget={budget} is more than the {whole} parameters of the super-set: nothing would "
            "be dropped. Lower it, or raise the ranks."
        )
    smallest = _smallest(spec, sizes)
    if budget < smallest:
        raise ValueError(
            f"budget={budget} is below the smallest group of the super-set, {smallest} parameters: "
            "nothing would be left. Raise it."
        )


def _smallest(spec: Spec, sizes: Sizes) -> int:
    return min(unit.smallest(sizes) for unit in spec.values())


def schedule(whole: int, budget: int, rounds: int) -> list[int]:
    """Budgets of the rounds, falling geometrically from `whole` parameters to `budget`."""
    # b_t = whole (budget / whole)^(t / rounds): every round drops the same fraction.
    falling = [round(whole * (budget / whole) ** (t / rounds)) for t in range(1, rounds)]
    return [*falling, budget]


def allocate(
    scores: Mapping[str, Sequence[np.ndarray]],
    spec: Spec,
    sizes: Sizes,
    budget: int,
    masks: Masks | None = None,
    *,
    by_cost: bool = True,
) -> Masks:
    """Drops groups by ascending score until what is left costs at most the budget.

    Over all units together, one group at a time; what dropping it frees depends on what is left of
    its neighbours and is computed anew after each. A bond keeps its last index until all bonds of
    its chain are down to one; then the chain goes as a whole. Equal scores go by the order of
    `spec`, then of bonds and indices. The cost ends less than the largest dropped group below the
    budget; where nothing would be left, the best unit that fits alone is kept at its least.

    Args:
      scores: {unit: arrays}.
      spec: {name: unit}.
      sizes: {array path: shape}.
      budget: parameters that may be left.
      masks: what is left so far; a dropped group never returns. None: everything.
      by_cost: whether scores are divided by the parameters that their group frees.

    Raises:
      ValueError: a budget below the smallest group that is left; scores that are not finite.
    """
    masks = whole_masks(spec, sizes) if masks is None else masks
    for name in spec:
        if not all(np.isfinite(s[m]).all() for s, m in zip(scores[name], masks[name], strict=True)):
            raise ValueError(f"the scores of {name} are not finite; look at the loss.")
    if budget < _smallest(spec, sizes):
        check_budget(budget, spec, sizes, masks)
    if all(isinstance(unit, Entries) for unit in spec.values()):
        return _drop_entries(scores, masks, budget)
    kept = _drop_one_by_one(scores, spec, sizes, budget, masks, by_cost)
    if cost(kept, spec, sizes):
        return kept
    return _best_alone(scores, spec, sizes, budget, masks, by_cost)


def _best_alone(scores, spec: Spec, sizes: Sizes, budget: int, left: Masks, by_cost: bool) -> Masks:
    """The one unit, at its least, that has the highest score of all that fit."""
    found = []
    for number, (name, unit) in enumerate(spec.items()):
        # What is dropped already must not win: argmax passes over it.
        alive = [np.where(m, s, -np.inf) for s, m in zip(scores[name], left[name], strict=True)]
        least = unit.smallest(sizes)
        if least <= budget and all(m.any() for m in left[name]):
            # One index of each bond is the least that a chain can be: the best one of every bond.
            value = max(float(np.max(each)) for each in alive) / (least if by_cost else 1)
            # -number: of equal values the first unit is the largest tuple.
            found.append((value, -number, name, [int(np.argmax(each)) for each in alive]))
    if not found:
        raise ValueError(
            f"budget={budget} is below every group that is left of the super-set: smaller ones had "
            "lower scores. Raise it, or leave the large groups out of the super-set."
        )
    _, _, best, indices = max(found)
    kept = {name: tuple(np.zeros_like(m) for m in masks) for name, masks in left.items()}
    for mask, index in zip(kept[best], indices, strict=True):
        mask.flat[index] = True
    return kept


def _drop_entries(scores, left: Masks, budget: int) -> Masks:
    """Every group costs one: the smallest scores at once."""
    flat = np.concatenate([np.ravel(s) for name in left for s in scores[name]])
    alive = np.concatenate([np.ravel(m) for arrays in left.values() for m in arrays])
    order = np.flatnonzero(alive)
    # Stable: equal scores go in the order of the units.
    order = order[np.argsort(flat[order], kind="stable")]
    alive[order[: max(0, len(order) - budget)]] = False
    found, start = {}, 0
    for name, arrays in left.items():
        parts = []
        for mask in arrays:
            parts.append(alive[start : start + mask.size].reshape(mask.shape))
            start += mask.size
        found[name] = tuple(parts)
    return found


def _drop_one_by_one(scores, spec: Spec, sizes: Sizes, budget: int, masks: Masks, by_cost: bool):
    """Pops groups off a heap; entries of a unit whose costs have changed since are skipped."""
    left = {name: tuple(np.array(m) for m in arrays) for name, arrays in masks.items()}
    names, versions = list(spec), dict.fromkeys(spec, 0)
    current = cost(left, spec, sizes)
    heap: list[tuple] = []

    def push(number: int) -> None:
        name = names[number]
        # A bond without any index would cut the chain: its last one goes with the whole chain.
        is_least = all(np.count_nonzero(mask) <= 1 for mask in left[name])
        for axis, (score, mask) in enumerate(zip(scores[name], left[name], strict=True)):
            if not mask.any() or (np.count_nonzero(mask) == 1 and not is_least):
                continue
            divisor = spec[name].freed(left[name], axis, sizes) if by_cost else 1
            for index in np.flatnonzero(mask):
                value = float(np.ravel(score)[index]) / divisor
                heapq.heappush(heap, (value, number, axis, int(index), versions[name]))

    for number in range(len(names)):
        push(number)
    while current > budget and heap:
        _, number, axis, index, version = heapq.heappop(heap)
        name = names[number]
        # Pushed with costs that no longer hold; it is on the heap again with those of now.
        if version != versions[name]:
            continue
        current -= spec[name].freed(left[name], axis, sizes)
        left[name][axis].flat[index] = False
        # A bond fewer makes the indices of the neighbouring bonds cheaper, too.
        if spec[name].after_drop(left[name], axis):
            versions[name] += 1
            push(number)
    return left
