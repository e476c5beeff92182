"""Which tokens of which documents make up each row of pre-training data.

A document is cut into consecutive pieces that fill a row; what remains of it at the end is packed
with the remains of other documents, several to a row. All of it follows from the documents'
lengths: numpy, no randomness, no text is read.
"""

import bisect
import collections
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowIndex:
    """Rows as lists of pieces; row r has the pieces `offsets[r]` to `offsets[r + 1]`.

    Attributes:
      length: of a row, in tokens.
      overhead: special tokens of a piece.
      offsets: (R + 1,) int64.
      document, start, size: (pieces,) int64: tokens start to start + size of a document.
    """

    length: int
    overhead: int
    offsets: np.ndarray
    document: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def padding_share(self) -> float:
        """Share of the places of all rows that hold neither text nor a piece's special tokens."""
        used = int(self.size.sum()) + self.overhead * len(self.size)
        return 1 - used / (len(self) * self.length)


def build_index(
    lengths: np.ndarray, length: int, *, overhead: int = 3, pack: bool = True, max_segments: int = 8
) -> RowIndex:
    """The rows of one epoch: every token of every document once.

    Args:
      lengths: (N,) tokens of each document.
      length: tokens of a row.
      overhead: special tokens of a piece: 3 for `[CLS] A [SEP] B [SEP]`.
      pack: several remains to a row; else each has a row of its own.
      max_segments: most pieces of a row.

    Raises:
      ValueError: there is no document with a token, or a row has no room for text.
    """
    room = length - overhead
    if room < 1 or max_segments < 1:
        raise ValueError(
            f"length={length} must be above the {overhead} special tokens of a piece, and "
            f"max_segments={max_segments} at least 1"
        )
    lengths = np.asarray(lengths, np.int64)
    if not lengths.size or not lengths.any():
        raise ValueError("no document has a token; there is nothing to make rows of")
    full, rest = lengths // room, lengths % room
    document = np.repeat(np.arange(len(lengths)), full)
    number = np.arange(len(document)) - np.repeat(np.cumsum(full) - full, full)
    remains = np.flatnonzero(rest)
    if pack:
        order, counts = _pack(rest[remains] + overhead, length, max_segments)
        remains = remains[order]
    else:
        counts = np.ones(len(remains), np.int64)
    counts = np.concatenate([np.ones(len(document), np.int64), counts])
    return RowIndex(
        length,
        overhead,
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([document, remains]),
        np.concatenate([number, full[remains]]) * room,
        np.concatenate([np.full(len(document), room), rest[remains]]),
    )


def _pack(sizes: np.ndarray, capacity: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of rows: (order of the items, items of each row), best fit with large sizes first.

    Equal sizes are placed together, so the time goes with the number of different sizes.
    """
    order = np.argsort(sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    position = np.cumsum(counts) - counts  # next item of each size
    items, per_row = [], []
    for parts, rows in _patterns(counts, capacity, most):
        columns = []
        for size in parts:
            columns.append(order[position[size] : position[size] + rows])
            position[size] += rows
        items.append(np.stack(columns, axis=1).ravel())
        per_row.append(np.full(rows, len(parts)))
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *items]), np.concatenate([empty, *per_row])


def _patterns(counts: np.ndarray, capacity: int, most: int) -> list[tuple[tuple[int, ...], int]]:
    """[(sizes that share a row, number of such rows)] that place `counts[s]` items of size s."""
    # Rows that are begun, by the space that is left in them: {space: {sizes: rows}}.
    begun = collections.defaultdict(collections.Counter)
    begun[capacity][()] = int(counts.sum())  # more than are ever begun
    spaces, closed = [capacity], []
    for size in range(capacity, 0, -1):
        left = int(counts[size])
        while left:
            # The least space that is enough: what is left over there is of little use to others.
            space = spaces[bisect.bisect_left(spaces, size)]
            parts = next(iter(begun[space]))
            copies = min(space // size, most - len(parts), left)
            rows = min(begun[space][parts], left // copies)
            begun[space][parts] -= rows
            if not begun[space][parts]:
                del begun[space][parts]
            if not begun[space]:
                del begun[space]
                spaces.remove(space)
            left -= rows * copies
            parts, space = parts + (size,) * copies, space - size * copies
            if space and len(parts) < most:
                if space not in begun:
                    bisect.insort(spaces, space)
                begun[space][parts] += rows
            else:
                closed.append((parts, rows))
    rest = [(parts, rows) for space in spaces for parts, rows in begun[space].items() if parts]
    return closed + rest
