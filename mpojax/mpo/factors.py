"""Factor lists: a size as a product of small integers, balanced over the sites of a chain."""

import collections
import functools
import itertools
import math

# A list is useful when its largest factor is at most this multiple of size ** (1 / n).
_USEFUL_RATIO = 4.0
# Padding may add at most this fraction of rows (30,522 -> 30,618 adds 0.3 %).
_MAX_PADDING = 0.02


def prime_factors(size: int) -> list[int]:
    """Prime factors of `size`, ascending, with multiplicity; empty for 1."""
    factors, divisor = [], 2
    while divisor * divisor <= size:
        while size % divisor == 0:
            factors.append(divisor)
            size //= divisor
        divisor += 1
    return [*factors, size] if size > 1 else factors


def balanced_factors(size: int, n: int) -> tuple[int, ...]:
    """Writes `size` as a product of `n` integers as equal as its primes allow, in ascending order.

    Sizes with fewer than `n` prime factors get factors of 1.

    Raises:
      ValueError: `size` or `n` is below 1.
    """
    if size < 1 or n < 1:
        raise ValueError(f"size and n must be at least 1, got size={size}, n={n}.")
    factors = [1] * n
    # Greedy, the largest prime first: each goes to the smallest factor so far.
    for prime in reversed(prime_factors(size)):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors))


@functools.lru_cache(maxsize=4096)
def padded_size(size: int, n: int) -> int:
    """The size to which a dimension is zero-padded so that it has a useful list of `n` factors.

    `size` itself when its most equal list is useful, or when no padding of at most 2 % makes the
    list more equal; otherwise the smallest useful size, or failing that the most equal one.
    """

    def imbalance(candidate: int) -> float:
        return max(balanced_factors(candidate, n)) / candidate ** (1 / n)

    if imbalance(size) <= _USEFUL_RATIO:
        return size
    candidates = range(size, size + int(size * _MAX_PADDING) + 1)
    useful = (c for c in candidates if imbalance(c) <= _USEFUL_RATIO / 2)
    return next(useful, None) or min(candidates, key=lambda c: (imbalance(c), c))


@functools.lru_cache(maxsize=4096)
def balanced_factor_lists(
    in_size: int, out_size: int, n: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Orders the factors of both sides of a matrix over the `n` sites of one chain.

    The largest factors go to the centre, and the two sides of the centre get products of site sizes
    as equal as possible: then the central core has exactly in_size * out_size entries and the
    auxiliary cores are small.

    Returns:
      (in_factors, out_factors), each of length `n`.
    """
    centre = (n - 1) // 2
    in_sides = _sides(balanced_factors(in_size, n), centre)
    out_sides = _sides(balanced_factors(out_size, n), centre)

    def imbalance(choice):
        (_, in_left, in_right), (_, out_left, out_right) = choice
        left = math.prod(in_left) * math.prod(out_left)
        right = math.prod(in_right) * math.prod(out_right)
        return max(left, right) / min(left, right)

    in_side, out_side = min(itertools.product(in_sides, out_sides), key=imbalance)
    return _arrange(*in_side), _arrange(*out_side)


def _sides(factors, centre):
    """All ways to give the factors other than the largest to the two sides of the centre."""
    middle, rest = factors[-1], factors[:-1]
    # By counts of equal factors: a long list of them, mostly ones, has few different choices.
    counts = collections.Counter(rest)
    lefts = []
    for taken in itertools.product(*(range(count + 1) for count in counts.values())):
        if sum(taken) == centre:
            chosen = collections.Counter(dict(zip(counts, taken, strict=True)))
            lefts.append((tuple(sorted(chosen.elements())), chosen))
    return [
        (middle, left, tuple(sorted((counts - chosen).elements())))
        for left, chosen in sorted(lefts, key=lambda each: each[0])
    ]


def _arrange(middle, left, right):
    # Larger factors towards the centre, where bonds are widest.
    return (*sorted(left), middle, *sorted(right, reverse=True))
