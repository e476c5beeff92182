"""Choice of the groups of a super-set to prune, so that the rest meets a budget of parameters."""

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mpojax.methods.pet.groups import Groups, Spec

SCHEDULES = ("geometric", "cubic")

Masks = dict[str, tuple[np.ndarray, ...]]  # {unit: boolean arrays, see `pet_groups.Groups`}
Sizes = Mapping[str, tuple[int, ...]]  # {array path: shape}


def whole_masks(spec: Spec, sizes: Sizes) -> Masks:
    """Masks of which nothing is dropped."""
    found = {}
    for unit, groups in spec.items():
        shapes = [sizes[name] for name in groups.arrays]
        if groups.kind == "module":
            shapes = [()]
        elif groups.kind == "chain":
            shapes = [shape[-1:] for shape in shapes[:-1]]
        found[unit] = tuple(np.ones(shape, bool) for shape in shapes)
    return found


def cost(masks: Mapping[str, Sequence[np.ndarray]], spec: Spec, sizes: Sizes) -> int:
    """Parameters that are left."""
    return sum(unit_cost(groups, masks[unit], sizes) for unit, groups in spec.items())


def unit_cost(groups: Groups, masks: Sequence[np.ndarray], sizes: Sizes) -> int:
    """The same of one unit. A chain with an empty bond is gone."""
    if groups.kind == "module":
        return int(masks[0]) * sum(math.prod(sizes[name]) for name in groups.arrays)
    if groups.kind == "entries":
        return int(sum(np.count_nonzero(mask) for mask in masks))
    return _chain_cost([int(np.count_nonzero(mask)) for mask in masks], _inner(groups, sizes))


def _inner(groups: Groups, sizes: Sizes) -> list[int]:
    """Parameters of each core for one index of the bonds next to it."""
    shapes = [sizes[name] for name in groups.arrays]
    if len(shapes[0]) == 2:  # the factors of low rank
        return [shapes[0][0], shapes[1][1]]
    return [math.prod(shape[1:-1]) for shape in shapes]


def _chain_cost(bonds: Sequence[int], inner: Sequence[int]) -> int:
    if 0 in bonds:
        return 0
    ends = (1, *bonds, 1)
    return sum(ends[k] * size * ends[k + 1] for k, size in enumerate(inner))


def check_budget(budget: int, spec: Spec, sizes: Sizes, masks: Masks) -> None:
    """Raises ValueError for a budget above what there is, or below the smallest group."""
    whole = cost(masks, spec, sizes)
    if budget > whole:
        raise ValueError(
            f"budget={budget} is more than the {whole} parameters of the super-set: nothing would "
            "be dropped. Lower it, or raise the ranks."
        )
    smallest = min(_smallest(groups, sizes) for groups in spec.values())
    if budget < smallest:
        raise ValueError(
            f"budget={budget} is below the smallest group of the super-set, {smallest} parameters: "
            "nothing would be left. Raise it."
        )


def _smallest(groups: Groups, sizes: Sizes) -> int:
    """Of what can be left of a unit that is not gone."""
    if groups.kind == "module":
        return sum(math.prod(sizes[name]) for name in groups.arrays)
    return 1 if groups.kind == "entries" else sum(_inner(groups, sizes))


