"""Checks of values, worded once: types, bounds and choices of settings and of files' metadata.

One text for every mistake: the name, the value, what is allowed, and the nearest right name.

    >>> check({"layers": 0}, {"layers": integer(1)}, "config.json")
    Traceback (most recent call last):
    ValueError: config.json: layers=0 must be an integer of at least 1.

Settings declare on their fields what each may be, and are checked when they are made:

    >>> @settings(prefix="squeeze.")
    ... class Squeezing:
    ...     measure: str = field(one_of("relative", "absolute"), "relative")
    ...     bonds: tuple[int, ...] | None = field(sequence(integer(1)), None)
    >>> Squeezing(bonds=[4, 2])
    Squeezing(measure='relative', bonds=(4, 2))
    >>> Squeezing(measure="rel")
    Traceback (most recent call last):
    ValueError: squeeze.measure='rel' must be one of 'relative', 'absolute'.
    >>> from_mapping(Squeezing, {"mesure": "relative"}, "config.squeeze")
    Traceback (most recent call last):
    ValueError: config.squeeze: unknown 'mesure', did you mean 'measure'? (known: measure, bonds).
"""

import dataclasses
import difflib
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, dataclass_transform

from mpojax import files

_MAX_JSON_BYTES = 64 * 2**20
_MAX_DEPTH = 64
# Characters of a list in a message, as long as its separators are short.
_MAX_LISTED = 1000


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values a field may have.

    Attributes:
      what: how they are named after "must be".
      accepts: whether a value is one of them.
    """

    what: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: "Allowed") -> "Allowed":
        return Allowed(
            f"{self.what} or {other.what}",
            lambda value: self.accepts(value) or other.accepts(value),
        )

    def noted(self, note: str) -> "Allowed":
        """The same values, with a note about what they mean."""
        return dataclasses.replace(self, what=f"{self.what} ({note})")


def integer(low: int | None = None, high: int | None = None) -> Allowed:
    """Integers from `low` to `high`, both included; a bool is none."""

    def accepts(value) -> bool:
        if not isinstance(value, Integral) or isinstance(value, bool):
            return False
        return (low is None or value >= low) and (high is None or value <= high)

    return Allowed(f"an integer {_bounds(low, high)}".strip(), accepts)


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Allowed:
    """Finite numbers from `low` to `high`, both included, or between `above` and `below`."""

    def accepts(value) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not _is_finite(value):
            return False
        inside = (low is None or value >= low) and (high is None or value <= high)
        return inside and (above is None or value > above) and (below is None or value < below)

    open_ends = [f"above {above}"] * (above is not None) + [f"below {below}"] * (below is not None)
    bounds = [_bounds(low, high)] * (low is not None or high is not None)
    return Allowed(" ".join(["a finite number", " and ".join(bounds + open_ends)]).strip(), accepts)


def whole(low: int | None = None, high: int | None = None) -> Allowed:
    """Integers, also as floats such as 50.0."""
    of = integer(low, high)
    return Allowed(
        of.what,
        lambda value: of.accepts(
            int(value) if isinstance(value, float) and value.is_integer() else value
        ),
    )


def text(max_length: int = 100_000) -> Allowed:
    """Strings."""
    return Allowed("a text", lambda value: isinstance(value, str) and len(value) <= max_length)


def flag() -> Allowed:
    """True or False."""
    return Allowed("true or false", lambda value: isinstance(value, bool))


def null() -> Allowed:
    """None alone; `integer(1) | null()` is an optional field."""
    return Allowed("null", lambda value: value is None)


def one_of(*choices: Any) -> Allowed:
    """One of the given values."""
    return Allowed(
        f"one of {', '.join(map(repr, choices))}",
        lambda value: any(type(value) is type(c) and value == c for c in choices),
    )


def sequence(of: Allowed, length: int | None = None) -> Allowed:
    """Lists and tuples whose entries are all allowed."""

    def accepts(value) -> bool:
        fits = isinstance(value, (list, tuple)) and length in (None, len(value))
        return fits and all(of.accepts(entry) for entry in value)

    count = "" if length is None else f" of {length} entries"
    return Allowed(f"a list{count}, each {of.what}", accepts)


def mapping(of: Allowed, names: Sequence[str] | None = None) -> Allowed:
    """Mappings from strings, all of them among `names` where given, to allowed values."""

    def accepts(value) -> bool:
        return isinstance(value, Mapping) and all(
            (isinstance(name, str) if names is None else name in names) and of.accepts(entry)
            for name, entry in value.items()
        )

    keys = "names" if names is None else f"names out of {', '.join(names)}"
    return Allowed(f"a mapping of {keys}, each {of.what}", accepts)


def pair(first: Allowed, second: Allowed) -> Allowed:
    """Lists and tuples of two entries."""

    def accepts(value) -> bool:
        fits = isinstance(value, (list, tuple)) and len(value) == 2
        return fits and first.accepts(value[0]) and second.accepts(value[1])

    return Allowed(f"a pair of {first.what} and {second.what}", accepts)


def expression() -> Allowed:
    """Regular expressions of the user's own; see `patterns` for those out of files."""

    def accepts(value) -> bool:
        try:
            re.compile(value)
        except (re.error, TypeError, RecursionError):
            return False
        return isinstance(value, str)

    return Allowed("a regular expression", accepts)


