"""Reads character vectors from the data files of an R package, without R.

R keeps the data of a package in two files: an index of (offset, length) pairs by name (`.rdx`,
compressed) and the objects themselves (`.rdb`: each a big-endian length and a zlib stream). Both
hold R's binary serialisation, of which only what such files need is read here: lists, names,
strings, integers. Nothing is evaluated.
"""

import gzip
import struct
import zlib

# Types of R's serialisation (R Internals, section 1.8).
_SYMBOL, _PAIRLIST, _CHARACTERS, _LOGICAL, _INTEGER = 1, 2, 9, 10, 13
_STRINGS, _LIST, _REFERENCE, _NIL = 16, 19, 255, 254


def read_objects(index: bytes, objects: bytes) -> dict[str, list[str]]:
    """{name: strings} of the `.rdx` and `.rdb` files of a package's data.

    Raises:
      ValueError: another layout than described above.
    """
    try:
        places = _Reader(gzip.decompress(index)).read()["variables"]
        return {
            name: _Reader(_decompress(objects[offset : offset + length])).read()
            for name, (offset, length) in places.items()
        }
    except (struct.error, zlib.error, OSError, KeyError, TypeError) as error:
        raise ValueError(f"not the data files of an R package: {error}") from error


def _decompress(content: bytes) -> bytes:
    (size,) = struct.unpack(">I", content[:4])
    result = zlib.decompress(content[4:])
    if len(result) != size:
        raise ValueError(f"an R object has {len(result)} bytes, its header says {size}")
    return result


class _Reader:
    """One serialised object: vectors become Python lists, named lists become dicts."""

    def __init__(self, content: bytes):
        if content[:2] != b"X\n":
            raise ValueError("not an R object in binary serialisation")
        self._content, self._place, self._symbols = content, 2, []
        version, _, _ = (self._int() for _ in range(3))
        if version == 3:
            self._take(self._int())  # the native encoding; strings say their own
        elif version != 2:
            raise ValueError(f"R serialisation of version {version}; 2 and 3 are known")

    def read(self):
        flags = self._int()
        kind, has_attributes, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
        if kind == _NIL:
            return None
        if kind == _REFERENCE:
            return self._symbols[(flags >> 8 or self._int()) - 1]
        if kind == _SYMBOL:
            self._symbols.append(self.read())
            return self._symbols[-1]
        if kind == _CHARACTERS:
            size = self._int()
            return None if size == -1 else self._take(size).decode("utf-8")
        if kind == _PAIRLIST:
            return self._pairs(has_attributes, has_tag)
        if kind in (_INTEGER, _LOGICAL):
            size = self._int()
            values = list(struct.unpack(f">{size}i", self._take(4 * size)))
        elif kind in (_STRINGS, _LIST):
            values = [self.read() for _ in range(self._int())]
        else:
            raise ValueError(f"an R object of type {kind}, which is not read here")
        names = self.read().get("names") if has_attributes else None
        return dict(zip(names, values, strict=True)) if names else values

    def _pairs(self, has_attributes: int, has_tag: int) -> dict:
        if has_attributes:
            self.read()
        tag = self.read() if has_tag else None
        return {tag: self.read()} | (self.read() or {})

    def _int(self) -> int:
        return struct.unpack(">i", self._take(4))[0]

    def _take(self, size: int) -> bytes:
        self._place += size
        return self._content[self._place - size : self._place]
