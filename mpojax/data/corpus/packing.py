"""Packing: the tokens of documents that make up each row of pre-training data.

A document is cut into consecutive pieces of at most a row, and pieces are packed several to a row.
Pieces either fill their row to the last token, or end where a sentence ends; then none starts in
the middle of a sentence, which would give away the order of its halves. All of it follows from the
lengths of documents and sentences: numpy, no randomness, no text is read.
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
        """Fraction of all positions that hold neither text nor a piece's special tokens."""
        used = int(self.size.sum()) + self.overhead * len(self.size)
        return 1 - used / (len(self) * self.length)


def build_index(
    lengths: np.ndarray,
    length: int,
    *,
    sentences: np.ndarray | None = None,
    overhead: int = 3,
    pack: bool = True,
    max_segments: int = 8,
) -> RowIndex:
    """The rows of one epoch: every token of every document once.

    Args:
      lengths: (N,) tokens of each document, none of them 0.
      length: tokens of a row.
      sentences: (M,) where the sentences of each document start, one document after another, from 0
        in each: pieces then end where a sentence ends, or inside of one that is longer than a row.
        None: they fill their rows.
      overhead: special tokens of a piece: 3 for `[CLS] A [SEP] B [SEP]`.
      pack: several pieces to a row where they fit; else each has a row of its own.
      max_segments: most pieces of a row.

    Raises:
      ValueError: there is no document, or a row holds no token of text.
    """
    capacity = length - overhead
    if capacity < 1 or max_segments < 1:
        raise ValueError(
            f"length={length} must be above the {overhead} special tokens of a piece, and "
            f"max_segments={max_segments} at least 1"
        )
    lengths = np.asarray(lengths, np.int64)
    if not lengths.size or lengths.min() < 1:
        raise ValueError("there is no document, or one without a token")
    if sentences is None:
        document, start = _full_pieces(lengths, capacity)
    else:
        document, start = _sentence_pieces(lengths, np.asarray(sentences, np.int64), capacity)
    # The next piece starts where this one ends, or is that of another document.
    last = np.append(document[1:] != document[:-1], True)
    size = np.where(last, lengths[document], np.append(start[1:], 0)) - start
    order, counts = np.arange(len(size)), np.ones(len(size), np.int64)
    if pack:
        order, counts = _pack(size + overhead, length, max_segments)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return RowIndex(length, overhead, offsets, document[order], start[order], size[order])


def _full_pieces(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, start) of pieces of `capacity` tokens; the last of a document may be shorter."""
    count = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths)), count)
    # Number of the piece within its document, times the capacity.
    return document, (
        np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    ) * capacity


def _sentence_pieces(
    lengths: np.ndarray, sentences: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """(document, start) of pieces of as many whole sentences as `capacity` tokens hold."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    if np.count_nonzero(sentences == 0) != len(lengths):
        raise ValueError(f"sentences must hold one 0 for each of the {len(lengths)} documents")
    # Places in all documents, one after another. Sentences that are too long become several.
    # A 0 opens the next document, so their running count is the number of the document.
    begins_at = sentences + begins[np.cumsum(sentences == 0) - 1]
    sizes = np.diff(begins_at, append=ends[-1])
    if sentences[0] or sizes.min() < 1:
        raise ValueError("sentences must ascend within each document, from 0, below its length")
    parts = -(-sizes // capacity)
    # Part k of a long sentence starts k * capacity behind its start.
    begins_at = np.repeat(begins_at, parts) + capacity * (
        np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    )
    document = np.searchsorted(ends, begins_at, "right")
    # Numbers of sentences: the first of each document; per sentence, that of the next one.
    first = np.searchsorted(begins_at, begins)
    stop = np.append(first[1:], len(begins_at))[document]
    # The sentence with which the next piece starts, for a piece that starts with each.
    bounds = np.append(begins_at, ends[-1])
    # The last start that is at most `capacity` away: all before it fits.
    following = np.minimum(np.searchsorted(bounds, begins_at + capacity, "right") - 1, stop)
    chosen, current = [], first  # one step in all documents at once
    while current.size:
        chosen.append(current)
        ahead = following[current]
        # Documents that are through drop out.
        current = ahead[ahead < stop[current]]
    chosen = np.sort(np.concatenate(chosen))
    return document[chosen], begins_at[chosen] - begins[document[chosen]]


def _pack(sizes: np.ndarray, capacity: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of rows: (order of the items, items of each row), best fit with large sizes first.

    Equal sizes are placed together, so the time goes with the number of different sizes.
    """
    small = sizes.astype(np.uint16) if capacity < 2**16 else sizes  # numpy sorts these faster
    order = np.argsort(small, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    position = np.cumsum(counts) - counts  # next item of each size
    items, per_row = [], []
    for parts, rows in _patterns(counts, capacity, most):
        columns = []
        for size in parts:
            columns.append(order[position[size] : position[size] + rows])
            # Which items of a size go where does not matter: they are handed out in order.
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
            # As many of this size as a row of this kind takes, in all the rows that can take as
            # many; what is left over of either comes in the next round.
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
