"""Fingerprints of data: by which a resumed run notices that its files have changed."""

import hashlib
from collections.abc import Mapping

import numpy as np


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal digest of arrays with their names, types and shapes.

    Raises:
      ValueError: an array of Python objects, in whose memory only their addresses stand.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.hasobject:
            raise ValueError(
                f"array {name!r} is of type {array.dtype}, whose contents no digest sees: give it "
                "a type of fixed size, such as int32"
            )
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
