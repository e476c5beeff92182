"""GGUF files, the format of llama.cpp: settings and tensors, through the optional package gguf.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from mpojax import checks, files

SUFFIX = ".gguf"


def find(source: str | os.PathLike) -> pathlib.Path | None:
    """The GGUF file that `source` is, or holds as its only model; None where it is neither.

    Raises:
      ValueError: a folder with several GGUF files and no config.json.
    """
    path = pathlib.Path(source)
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} GGUF files ({', '.join(f.name for f in found[:5])}); give "
            "the path of one of them."
        )
    return found[0] if found else None


class GGUFFile:
    """An open GGUF file; tensors are read when they are asked for."""

    def __init__(self, path: str | os.PathLike):
        """Reads the header.

        Raises:
          ImportError: the package gguf is not installed.
          FileNotFoundError: no such file.
          ValueError: a damaged file, an unknown quantisation, or one part of a split model.
        """
        self.path = files.local(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no GGUF file at {self.path}.")
        files.check_fetched(self.path)
        self._gguf = _package(self.path)
        self._size = self.path.stat().st_size
        with _explained(f"{self.path} ({self._size} bytes) is not a complete GGUF file"):
            self._reader = _reader(self._gguf)(self.path)
        parts = self.get("split.count", 0)
        if parts not in (0, 1):
            raise ValueError(
                f"{self.path} is one of {parts} parts of a model; join them first "
                "(llama-gguf-split --merge)."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata: a number, a string, a bool or a list of them."""
        field = self._reader.get_field(key)
        with _explained(f"{self.path}: {key} in its metadata is damaged"):
            return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """The same for a key that must be there.

        Raises:
          ValueError: it is not.
        """
        if (value := self.get(key)) is None:
            raise ValueError(f"{self.path} lacks {key} in its metadata.")
        return value

    def tensors(self) -> dict[str, files.StoredArray]:
        """All tensors by name, the fastest axis last; in float32 when they are read.

        Then raises ValueError for a quantisation that the package cannot undo; names the tensor.
        """
        tensors = self._reader.tensors
        total = sum(math.prod(map(int, tensor.shape)) for tensor in tensors)
        # The smallest types keep eight elements or so in a byte; tensors may overlap in no file.
        if total > 16 * self._size:
            raise ValueError(f"{self.path} is too small for the {total:,} elements of its tensors.")
        return {tensor.name: self._stored(tensor) for tensor in tensors}

    def _stored(self, tensor) -> files.StoredArray:
        # ggml lists the fastest axis first.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return files.StoredArray(shape, np.float32, lambda: self._dequantised(tensor, shape))

    def _dequantised(self, tensor, shape: tuple[int, ...]) -> np.ndarray:
        kind, name = tensor.tensor_type, checks.cut(tensor.name)
        what = (
            f"{self.path}: tensor {name} has type {kind.name}, which the package gguf cannot read"
        )
        with _explained(what), np.errstate(all="ignore"):  # What is not finite is refused by name.
            array = self._gguf.dequantize(tensor.data, kind)
        return np.asarray(array, np.float32).reshape(shape)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the package inside it are a ValueError that begins with `what`."""
    advice = "It is corrupt or was cut short; copy or download it again."
    try:
        yield
    except (ValueError, LookupError, ArithmeticError, TypeError, RuntimeError) as error:
        reason = checks.cut(str(error))
        if "GGMLQuantizationType" in reason:
            what += "; it has a quantisation that the package gguf does not know"
        if "GGMLQuantizationType" in reason or isinstance(error, NotImplementedError):
            advice = "Use a file in another quantisation, such as Q8_0 or F16, or a newer gguf."
        raise ValueError(f"{what}: {reason}. {advice}") from error


def _reader(gguf: ModuleType) -> type:
    """The package's reader, which at the end of a file gives arrays that are too short; it then
    reads counts of a damaged header for hours.
    """

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)  # whose slices cost a third

        def _get(self, offset, dtype, count=1, override_order=None):
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if int(offset) < 0 or end > len(self.data):
                raise ValueError(f"bytes {int(offset)} to {end} are not there")
            return super()._get(int(offset), dtype, int(count), override_order)

    return Reader


def _package(path: pathlib.Path) -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"{path} is a GGUF file. To read it: pip install -e '.[gguf]' (or pip install gguf)."
        ) from error
    return gguf
