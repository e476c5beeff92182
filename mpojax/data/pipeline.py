"""Batches as a pure function of (seed, step).

Because batch number s never depends on what was read before, a resumed run sees exactly the
batches that an uninterrupted one would have seen, and every process of a distributed run computes
its own rows alone. `TrainBatches` and `EvalBatches` are what training and evaluation take; what a
batch holds is up to their subclasses.
"""

import abc
import hashlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from mpojax import checks

Arrays = Mapping[str, np.ndarray]
Rows = slice | np.ndarray  # which rows of a batch

# (N, S): what is cropped
TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "context_mask")
# What only the host needs, to turn predictions back into text and to tell data apart by it: never
# part of a batch.
HOST_ARRAYS = ("offsets", "example_index", "text_hash")


class Batches(abc.ABC):
    """Batches by number: `data[number]` is a dict of arrays (rows, ...).

    Attributes:
      batch_size: rows of the global batch.
      num_examples: of an epoch.
    """

    def __init__(self, batch_size: int, num_examples: int):
        checks.check_value("batch_size", batch_size, checks.integer(1))
        self.batch_size, self.num_examples = batch_size, num_examples

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.rows(number, slice(None))

    @abc.abstractmethod
    def rows(self, number: int, rows: Rows) -> dict[str, np.ndarray]:
        """Only some rows of a batch: what one process of a distributed run loads."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Digest of the examples, by which a resumed run notices that they have changed."""

    def _num_batches(self) -> int:
        return -(-self.num_examples // self.batch_size)


class TrainBatches(Batches):
    """Endless shuffled batches.

    Every epoch has its own order. Epochs follow each other without a gap, so a batch may span two
    epochs. Rows are numbered over all batches: batches of another size hold the same rows in the
    same order.

    >>> class Squares(TrainBatches):
    ...     def fingerprint(self):
    ...         return "squares"
    ...
    ...     def make(self, numbers, rows):
    ...         return {"x": self.examples(numbers[rows]) ** 2}
    >>> sorted(Squares(batch_size=4, num_examples=4, seed=0)[5]["x"].tolist())
    [0, 1, 4, 9]
    """

    def __init__(self, batch_size: int, num_examples: int, seed: int):
        super().__init__(batch_size, num_examples)
        self.seed = seed
        self._order = self._endless(seed)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one epoch, rounded up."""
        return self._num_batches()

    def rows(self, step: int, rows: Rows) -> dict[str, np.ndarray]:
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        return self.make(step * self.batch_size + np.arange(self.batch_size), rows)

    def _endless(self, seed: int) -> grain.MapDataset:
        """Endless indices of examples."""
        return grain.MapDataset.range(self.num_examples).seed(seed % 2**32).shuffle().repeat(None)

    def examples(self, numbers: np.ndarray) -> np.ndarray:
        """The examples that stand at these numbers of the order."""
        return np.array([self._order[int(number)] for number in numbers], np.int64)

    @abc.abstractmethod
    def make(self, numbers: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
        """Some rows of the batch whose rows have these numbers in the order."""


class EvalBatches(Batches):
    """Every example exactly once, in batches of one static size.

    The last batch is filled up with copies of an example; `example_mask` (B,) bool is False there.

    Attributes:
      order: (N,) the example that stands at each place of the batches, one batch after another.
    """

    def __init__(self, batch_size: int, order: np.ndarray):
        super().__init__(batch_size, len(order))
        self.order = order

    def __len__(self) -> int:
        return self._num_batches()

    def rows(self, index: int, rows: Rows) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        examples = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        mask = np.arange(self.batch_size) < len(examples)
        examples = np.pad(examples, (0, self.batch_size - len(examples)), mode="edge")
        return self.make(examples, mask, rows) | {"example_mask": mask[rows]}

    @abc.abstractmethod
    def make(self, examples: np.ndarray, mask: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
        """Some rows of a batch of these examples, of which those outside the mask are copies."""


class TrainData(TrainBatches):
    """Endless shuffled batches of arrays.

    Args:
      arrays: arrays of equal first dimension N.
      batch_size: rows of the global batch.
      seed: of the order.
      lengths: static lengths to crop the `TOKEN_ARRAYS` of a batch to (bounds the number of
        compilations); needs "attention_mask" (N, S). Each batch is cropped to the least length
        that holds all its tokens. Empty: no crop.

    >>> data = TrainData({"x": np.arange(5)}, batch_size=2, seed=0)
    >>> data[7]["x"].tolist() == data.rows(7, slice(0, 2))["x"].tolist(), data.steps_per_epoch
    (True, 3)
    """

    def __init__(self, arrays: Arrays, batch_size: int, *, seed: int, lengths: Sequence[int] = ()):
        super().__init__(batch_size, _num_examples(arrays), seed)
        self._arrays, self._crop = arrays, _Crop(arrays, lengths)

    def fingerprint(self) -> str:
        return fingerprint(self._arrays)

    def make(self, numbers: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
        # The length is that of the whole batch: all processes must agree on it.
        return self._crop(self.examples(numbers), rows)


class EvalData(EvalBatches):
    """Every example of arrays exactly once.

    With `lengths` (see `TrainData`), examples are grouped by length (stable), which saves padding.

    >>> EvalData({"x": np.arange(3)}, batch_size=2)[1]
    {'x': array([2, 2]), 'example_mask': array([ True, False])}
    """

    def __init__(self, arrays: Arrays, batch_size: int, *, lengths: Sequence[int] = ()):
        count = _num_examples(arrays)
        self._arrays, self._crop = arrays, _Crop(arrays, lengths)
        super().__init__(batch_size, self._crop.by_length() if len(lengths) else np.arange(count))

    def fingerprint(self) -> str:
        return fingerprint(self._arrays)

    @property
    def host_arrays(self) -> dict[str, np.ndarray]:
        """The `HOST_ARRAYS` among the arrays, in the order of the examples."""
        return {name: self._arrays[name] for name in HOST_ARRAYS if name in self._arrays}

    def make(self, examples: np.ndarray, mask: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
        return self._crop(examples, rows)


class _Crop:
    """Gathers examples and cuts token arrays to the least allowed length that holds them."""

    def __init__(self, arrays: Arrays, lengths: Sequence[int]):
        self._arrays = {name: a for name, a in arrays.items() if name not in HOST_ARRAYS}
        self._lengths = None
        if not len(lengths):
            return
        if "attention_mask" not in arrays:
            raise ValueError(f"lengths={tuple(lengths)} needs an array 'attention_mask' (N, S)")
        shape = arrays["attention_mask"].shape
        for name in TOKEN_ARRAYS:
            if name in arrays and arrays[name].shape != shape:
                raise ValueError(
                    f"{name} has shape {arrays[name].shape}, attention_mask {shape}; token arrays "
                    "must have equal shapes"
                )
        full = shape[1]
        # The full length is always allowed, so that every batch finds one.
        self._allowed = np.array(sorted({min(int(n), full) for n in lengths} | {full}))
        # Place of the last real token, so that left-padded masks are never cut.
        mask = arrays["attention_mask"] != 0
        self._lengths = np.where(mask.any(1), full - np.argmax(mask[:, ::-1], 1), 1)

    def by_length(self) -> np.ndarray:
        return np.argsort(self._lengths, kind="stable")

    def __call__(self, examples: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
        chosen = examples[rows]
        if self._lengths is None:
            return {name: array[chosen] for name, array in self._arrays.items()}
        # The least allowed length that is not below the longest example of the whole batch.
        length = self._allowed[np.searchsorted(self._allowed, self._lengths[examples].max())]
        return {
            name: array[chosen, :length] if name in TOKEN_ARRAYS else array[chosen]
            for name, array in self._arrays.items()
        }


def fingerprint(arrays: Arrays) -> str:
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


def _num_examples(arrays: Arrays) -> int:
    if not arrays:
        raise ValueError("arrays is empty; pass at least one array")
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"arrays must have equal first dimensions; got {sizes}")
    if min(sizes.values()) == 0:
        raise ValueError("arrays hold no examples")
    return next(iter(sizes.values()))
