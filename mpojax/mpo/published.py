"""Factor lists that the authors of the MPO papers published, as data.

Sources: MPOP (ACL 2021), appendix tables 1 and 2, and the released code and shape files. Matrices
are written (in_features, out_features); the released code holds the transposed ones.
"""

# By (rows, columns) with five cores: lists that belong to one matrix, not to a size. 768 has two.
_PAIRS = {
    (768, 768): ((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)),
    (768, 3072): ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
    (3072, 768): ((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)),
    (768, 2304): ((4, 4, 4, 4, 3), (4, 4, 8, 6, 3)),
    (30000, 128): ((5, 10, 10, 10, 6), (2, 2, 4, 4, 2)),
    (30522, 768): ((6, 8, 10, 8, 8), (4, 4, 4, 4, 3)),  # padded to 30720 rows
}

# By number of cores, then by size: lists for both sides of any matrix of these sizes.
_SIZES = {
    2: {
        768: (32, 24),
        1024: (32, 32),
        2048: (32, 64),
        2304: (48, 48),
        3072: (64, 48),
        4096: (64, 64),
        50400: (210, 240),
    },
    3: {
        768: (8, 12, 8),
        1024: (8, 16, 8),
        2048: (8, 16, 16),
        2304: (12, 16, 12),
        3072: (12, 16, 16),
        4096: (16, 16, 16),
        50400: (35, 40, 36),
    },
    5: {
        1024: (4, 4, 4, 4, 4),
        2048: (4, 4, 8, 4, 4),
        2304: (4, 4, 8, 6, 3),
        3072: (4, 4, 8, 6, 4),
        4096: (4, 4, 8, 8, 4),
        50400: (5, 10, 14, 12, 6),
    },
    7: {
        768: (2, 2, 4, 4, 3, 2, 2),
        1024: (2, 2, 4, 4, 4, 2, 2),
        2048: (2, 4, 4, 4, 4, 2, 2),
        2304: (2, 3, 4, 4, 4, 3, 2),
        3072: (2, 4, 4, 4, 4, 3, 2),
        4096: (2, 4, 4, 4, 4, 4, 2),
        50400: (4, 5, 5, 7, 6, 4, 3),
    },
    9: {
        768: (2, 2, 2, 2, 3, 2, 2, 2, 2),
        1024: (2, 2, 2, 2, 4, 2, 2, 2, 2),
        2048: (2, 2, 2, 4, 4, 2, 2, 2, 2),
        2304: (2, 2, 2, 3, 4, 3, 2, 2, 2),
        3072: (2, 2, 2, 4, 4, 3, 2, 2, 2),
        4096: (2, 2, 2, 4, 4, 4, 2, 2, 2),
        50400: (2, 2, 5, 5, 7, 6, 3, 2, 2),
    },
}


def published_factor_lists(
    in_size: int, out_size: int, n: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(in_factors, out_factors) of length `n` as the authors used them; None where they did not."""
    if n == 5 and (in_size, out_size) in _PAIRS:
        return _PAIRS[in_size, out_size]
    sizes = _SIZES.get(n, {})
    if in_size in sizes and out_size in sizes:
        return sizes[in_size], sizes[out_size]
    return None
