"""Regular expressions out of files: an upper bound on the steps of Python's matcher.

The matcher tries one way of matching after the other: (a+)+b takes 2^n steps on n letters a.
"""

import itertools
import math
import re
import sys
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

# Of all expressions of a file together, on a name of `_LENGTH` characters.
_MAX_STEPS, _LENGTH = 2 * 10**7, 50
# They are compiled before their steps are counted.
_MAX_COUNT, _MAX_CHARACTERS, _MAX_TOTAL = 10_000, 1000, 10**6
_SINGLE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_ONE, _ANY_LENGTH = np.eye(1, _LENGTH + 1)[0], np.ones(_LENGTH + 1)


def fault(patterns: Sequence[str]) -> str | None:
    """Fault of the expressions of a file, as a predicate; None if all match quickly."""
    if len(patterns) > _MAX_COUNT:
        return f"has {len(patterns):,} entries; {_MAX_COUNT:,} are allowed"
    longest = max(patterns, key=len, default="")
    if len(longest) > _MAX_CHARACTERS:
        length = f"{len(longest):,} characters; {_MAX_CHARACTERS:,} are allowed"
        return f"has {length}: {_shown(longest)}"
    if (total := sum(map(len, patterns))) > _MAX_TOTAL:
        return f"has {total:,} characters in all entries; {_MAX_TOTAL:,} are allowed"
    steps = 0.0
    for pattern in patterns:
        try:
            steps += match_steps(pattern)
        except re.error as error:
            return f"is no regular expression ({error}): {_shown(pattern)}"
        if steps > _MAX_STEPS:
            return f"takes too many steps to match: {_shown(pattern)}"
    return None


def match_steps(pattern: str) -> float:
    """An upper bound on the characters that are compared in matching a name of 50 characters.

    Each part r has two generating functions of the length n: the ways w(r) of matching n
    characters, and the comparisons s(r) that are begun after n of them, if each one succeeds. With
    w = s z = z for one character,

        w(rs) = w(r) w(s)         s(rs) = s(r) + w(r) s(s)
        w(r|s) = w(r) + w(s)      s(r|s) = s(r) + s(s)
        w(r{m,n}) = sum_{m<=k<=n} w(r)^k         s(r{m,n}) = sum_{k<n} w(r)^k (1 + s(r))

    Polynomial are thus k repeats in a row, C(50 + k, k), and exponential nested ones.

    Returns:
      infinity for more than 10^18, or for groups that are nested too deeply.

    Raises:
      re.error: no regular expression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that may mean something else one day
            re.compile(pattern)
            return float(_sequence(_parser().parse(pattern))[1].sum())
    except (RecursionError, OverflowError):
        return math.inf


def _parser():
    """Python's own parser of regular expressions, of which no public form is left."""
    try:
        from re import _parser
    except ImportError as error:
        raise ImportError(
            "regular expressions of files are checked with re._parser, which Python "
            f"{sys.version.split()[0]} does not have any more: update mpojax, or use Python 3.11 "
            "to 3.14."
        ) from error
    return _parser


def _sequence(node: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(ways, steps) of what follows one another: (kind, arguments) pairs of the parser."""
    ways, steps = _ONE, 0 * _ONE
    for is_single, items in itertools.groupby(node, lambda item: str(item[0]) in _SINGLE):
        parts = list(items)
        for own_ways, own_steps in [_characters(len(parts))] if is_single else map(_part, parts):
            ways, steps = _product(ways, own_ways), steps + _product(ways, own_steps)
            if not ways.any():
                return ways, steps  # names end before
    return ways, steps


def _characters(count: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.arange(_LENGTH + 1)
    # w = z^count, s = 1 + z + ... + z^(count - 1): one comparison begins after each of them.
    return (lengths == count).astype(float), (lengths < count).astype(float)


def _part(item: tuple) -> tuple[np.ndarray, np.ndarray]:
    kind, arguments = str(item[0]), item[1]
    if kind.endswith("REPEAT"):
        return _repeat(*arguments)
    if kind in ("BRANCH", "GROUPREF_EXISTS"):
        branches = arguments[1] if kind == "BRANCH" else [each or [] for each in arguments[1:]]
        ways, steps = zip(*map(_sequence, branches), strict=True)
        return sum(ways), sum(steps) + _ONE
    if kind.startswith("ASSERT"):
        return _ONE, _sequence(arguments[1])[1] + _ONE  # it is left with its first match
    if kind == "SUBPATTERN":
        return _sequence(arguments[-1])
    if kind == "ATOMIC_GROUP":
        return _sequence(arguments)
    # A repeated group may have any length; anchors match the empty text.
    return (_ANY_LENGTH if kind == "GROUPREF" else _ONE), _ONE


def _repeat(low: int, high: int, body) -> tuple[np.ndarray, np.ndarray]:
    low, high = min(int(low), _LENGTH), min(int(high), _LENGTH)
    own_ways, own_steps = _sequence(body)
    power, ways, steps = _ONE, 0 * _ONE, 0 * _ONE
    for count in range(high + 1):
        if count >= low:
            ways = ways + power
        # `power` is w^count; once it is 0, no name is long enough for more repeats.
        if count == high or not power.any():
            break
        steps = steps + _product(power, own_steps + _ONE)
        power = _product(power, own_ways)
    return ways, steps


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of polynomials, up to the length of a name.

    Raises:
      OverflowError: far more ways than can be tried.
    """
    # Coefficient n is the sum over k of a_k b_(n-k); names longer than `_LENGTH` do not count.
    found = np.convolve(one, other)[: _LENGTH + 1]
    if found.sum() > 1e18:
        raise OverflowError
    return found


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:60]}...{pattern[-15:]}")
