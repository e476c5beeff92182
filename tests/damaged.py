"""Damaged and hostile content of files, and what a reader may do with it."""

import contextlib
import copy
import json
import resource
import signal

from hypothesis import strategies as st

DEEP = json.loads("[" * 70 + "]" * 70)
HOSTILE = (
    *(None, True, False, -1, 0, 1, 2, 5, 2**31, 10**12, 10**40, 0.5, 1e308, -1e-9),
    *(float("nan"), float("inf"), "", "abc", "../x", "x" * 5000, "bert", "gelu", "(a+)+b$"),
    *([], {}, [1], [1, 2, 3], [[1, 2]], ["x" * 3000] * 20, {"a": 1}, {"factor": "8"}, DEEP),
)
_MOST_SECONDS, _MOST_MEGABYTES = 20, 1000


def places(value, path=()):
    """Where something stands in nested lists and dicts."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries if isinstance(value, (dict, list)) else ():
        if isinstance(entry, (dict, list)):
            yield from places(entry, (*path, key))
        else:
            yield (*path, key)


def replaced(content, path, value):
    """The content with another value in one place."""
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return content


@st.composite
def contents(draw, content, names=()):
    """The content with one or two entries replaced, left out, or added by one of the names."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from([p for p in places(content) if p]))
        kind = draw(st.sampled_from(["replace", "replace", "add", "delete"]))
        if kind == "add" and names:
            path = (draw(st.sampled_from(names)),)
        content = replaced(content, path, draw(st.sampled_from(HOSTILE)))
        if kind == "delete":
            holder = content
            for key in path[:-1]:
                holder = holder[key]
            del holder[path[-1]]
    return content


@st.composite
def raw(draw, content: bytes, head: int):
    """Bytes with some changed, mostly among the first `head`; or cut off, or grown."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["set", "set", "number", "number", "insert", "cut"]))
        last = min(head, len(changed)) if draw(st.integers(0, 4)) else len(changed)
        at = draw(st.integers(0, max(last - 1, 0)))
        if kind == "set":
            changed[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            width = draw(st.sampled_from([4, 8]))
            larger = [2**40, 2**63, 2**64 - 1] if width == 8 else []
            number = draw(st.sampled_from([0, 1, 2, 9, 2**20, 2**31 - 1, 2**32 - 1, *larger]))
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
        else:
            del changed[at:]
    return bytes(changed)


def load_or_clear_error(load):
    """What `load` gives, or None after one clear error, in bounded time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = ""
    with _limited():
        try:
            return load()
        except (ValueError, OSError) as error:
            message = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < _MOST_MEGABYTES
    assert 0 < len(message) < 1500, f"{len(message)} characters: {message[:300]}"
    assert message.count("\n") <= 12
    return None


@contextlib.contextmanager
def _limited():
    def stop(signum, frame):
        raise AssertionError(f"not done after {_MOST_SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
