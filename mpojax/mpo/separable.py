"""Factor lists with which a shared central core meets all tokens of all experts at once.

With unit factors, the cores left of the centre act on columns alone and those right of it on rows
alone: x W_e = ((x R_e) C) L_e, where only the two small transforms belong to an expert. The counts
are those of the usual lists, but an expert can mix only rows on one side and columns on the other.
"""

import math

from mpojax.mpo import factors as factors_lib
from mpojax.mpo.shape import MPOShape


def separable_shape(in_features: int, out_features: int, n: int = 5) -> MPOShape:
    """Full-bond factor lists whose right cores act on rows and whose left cores act on columns.

    The two transforms get the sizes that the sides of the usual lists (`MPOShape.published`, else
    `MPOShape.balanced`) have, so that auxiliary cores are as large as there; the larger transform
    goes to the shorter side of the matrix, where it costs less. 768 x 3072: 384 of 768 rows at a
    time, 192 of 3072 columns, 1.375 times the multiply-adds of a dense matrix.

    Args:
      in_features: rows, at least 2.
      out_features: columns, at least 2.
      n: cores, at least 3.

    Raises:
      ValueError: fewer than three cores or a size below 2.
    """
    if n < 3 or min(in_features, out_features) < 2:
        raise ValueError(
            f"separable lists of {in_features} x {out_features} with {n} cores: there must be at "
            "least three cores and two rows and columns."
        )
    usual = MPOShape.published(in_features, out_features, n) or MPOShape.balanced(
        in_features, out_features, n
    )
    centre, sizes = usual.central, usual.site_sizes
    left, right = math.prod(sizes[:centre]), math.prod(sizes[centre + 1 :])
    choices = {
        (_nearest_divisor(in_features, a), _nearest_divisor(out_features, b))
        for a, b in ((left, right), (right, left))
    }
    rows, columns = min(choices, key=lambda ab: (in_features * ab[0] + out_features * ab[1], ab))
    ones_left, ones_right = (1,) * centre, (1,) * (n - 1 - centre)
    row_factors = factors_lib.balanced_factors(rows, n - 1 - centre)
    column_factors = factors_lib.balanced_factors(columns, centre)
    return MPOShape(
        (*ones_left, in_features // rows, *reversed(row_factors)),
        (*column_factors, out_features // columns, *ones_right),
    )


def _nearest_divisor(size: int, target: int) -> int:
    """The divisor of `size` that is nearest to `target` in ratio."""
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: (max(d / target, target / d), d))