def anything() -> Allowed:
    """Any value: for what is kept and not looked at."""
    return Allowed("anything", lambda value: True)


def field(allowed: Allowed, default: Any = dataclasses.MISSING) -> Any:
    """Field of a `settings` class, with the values that it may have.

    Args:
      allowed: what its value may be; None is allowed where it is the default.
      default: its value where none is given; without one the field must be given.
    """
    if default is None:
        allowed = Allowed(f"{allowed.what}, or None", (allowed | null()).accepts)
    return dataclasses.field(default=default, metadata={"allowed": allowed})


@dataclass_transform(frozen_default=True, field_specifiers=(field, dataclasses.field))
def settings(prefix: str = "") -> Callable[[type], type]:
    """Makes a class a frozen dataclass whose fields, declared by `field`, are checked when made.

    Lists become tuples, so that settings are hashable. A `__post_init__` of the class runs
    afterwards, for what concerns several fields.

    Args:
      prefix: what a message begins with, such as "squeeze.".

    Raises:
      ValueError: on creation; names each wrong value and what is allowed.
    """

    def decorate(cls: type) -> type:
        own_checks = getattr(cls, "__post_init__", lambda self: None)

        def check_fields(self):
            declared = {f.name: f.metadata["allowed"] for f in _declared(type(self))}
            values = {name: getattr(self, name) for name in declared}
            if found := problems(values, declared):
                raise ValueError(listed([prefix + each for each in found], "; ") + ".")
            for name, value in values.items():
                object.__setattr__(self, name, _as_tuple(value))
            own_checks(self)

        cls.__post_init__ = check_fields
        return dataclasses.dataclass(frozen=True)(cls)

    return decorate


