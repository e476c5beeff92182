"""One expert's matrix for a loop over experts: merged once, then applied to blocks of its tokens.

| strategy     | merged to      | applied as                       |
| rebuild      | the matrix     | one product                      |
| two_groups   | (L C, R) or    | the one, then the other: `mpo`'s |
|              | (L, C R)       | strategy of the same name        |
| three_groups | (L, C, R)      | one after the other              |

Intermediates of a few tokens stay in the caches of a CPU, those of all tokens do not.
"""

from mpojax.mpo import application, contract
from mpojax.mpo.experts.kernels import group_matrix
from mpojax.mpo.shape import MPOShape

STRATEGIES = ("rebuild", "two_groups", "three_groups")


def merge(own, shared, shape: MPOShape, strategy: str, variant: tuple) -> tuple:
    """Merges one expert's entries of `experts.own_groups` to what `apply_merged` needs.

    Args:
      own: (L, C, R) of the expert, None where it owns or has none.
      shared: C, or None.
      shape: of the expert's matrix.
      strategy: one of `STRATEGIES`.
      variant: (cut or None, left to right) as in `mpo.plan`; () for "rebuild".
    """
    if strategy == "rebuild":
        return (group_matrix(own, shared, shape),)
    left, central, right = own
    # Groups of experts come without the outer bonds of 1.
    chain = [shared if central is None else central]
    if left is not None:
        chain.insert(0, left[None])
    if right is not None:
        chain.append(right[..., None])
    if strategy == "three_groups":
        return tuple(chain)
    cut, left_to_right = variant
    # `cut` counts cores of the whole chain; here each side of the centre is one.
    cut = (1 if cut == shape.central else 2) - (left is None)
    return contract.pack_two_groups(contract.two_groups(chain, cut), left_to_right)


def apply_merged(merged: tuple, shape: MPOShape, strategy: str, variant: tuple, x):
    """x (T, in_features) -> (T, out_features), in the dtype of `x`."""
    arrays = tuple(array.astype(x.dtype) for array in merged)
    return application.apply_merged(strategy, variant, arrays, shape, x)
