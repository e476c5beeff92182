"""Factors in 8 bits: q = round(f / s), s = the largest magnitude of a column of f, over 127.

A core (..., p, i, j, q) is a matrix of rows (p, i) and columns (j, q); of a low-rank chain A B each
column of A and each column of B has a scale of its own. The error of an entry is at most s / 2.
"""

from collections.abc import Collection, Mapping

import numpy as np

from mpojax.models.arrays import is_floating

DTYPES = ("float32", "int8")
SCALE = "_scale"  # ends the name of the array with the scales, float32
_ROWS = (-4, -3)


def core_names(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Paths of the cores of chains; the order of a pivoted one's columns, integers, is none."""
    return [name for name, a in arrays.items() if "/cores/" in name and is_floating(a)]


def quantized(arrays: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays with those of these names as int8, each with float32 scales next to it.

    Example:
      >>> import numpy as np
      >>> from mpojax.io import quantization
      >>> core = np.random.default_rng(0).standard_normal((1, 64, 1, 8)).astype(np.float32)
      >>> small = quantization.quantized({"a/cores/0": core}, ["a/cores/0"])
      >>> [(name, array.dtype.name, array.shape) for name, array in small.items()]
      [('a/cores/0', 'int8', (1, 64, 1, 8)), ('a/cores/0_scale', 'float32', (1, 1, 1, 8))]
      >>> again = quantization.dequantized(small)["a/cores/0"]
      >>> bool(np.abs(again - core).max() < np.abs(core).max() / 250)
      True
    """
    found = dict(arrays)
    for name in names:
        found[name], found[name + SCALE] = quantize(arrays[name])
    return found


def quantize(core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 core, float32 scales) whose product is the core (..., p, i, j, q) up to rounding."""
    core = np.asarray(core, np.float32)
    largest = np.abs(core).max(axis=_ROWS, keepdims=True)
    # A column of zeros keeps a scale that can be divided by.
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(127)
    # At most 127 in magnitude, since the largest entry of a column is 127 scales.
    return np.rint(core / scale).astype(np.int8), scale


def dequantized(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `quantized`: int8 arrays multiplied by their scales; others as they are.

    Raises:
      ValueError: an int8 array whose scales are missing or do not fit.
    """
    found = dict(tensors)
    for name in [name for name, tensor in tensors.items() if tensor.dtype == np.int8]:
        scale = found.pop(name + SCALE, None)
        shape = list(tensors[name].shape)
        # One scale for each column (j, q).
        shape[-4:-2] = 1, 1
        if scale is None or list(scale.shape) != shape:
            given = "is missing" if scale is None else f"has shape {scale.shape}"
            raise ValueError(
                f"{name} is int8, so {name + SCALE} must have shape {tuple(shape)}; it {given}."
            )
        found[name] = np.asarray(tensors[name]) * np.asarray(scale, np.float32)
    return found