def from_mapping(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Settings of a dataclass from a mapping by field, such as a part of a config.

    Raises:
      ValueError: names unknown fields with the nearest known ones, missing ones, or what the class
        raises about the values; begins with `where`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping of settings, not {shortened(values)}.")
    fields = [f for f in dataclasses.fields(kind) if f.init]
    check_names(values, [f.name for f in fields], where)
    required = [f.name for f in fields if _is_required(f)]
    check({}, {}, where, [name for name in required if name not in values])
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def check_unread(values: Any, reasons: Mapping[str, str]) -> None:
    """Checks that fields which would have no effect are at their defaults.

    Args:
      values: of a dataclass.
      reasons: {field: what makes it meaningless}, as in {"k": "router='switch'"}.

    Raises:
      ValueError: names the field, its value and the reason.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(values)}
    for name, reason in reasons.items():
        value = getattr(values, name)
        if value != defaults[name]:
            raise ValueError(f"{name}={value!r} has no meaning with {reason}; leave it out.")


def check_value(name: str, value: Any, allowed: Allowed) -> None:
    """Checks one argument of a function.

    Raises:
      ValueError: names the argument, its value and what is allowed.
    """
    check({name: value}, {name: allowed})


def problems(values: Mapping[str, Any], fields: Mapping[str, Allowed]) -> list[str]:
    """A line for each value that its field does not allow; absent fields are no problem."""
    return [
        f"{name}={shortened(values[name])} must be {allowed.what}"
        for name, allowed in fields.items()
        if name in values and not allowed.accepts(values[name])
    ]


def check(
    values: Mapping[str, Any],
    fields: Mapping[str, Allowed],
    where: str = "",
    required: Iterable[str] = (),
) -> None:
    """Checks values against their fields; names without a field are not looked at.

    Args:
      values: by name.
      fields: what each may be.
      where: a file or an argument, with which the message begins.
      required: names that must be there.

    Raises:
      ValueError: names each wrong value and what is allowed.
    """
    found = [f"{name} is missing" for name in required if name not in values]
    found += problems(values, fields)
    if found:
        raise ValueError(f"{where}{': ' if where else ''}{listed(found, '; ')}.")


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Checks that only known names are used.

    Raises:
      ValueError: names the unknown ones, and the nearest known one of each.
    """
    known = list(known)
    unknown = [
        f"unknown {name!r}{did_you_mean(str(name), known)}" for name in names if name not in known
    ]
    if unknown:
        raise ValueError(f"{where}: {listed(unknown, '; ')} (known: {listed(known, limit=30)}).")


def check_none(found: Sequence[Any], what: str, separator: str = "; ", limit: int = 10) -> None:
    """Checks that nothing wrong was found.

    Raises:
      ValueError: `what`, and what was found.
    """
    if found:
        raise ValueError(f"{what}: {listed(found, separator, limit)}.")


def check_clashes(clashes: Mapping[str, Any]) -> None:
    """Checks that no two values contradict each other.

        >>> check_clashes({"beams=2 samples nothing; leave temperature out": 2 > 1})
        Traceback (most recent call last):
        ValueError: beams=2 samples nothing; leave temperature out.

    Args:
      clashes: {what is wrong and how to fix it: whether it is so}.

    Raises:
      ValueError: the first that is so.
    """
    for text, is_so in clashes.items():
        if is_so:
            raise ValueError(f"{text}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'steps'?` for the known name nearest to a mistyped one, or nothing."""
    found = nearest(name, known)
    return "" if found is None else f", did you mean {found!r}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely stands for, None where none is near.

    Names may be dotted. In this order: the same last part elsewhere (learning_rate finds
    optimizer.learning_rate), its initials (lr), a similar one next to it, a similar one elsewhere.
    """
    known = sorted(known, key=lambda each: (each.count("."), len(each)))
    lasts = [each.rpartition(".")[2] for each in known]
    parent, _, last = name.rpartition(".")
    initials = ["".join(word[:1] for word in each.split("_")) for each in lasts]
    for candidates in (lasts, initials):
        if last in candidates:
            return known[candidates.index(last)]
    siblings = [each for each in known if each.rpartition(".")[0] == parent]
    for group, cutoff in ((siblings, 0.6), (known, 0.75)):
        by_last = {each.rpartition(".")[2]: each for each in reversed(group)}
        if close := difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff):
            return by_last[close[0]]
    return None


def listed(items: Sequence[Any], separator: str = ", ", limit: int = 10) -> str:
    """Items in one text, no more than `limit` of them."""
    texts, more = [str(item) for item in items[:limit]], len(items) - limit
    if sum(map(len, texts)) > _MAX_LISTED:
        texts = [cut(text, _MAX_LISTED // len(texts)) for text in texts]
    return separator.join(texts) + (f"{separator}... and {more} more" if more > 0 else "")


def cut(text: str, length: int = 300) -> str:
    """The text, without its middle where it is longer."""
    half = (length - 5) // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def shortened(value: Any, length: int = 80) -> str:
    """`repr` of a value, cut in the middle where it is long."""
    shorten = reprlib.Repr()
    shorten.maxlevel, shorten.maxlist, shorten.maxtuple, shorten.maxdict = 4, 8, 8, 8
    shorten.maxstring = shorten.maxother = shorten.maxlong = length
    return shorten.repr(value)


def read_json(path: str | os.PathLike, fields: Mapping[str, Allowed] | None = None) -> dict:
    """The object in a JSON file, in bounded time and memory.

    Args:
      path: of the file.
      fields: what its entries may be; see `check`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not UTF-8, no JSON, no object, nested too deeply, too large, or an entry that is
        not allowed; names the file and what is wrong.
    """
    path = files.at(path)
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, too many for a file of settings.")
    files.check_fetched(path)
    try:
        source = path.read_text(encoding="utf-8-sig")
        content = parse_json(source, f"{path} is")
        if _depth(content) > _MAX_DEPTH:
            raise ValueError(f"{path} is nested too deeply for a file of settings.")
        if "\\ud" in source.lower():  # perhaps half a character, which is no text
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    check(content, fields or {}, str(path))
    return content


def parse_json(source: str, where: str) -> Any:
    """The value of a JSON text, which may be anything.

    Raises:
      ValueError: no JSON, nested too deeply, or with a number too long for Python; begins with
        `where`, as in "a.json is" or "a.jsonl, line 3:".
    """
    try:
        return json.loads(source)
    except RecursionError as error:
        raise ValueError(f"{where} nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} not valid JSON: {error}") from error
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise ValueError(
            f"{where} not valid JSON: a number of more than {digits} digits"
        ) from error


def _declared(kind: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(kind) if "allowed" in f.metadata]


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is entry.default_factory is dataclasses.MISSING


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            entry
            for each in level
            if isinstance(each, (dict, list))
            for entry in (each.values() if isinstance(each, dict) else each)
        ]
    return deepest


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"from {low} to {high}"
    if low is not None:
        return f"of at least {low}"
    return "" if high is None else f"of at most {high}"
