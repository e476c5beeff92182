"""What a value may be: accepted and refused values, texts of mistakes, files in bounded time."""

import dataclasses
import json
import math

import pytest

from mpojax import checks

SPECS = [
    (checks.integer(1), [1, 2**70], [0, -1, 1.0, True, "1", None]),
    (checks.integer(0, 3), [0, 3], [-1, 4]),
    (checks.number(0), [0, 0.5, 3], [-1e-9, math.nan, math.inf, True, "0", 10**400]),
    (checks.number(above=0, high=1), [1e-9, 1], [0, 1.1]),
    (checks.number(0, below=1), [0, 0.99], [1, -0.1]),
    (checks.whole(0), [0, 50.0, 7], [-1, 0.5, "1", True, math.nan, None]),
    (checks.text(), ["", "a"], [1, None, b"a"]),
    (checks.flag(), [True, False], [0, 1, "yes"]),
    (checks.integer(1) | checks.null(), [1, None], [0, "x"]),
    (checks.one_of("a", 1), ["a", 1], ["b", True, 1.0]),
    (checks.sequence(checks.integer(1)), [(), [1, 2], (3,)], [1, "12", [0], [[1]]]),
    (checks.sequence(checks.flag(), 2), [[True, False]], [[True]]),
    (checks.mapping(checks.number()), [{}, {"a": 1.5}], [[], {"a": "b"}, {1: 2}]),
    (checks.mapping(checks.number(), names=("a",)), [{}, {"a": 1}], [{"b": 1}, {"a": None}]),
    (checks.pair(checks.text(), checks.flag()), [("a", True), ["", False]], ["ab", ("a",), (1, 2)]),
    (checks.expression(), ["", "a.*"], ["(", 5, None]),
    (checks.anything(), [None, object()], []),
]


@pytest.mark.parametrize(
    ("allowed", "good", "bad"), SPECS, ids=lambda each: getattr(each, "what", "")
)
def test_values_are_accepted_or_refused(allowed, good, bad):
    assert all(allowed.accepts(value) for value in good)
    assert not any(allowed.accepts(value) for value in bad)


def test_a_mistake_names_field_value_and_what_is_allowed():
    fields = {"steps": checks.integer(1), "rate": checks.number(above=0) | checks.null()}
    checks.check({"steps": 1, "rate": None, "other": object()}, fields, "config")
    with pytest.raises(ValueError) as caught:
        checks.check({"steps": 0, "rate": "x" * 500}, fields, "config", required=["model"])
    assert str(caught.value).startswith(
        "config: model is missing; steps=0 must be an integer of at least 1; rate='xxx"
    )
    assert str(caught.value).endswith("must be a finite number above 0 or null.")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("stepz", "steps"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("learning_rte", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("start.seeed", "seed"),
        ("qqqq", None),
    ],
)
def test_the_nearest_name(name, near):
    known = ["steps", "seed", "optimizer.learning_rate", "start.optimizer.learning_rate"]
    assert checks.nearest(name, known) == near


def test_unknown_names_come_with_the_nearest():
    checks.check_names(["a"], ["a", "b"], "rules")
    with pytest.raises(
        ValueError, match=r"rules: unknown 'bnd', did you mean 'bond'\? \(known: bond, rank\)"
    ):
        checks.check_names(["bnd", "rank"], ["bond", "rank"], "rules")


def test_lists_are_cut():
    assert checks.listed(range(3)) == "0, 1, 2"
    assert checks.listed(range(13), limit=2) == "0, 1, ... and 11 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object, not list"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
        ('{"layers": {}}', r"layers=\{\} must be an integer"),
        (b"\xff\xfe{}", "not valid JSON"),
        ('{"layers": ' + "9" * 5000 + "}", "not valid JSON: a number of more than 4300 d"),
        ("version https://git-lfs.github.com/spec/v1\nsize 3\n", "is a pointer of Git LFS"),
    ],
)
def test_files_of_settings_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        checks.read_json(path, {"layers": checks.integer(1)})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_files_of_settings_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"layers": 2, "other": [1]}).encode())
    assert checks.read_json(path, {"layers": checks.integer(1)}) == {"layers": 2, "other": [1]}


@checks.settings(prefix="run.")
class Run:
    steps: int = checks.field(checks.integer(1))
    kind: str = checks.field(checks.one_of("a", "b"), "a")
    sizes: tuple = checks.field(checks.sequence(checks.integer(1)), (1,))
    rate: float | None = checks.field(checks.number(above=0), None)
    note: object = None

    def __post_init__(self):
        if self.rate is not None:
            checks.check_unread(self, {"kind": "a rate"})


class TestSettings:
    def test_are_checked_when_made_and_hashable(self):
        made = Run(3, sizes=[2, 3])
        assert made == Run(3, sizes=(2, 3))
        assert hash(made) == hash(Run(3, sizes=(2, 3)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.steps = 4

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"steps": 0}, r"^run\.steps=0 must be an integer of at least 1\.$"),
            (
                {"steps": 0, "kind": "c"},
                r"^run\.steps=0 .* 1; run\.kind='c' must be one of 'a', 'b'\.$",
            ),
            ({"steps": 1, "sizes": [0]}, r"sizes=\[0\] must be a list, each an integer"),
            ({"steps": 1, "rate": 0}, r"rate=0 must be a finite number above 0, or None\.$"),
            ({"steps": 1, "rate": 0.1, "kind": "b"}, "^kind='b' has no meaning with a rate; leave"),
        ],
    )
    def test_mistakes(self, values, message):
        with pytest.raises(ValueError, match=message):
            Run(**values)

    def test_a_subclass_checks_the_fields_of_both(self):
        @checks.settings()
        class Longer(Run):
            more: int = checks.field(checks.integer(0), 0)

        assert Longer(1, more=2).more == 2
        for values in ({"steps": 0}, {"steps": 1, "more": -1}):
            with pytest.raises(ValueError, match="must be an integer"):
                Longer(**values)

    def test_from_a_mapping(self):
        assert checks.from_mapping(Run, {"steps": 3}, "config.run") == Run(3)
        for values, message in (
            ({}, "config.run: steps is missing"),
            ({"steps": 1, "knd": "a"}, "config.run: unknown 'knd', did you mean 'kind'"),
            ({"steps": 0}, "config.run: run.steps=0 must be"),
            (3, "config.run must be a mapping of settings, not 3"),
        ):
            with pytest.raises(ValueError, match=message):
                checks.from_mapping(Run, values, "config.run")


def test_one_argument():
    checks.check_value("dtype", "float32", checks.one_of("float32"))
    with pytest.raises(ValueError, match=r"^dtype='x' must be one of 'float32'\.$"):
        checks.check_value("dtype", "x", checks.one_of("float32"))