def schedule(whole: int, budget: int, rounds: int, kind: str = "geometric") -> list[int]:
    """Budgets of the rounds, falling from `whole` parameters; the last one is `budget`.

    Raises:
      ValueError: an unknown kind.
    """
    shares = [t / rounds for t in range(1, rounds + 1)]
    if kind == "geometric":
        budgets = [round(whole * (budget / whole) ** share) for share in shares]
    elif kind == "cubic":
        budgets = [round(budget + (whole - budget) * (1 - share) ** 3) for share in shares]
    else:
        raise ValueError(f"schedule={kind!r} must be one of {', '.join(SCHEDULES)}.")
    return [*budgets[:-1], budget]


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
      scores: {unit: arrays}, see `pet_groups.Groups`.
      spec: {unit: groups}.
      sizes: {array path: shape}.
      budget: parameters that may be left.
      masks: what is left so far; a dropped group never returns. None: everything.
      by_cost: whether scores are divided by the parameters that their group frees.

    Raises:
      ValueError: a budget below the smallest group that is left; scores that are not finite.
    """
    masks = whole_masks(spec, sizes) if masks is None else masks
    for unit in spec:
        if not all(np.isfinite(s[m]).all() for s, m in zip(scores[unit], masks[unit], strict=True)):
            raise ValueError(f"the scores of {unit} are not finite; look at the loss.")
    if budget < min(_smallest(groups, sizes) for groups in spec.values()):
        check_budget(budget, spec, sizes, masks)
    if all(groups.kind == "entries" for groups in spec.values()):
        return _fewest_entries(scores, masks, budget)
    left = {unit: tuple(np.array(m) for m in arrays) for unit, arrays in masks.items()}
    kept = _one_by_one(scores, spec, sizes, budget, left, by_cost)
    if cost(kept, spec, sizes):
        return kept
    return _best_alone(scores, spec, sizes, budget, masks, by_cost)


def _best_alone(scores, spec: Spec, sizes: Sizes, budget: int, left: Masks, by_cost: bool) -> Masks:
    """The one unit, at its least, that has the highest score of all that fit."""
    found = []
    for number, (unit, groups) in enumerate(spec.items()):
        alive = [np.where(m, s, -np.inf) for s, m in zip(scores[unit], left[unit], strict=True)]
        least = _smallest(groups, sizes)
        if least <= budget and all(m.any() for m in left[unit]):
            value = max(float(np.max(each)) for each in alive) / (least if by_cost else 1)
            found.append((value, -number, unit, [int(np.argmax(each)) for each in alive]))
    if not found:
        raise ValueError(
            f"budget={budget} is below every group that is left of the super-set: smaller ones had "
            "lower scores. Raise it, or leave the large groups out of the super-set."
        )
    _, _, best, places = max(found)
    kept = {unit: tuple(np.zeros_like(m) for m in masks) for unit, masks in left.items()}
    for mask, place in zip(kept[best], places, strict=True):
        mask.flat[place] = True
    return kept


def _fewest_entries(scores, left: Masks, budget: int) -> Masks:
    """Every group costs one: the smallest scores at once."""
    flat = np.concatenate([np.ravel(s) for unit in left for s in scores[unit]])
    alive = np.concatenate([np.ravel(m) for arrays in left.values() for m in arrays])
    order = np.flatnonzero(alive)
    order = order[np.argsort(flat[order], kind="stable")]
    alive[order[: max(0, len(order) - budget)]] = False
    found, start = {}, 0
    for unit, arrays in left.items():
        parts = []
        for mask in arrays:
            parts.append(alive[start : start + mask.size].reshape(mask.shape))
            start += mask.size
        found[unit] = tuple(parts)
    return found


def _one_by_one(scores, spec: Spec, sizes: Sizes, budget: int, left: Masks, by_cost: bool) -> Masks:
    units = list(spec)
    current = cost(left, spec, sizes)
    versions = dict.fromkeys(units, 0)
    heap: list[tuple] = []

    def freed(unit: str, bond: int) -> int:
        """Parameters that dropping one group of a unit frees; all of a bond cost the same."""
        groups = spec[unit]
        if groups.kind == "entries":
            return 1
        whole = unit_cost(groups, left[unit], sizes)
        if groups.kind == "module":
            return whole
        bonds = [int(np.count_nonzero(mask)) for mask in left[unit]]
        bonds[bond] -= 1
        return whole - _chain_cost(bonds, _inner(groups, sizes))

    def push(number: int) -> None:
        unit = units[number]
        is_least = all(np.count_nonzero(mask) <= 1 for mask in left[unit])
        for bond, (score, mask) in enumerate(zip(scores[unit], left[unit], strict=True)):
            if not mask.any() or (np.count_nonzero(mask) == 1 and not is_least):
                continue
            divisor = freed(unit, bond) if by_cost else 1
            for index in np.flatnonzero(mask):
                value = float(np.ravel(score)[index]) / divisor
                entry = (value, number, bond, int(index), versions[unit])
                heapq.heappush(heap, entry)

    for number in range(len(units)):
        push(number)
    while current > budget and heap:
        _, number, bond, index, version = heapq.heappop(heap)
        unit = units[number]
        if version != versions[unit]:
            continue
        current -= freed(unit, bond)
        left[unit][bond].flat[index] = False
        is_chain = spec[unit].kind == "chain"
        if is_chain and not left[unit][bond].any():
            for mask in left[unit]:
                mask[...] = False
            versions[unit] += 1
        elif is_chain and len(left[unit]) > 1:
            versions[unit] += 1  # other bonds free less now
            push(number)
    return left
