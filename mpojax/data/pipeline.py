"""Batches as a pure function of (seed, step).

Because batch number s never depends on what was read before, a resumed run sees exactly the
batches that an uninterrupted one would have seen, and every process of a distributed run computes
its own rows alone.
"""

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from mpojax.data import fingerprint

Arrays = Mapping[str, np.ndarray]

# (N, S): what is cropped
TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "context_mask")
# What only the host needs, to turn predictions back into text and to tell data apart by it: never
# part of a batch.
HOST_ARRAYS = ("offsets", "example_index", "text_hash")


class TrainData:
    """Endless shuffled batches: `data[step]` is a dict of arrays (rows, ...).

    Every epoch has its own order. Epochs follow each other without a gap, so a batch may span two
    epochs.

    Args:
      arrays: arrays of equal first dimension N.
      batch_size: rows of the global batch.
      seed: of the order.
      lengths: static lengths to crop the `TOKEN_ARRAYS` of a batch to (bounds the number of
        compilations); needs "attention_mask" (N, S). Each batch is cropped to the least length
        that holds all its tokens. Empty: no crop.
    """

    def __init__(self, arrays: Arrays, batch_size: int, *, seed: int, lengths: Sequence[int] = ()):
        self.num_examples = _check(arrays, batch_size)
        self.batch_size = batch_size
        self._arrays = arrays
        self._crop = _Crop(arrays, lengths)
        self._order = self._examples(seed).batch(batch_size)

    def _examples(self, seed: int) -> grain.MapDataset:
        """Endless indices of examples."""
        order = grain.MapDataset.source(np.arange(self.num_examples)).seed(seed).shuffle()
        return order.repeat(None)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Only some rows of batch `step`: what one process of a distributed run loads."""
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        examples = self._order[step]
        # The length is that of the whole batch: all processes must agree on it.
        return self._crop(examples, rows)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one epoch, rounded up."""
        return -(-self.num_examples // self.batch_size)

    def fingerprint(self) -> str:
        """Digest of the examples."""
        return fingerprint.of_arrays(self._arrays)


class EvalData:
    """Every example exactly once, in batches of one static size.

    The last batch is filled up with copies of an example; `example_mask` (B,) bool is False there.
    With `lengths` (see `TrainData`), examples are grouped by length (stable), which saves padding.

    Attributes:
      order: (N,) the example that stands at each place of the batches, one batch after another.
    """

    def __init__(self, arrays: Arrays, batch_size: int, *, lengths: Sequence[int] = ()):
        self.num_examples = _check(arrays, batch_size)
        self.batch_size = batch_size
        self._arrays = arrays
        self._crop = _Crop(arrays, lengths)
        self.order = self._crop.by_length() if len(lengths) else np.arange(self.num_examples)

    def fingerprint(self) -> str:
        """Digest of the examples."""
        return fingerprint.of_arrays(self._arrays)

    @property
    def host_arrays(self) -> dict[str, np.ndarray]:
        """The `HOST_ARRAYS` among the arrays, in the order of the examples."""
        return {name: self._arrays[name] for name in HOST_ARRAYS if name in self._arrays}

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.rows(index, slice(None))

    def rows(self, index: int, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Only some rows of batch `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        examples = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        mask = np.arange(self.batch_size) < len(examples)
        examples = np.pad(examples, (0, self.batch_size - len(examples)), mode="edge")
        return self._crop(examples, rows) | {"example_mask": mask[rows]}


class _Crop:
    """Gathers examples and cuts token arrays to the least allowed length that holds them."""

    def __init__(self, arrays: Arrays, lengths: Sequence[int]):
        self._arrays = arrays
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
        self._allowed = np.array(sorted({min(int(n), full) for n in lengths} | {full}))
        # Place of the last real token, so that left-padded masks are never cut.
        mask = arrays["attention_mask"] != 0
        self._lengths = np.where(mask.any(1), full - np.argmax(mask[:, ::-1], 1), 1)

    def by_length(self) -> np.ndarray:
        return np.argsort(self._lengths, kind="stable")

    def __call__(self, examples: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        chosen = examples[rows]
        arrays = {name: a for name, a in self._arrays.items() if name not in HOST_ARRAYS}
        if self._lengths is None:
            return {name: array[chosen] for name, array in arrays.items()}
        length = self._allowed[np.searchsorted(self._allowed, self._lengths[examples].max())]
        return {
            name: array[chosen, :length] if name in TOKEN_ARRAYS else array[chosen]
            for name, array in arrays.items()
        }


def _check(arrays: Arrays, batch_size: int) -> int:
    if not arrays:
        raise ValueError("arrays is empty; pass at least one array")
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"arrays must have equal first dimensions; got {sizes}")
    if min(sizes.values()) == 0:
        raise ValueError("arrays hold no examples")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    return next(iter(sizes.values()))
