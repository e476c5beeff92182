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
    time, 192 of 3072 columns, 1.375 times the multiply-adds of a dense matrix. Sizes without useful
    factors are padded as in `MPOShape.balanced`.

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
    rows, columns = usual.padded_in_features, usual.padded_out_features
    centre, sizes = usual.central, usual.site_sizes
    left, right = math.prod(sizes[:centre]), math.prod(sizes[centre + 1 :])
    choices = {
        (_nearest_divisor(rows, a, columns), _nearest_divisor(columns, b, rows))
        for a, b in ((left, right), (right, left))
    }
    # Multiply-adds for a token: in of_rows (x R) + in out (C) + out of_columns (times L).
    of_rows, of_columns = min(choices, key=lambda ab: (rows * ab[0] + columns * ab[1], ab))
    row_factors = factors_lib.balanced_factors(of_rows, n - 1 - centre)
    column_factors = factors_lib.balanced_factors(of_columns, centre)
    return MPOShape(
        (*(1,) * centre, rows // of_rows, *reversed(row_factors)),
        (*column_factors, columns // of_columns, *(1,) * (n - 1 - centre)),
        in_features=in_features,
        out_features=out_features,
    )


def _nearest_divisor(size: int, target: int, other_size: int) -> int:
    """The divisor of `size` nearest to `target` in ratio with which the central core is full."""
    # d is a full bond of the centre where d <= size other_size / d.
    divisors = [d for d in range(1, size + 1) if size % d == 0 and d * d <= size * other_size]
    return min(divisors, key=lambda d: (max(d / target, target / d), d))
