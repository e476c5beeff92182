"""Steps of regular expressions: an upper bound, which keeps out what takes long to match."""

import builtins
import itertools
import math
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from mpojax import patterns

GOOD = [
    *(r"(.*/)?layers/\d+/.*/(query|up)", "a{999}", r"(?!head).*/bias|.*norm.*", "(?>a+)b", ""),
    *(r"(.*/)?layers/[0-9]+/.*(query|value).*", ".*layers.*attention.*(query|value).*"),
    *(r"(.*/)?layers/\d+/(.*/)?attention/.*(query|value)(/.*)?$", ".*a.*b.*c.*d.*e", "a++b"),
    *(r"(a)?(?(1)b|c)\b", r"(.)\1", "(?i:query|value)/.*?x", "a" * 1000),
]
SLOW = [
    *("(a+)+b", "(a|a)*b", "(a*)*", ".*" * 6, "(" * 333 + "a" + ")*" * 333, "(.*/)*x", "a?" * 99),
    *("(a+)+" + "b" * 60, "(a?){25}a{25}", "(?=(a+)+b)a", "(a|ab)*c", r"(a+)\1*\1*", "(?:|a)*b"),
]


@pytest.mark.parametrize("pattern", GOOD)
def test_what_matches_quickly_is_read(pattern):
    assert patterns.fault([pattern]) is None
    assert patterns.fault([]) is None


@pytest.mark.parametrize("pattern", SLOW)
def test_what_matches_slowly_is_refused(pattern):
    assert patterns.fault(["a", pattern]).startswith("takes too many steps to match: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a" * 1001], r"has 1,001 characters; 1,000 are allowed: 'aaa"),
        (["a" * 1000] * 1001, "has 1,001,000 characters in all entries; 1,000,000 are"),
        ([""] * 10_001, "has 10,001 entries; 10,000 are allowed"),
        ([".*a.*b.*c.*d.*e"] * 3, "takes too many steps to match"),
        (["["], r"is no regular expression \(unterminated .*\): '\['"),
    ],
)
def test_faults_are_named(given, message):
    found = patterns.fault(given)
    assert re.match(message, found)
    assert len(found) < 300


@pytest.mark.parametrize("count", range(1, 6))
def test_repeats_in_a_row_are_polynomial(count):
    """k of them divide up to 50 characters in C(50 + k, k) ways."""
    ways = math.comb(50 + count, count)
    assert ways <= patterns.match_steps(".*" * count + "!") <= 4 * ways


def test_known_numbers_of_steps():
    assert patterns.match_steps("") == 0
    assert patterns.match_steps("abc") == 3
    assert patterns.match_steps("a{999}") == 100  # each time round, and its character
    assert patterns.match_steps("(a+)+b") > 2**50


@hypothesis.given(
    st.lists(st.sampled_from(["a", "a*", "a?", "a+", "(a|aa)", "(aa)*", "a{2,4}", "b"]), max_size=5)
)
def test_an_upper_bound_on_what_a_matcher_tries(parts):
    """All ways of dividing up a name, for parts that match any letters."""
    lengths = {"a": [1], "b": [1], "a*": range(51), "a?": [0, 1], "a+": range(1, 51)}
    lengths |= {"(a|aa)": [1, 2], "(aa)*": range(0, 51, 2), "a{2,4}": [2, 3, 4]}
    begun = 0
    ends = {0: 1}
    for part in parts:
        begun += sum(ends.values())
        before, ends = ends, {}
        for (end, ways), length in itertools.product(before.items(), lengths[part]):
            if end + length <= 50:
                ends[end + length] = ends.get(end + length, 0) + ways
    assert begun <= patterns.match_steps("".join(parts))


def test_a_python_without_the_parser(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "re" and "_parser" in (rest[2] or ()):
            raise ImportError("gone")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"checked with re\._parser, which Python 3"):
        patterns.match_steps("a")
