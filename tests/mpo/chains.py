"""Chains and plans for the tests of `apply`."""

import dataclasses

from mpojax import mpo

# Every kind of chain: one core, low rank, factors of 1, padding, cut bonds, even and odd lengths.
SHAPES = {
    "one core": mpo.MPOShape((6,), (4,)),
    "low rank": mpo.MPOShape.low_rank(6, 5, 3),
    "two cores": mpo.MPOShape((3, 2), (2, 4)),
    "three cores": mpo.MPOShape((2, 3, 2), (3, 2, 2)).with_bonds(3),
    "unit factors": mpo.MPOShape((1, 3, 1, 2), (2, 1, 1, 3)),
    "padded": mpo.MPOShape((2, 2, 3), (2, 3, 2), (3, 4), 11, 10),
    "five cores": mpo.MPOShape((2, 1, 2, 3, 2), (1, 2, 3, 1, 2)).with_bonds(4),
}


def plans(shape, tokens, training=True, prepared=False):
    """One plan for each strategy and each of its variants, by name."""
    n, centre = shape.num_cores, shape.central
    variants = {
        "rebuild": [()],
        "chain_left_to_right": [()],
        "chain_right_to_left": [()],
        "three_groups": [(None, True), (None, False)],
        "two_groups": [
            (cut, direction)
            for cut in (centre, centre + 1)
            if 0 < cut < n
            for direction in (True, False)
        ],
    }
    assert set(variants) == set(mpo.STRATEGIES)
    found = {}
    for strategy, choices in variants.items():
        for variant in choices:
            plan = mpo.plan(
                shape, tokens=tokens, training=training, prepared=prepared, strategy=strategy
            )
            chosen = dataclasses.replace(plan.chosen, variant=variant)
            found[f"{strategy} {variant}"] = dataclasses.replace(plan, chosen=chosen)
    return found
