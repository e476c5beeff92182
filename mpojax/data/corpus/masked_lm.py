"""Batches for pre-training: masked language modelling and sentence order.

A row holds one or more pieces `[CLS] A [SEP] B [SEP]`. A and B are neighbours in one document; with
probability 1/2 they are swapped, and the sentence-order label says so. What a batch holds is a pure
function of (seed, step), whatever was read before and whichever process asks.
"""

import functools

import numpy as np

from mpojax.data import pipeline
from mpojax.data.corpus import packing
from mpojax.data.corpus.corpus import Corpus
from mpojax.data.corpus.masking import Masking, Randomness, mask_tokens

# Random streams of a row; `masking` has those below.
_ORDER, _BOUNDARY = 8, 9


class _Rows:
    """Makes rows of a split of a corpus out of their numbers and their randomness."""

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        length: int,
        *,
        seed: int,
        masking: Masking | None = None,
        sop: bool = True,
        pack: bool = True,
        max_segments: int = 8,
        whole_sentences: bool | None = None,
        memory: int = 2**30,
    ):
        masking = masking or Masking()
        self.length, self.masking, self.sop, self.pack = length, masking, sop, pack
        self.max_segments = max_segments if pack else 1
        self._corpus, self._split, self._seed, self._memory = corpus, split, seed, memory
        whole_sentences = sop if whole_sentences is None else whole_sentences
        self.index = packing.build_index(
            corpus.lengths(split),
            length,
            sentences=corpus.sentences(split) if whole_sentences else None,
            overhead=3 if sop else 2,
            pack=pack,
            max_segments=max_segments,
        )
        ordinary = np.ones(corpus.vocab_size, bool)
        ordinary[list(corpus.special)] = False
        self._ordinary, self._replacements = ordinary, np.flatnonzero(ordinary)

    def fingerprint(self) -> str:
        return self._corpus.fingerprint(self._split)

    @functools.cached_property
    def _reader(self):
        return self._corpus.reader(self._split, self._memory)

    def __call__(self, numbers: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `numbers` (B,) of the index; `draws` (B,) number their randomness."""
        random = Randomness(self._seed, draws)
        first, last = self.index.offsets[numbers], self.index.offsets[numbers + 1]
        # One entry per piece: its row within the batch, its position within the row.
        row = np.repeat(np.arange(len(numbers)), last - first)
        slot = _count_within(last - first)
        piece = first[row] + slot
        documents, indices = self._reader.gather(self.index.document[piece])
        start = documents.starts[indices] + self.index.start[piece]
        size = self.index.size[piece]
        cut, swapped = self._cut(documents, start, size, row, slot, random)
        arrays, starts = self._lay_out(documents.tokens, start, size, row, slot, cut, swapped)
        ids = arrays["input_ids"]
        arrays |= mask_tokens(
            ids,
            self._ordinary[ids],
            starts | self._corpus.word_starts[ids],
            self.masking,
            random,
            self._corpus.special,
            self._replacements,
        )
        return arrays

    def _cut(self, documents, start, size, row, slot, random) -> tuple[np.ndarray, np.ndarray]:
        """Of each piece, the tokens of A, and whether B comes first; all are A without SOP.

        B starts with a sentence, in a piece of one sentence with a word, else with any token.
        """
        if not self.sop:
            return size, np.zeros(len(size), bool)
        uniform = random.uniform(_BOUNDARY, slot, row)
        cut = 1 + (uniform * (size - 1)).astype(np.int64)
        # Sentences that start within the piece, but not with it.
        # (`low` is the first of them, `choices` is how many there are.)
        sentences = documents.sentences
        low = np.searchsorted(sentences, start, "right")
        choices = np.searchsorted(sentences, start + size, "left") - low
        several = np.flatnonzero(choices)
        chosen = low[several] + (uniform * choices)[several].astype(np.int64)
        cut[several] = sentences[chosen] - start[several]
        # Words likewise.
        single = np.flatnonzero(choices == 0)
        n, piece = _count_within(size[single]), np.repeat(np.arange(len(single)), size[single])
        tokens = documents.tokens[start[single][piece] + n]
        words = np.flatnonzero(self._corpus.word_starts[tokens] & (n > 0))
        choices = np.bincount(piece[words], minlength=len(single))
        # `words` lists the candidates piece after piece; those of a piece begin at the sum of the
        # choices before it.
        chosen = np.cumsum(choices) - choices + (uniform[single] * choices).astype(np.int64)
        several = choices > 0
        cut[single[several]] = n[words[chosen[several]]]
        swapped = random.uniform(_ORDER, slot, row) < 0.5
        # A single token has no order.
        return np.where(size > 1, cut, size), swapped & (size > 1)

    def _lay_out(self, tokens, start, size, row, slot, cut, swapped):
        """Unmasked arrays of the batch, and (B, S) bool where A and B start."""
        special, shape = self._corpus.special, (row.max() + 1, self.length)
        paired = cut < size
        # [CLS], [SEP], and a second [SEP] behind B.
        used = size + 2 + paired
        # Where each piece starts in its row.
        ends = np.cumsum(used)
        position = ends - used
        # From places in the whole batch to places in the row: less that of the row's first piece.
        position -= np.repeat(position[slot == 0], np.bincount(row))
        ids = np.full(shape, special.pad, np.int32)
        types, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        starts = np.zeros(shape, bool)
        leading = np.where(swapped, size - cut, cut)  # tokens of the part that comes first
        # Every token of every piece.
        n = _count_within(size)
        piece = np.repeat(np.arange(len(size)), size)
        # A comes first unless swapped; the second part stands behind the other and its [SEP].
        in_a = n < cut[piece]
        first = in_a != swapped[piece]
        within = n - np.where(in_a, 0, cut[piece]) + np.where(first, 0, leading[piece] + 1)
        # 1 for [CLS].
        column = position[piece] + 1 + within
        ids[row[piece], column] = tokens[start[piece] + n]
        types[row[piece], column] = ~first
        segments[row[piece], column] = slot[piece] + 1
        starts[row, position + 1] = True
        # [CLS], the leading part and [SEP] stand before it.
        starts[row[paired], (position + leading + 2)[paired]] = True
        final = position + used - 1
        for where, token, kind in (
            (position, special.cls, 0),
            (position + leading + 1, special.sep, 0),
            (final, special.sep, paired),
        ):
            ids[row, where], types[row, where], segments[row, where] = token, kind, slot + 1
        arrays = {
            "input_ids": ids,
            "attention_mask": (segments > 0).astype(np.int32),
            "token_type_ids": types,
        }
        if self.pack:
            arrays["segments"] = segments
        if self.sop:
            arrays |= self._sop(shape[0], row, slot, position, swapped, paired)
        return arrays, starts

    def _sop(self, rows, row, slot, position, swapped, paired) -> dict[str, np.ndarray]:
        shape = (rows, self.max_segments)
        arrays = {
            "sop_positions": np.zeros(shape, np.int32),
            "sop_labels": np.zeros(shape, np.int32),
            "sop_weights": np.zeros(shape, np.float32),
        }
        arrays["sop_positions"][row, slot] = position
        arrays["sop_labels"][row, slot] = swapped
        arrays["sop_weights"][row, slot] = paired
        return arrays


def _count_within(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... size - 1 for each size, one after another."""
    # Place in the whole less the place where the own size begins.
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


class _OfCorpus:
    """Common part of training and evaluation data."""

    _rows: _Rows

    def fingerprint(self) -> str:
        """Digest of the part of the corpus that the rows are of."""
        return self._rows.fingerprint()

    @property
    def padding_share(self) -> float:
        """Fraction of padding in the rows of an epoch."""
        return self._rows.index.padding_share


class PretrainData(_OfCorpus, pipeline.TrainBatches):
    """Endless shuffled batches of masked rows.

    Every epoch has its own order, masks, cuts and swaps; only which tokens share a row stays.

    A batch of B rows of S tokens holds input_ids, attention_mask, token_type_ids (B, S) int32,
    with packing segments (B, S) int32 (0 = padding, 1.. = pieces); mlm_positions, mlm_labels (B, P)
    int32, mlm_weights (B, P) float32; with sop sop_positions (those of [CLS]), sop_labels (1 =
    swapped) (B, K) int32, sop_weights (B, K) float32. Weights of 0 mark fillers. P is
    `masking.predictions(length)`, K is `max_segments`, or 1 without packing.

    Args:
      corpus: an open corpus.
      batch_size: rows of the global batch.
      length: S.
      seed: of everything random.
      split: of the corpus.
      masking: how tokens are masked; None: `Masking()`.
      sop: pairs with sentence-order labels; else a piece is `[CLS] A [SEP]`.
      pack: short pieces share rows. Off: one piece per row.
      max_segments: most pieces of a row.
      whole_sentences: pieces end where a sentence ends. Off: where the row ends, which leaves
        hardly any padding, but broken sentences give away the order that sop asks for.
        None: as `sop`.
      memory: bytes up to which the whole split is held in memory; else it is read as needed.

    Attributes:
      num_examples: rows of an epoch.

    Raises:
      ValueError: a setting that makes no sense, or a split that is not there or empty.
    """

    def __init__(self, corpus, batch_size, length=128, *, seed, split="train", **settings):
        self._rows = _Rows(corpus, split, length, seed=seed, **settings)
        super().__init__(batch_size, len(self._rows.index), seed)

    def make(self, numbers: np.ndarray, rows: pipeline.Rows) -> dict[str, np.ndarray]:
        numbers = numbers[rows]  # no other rows are read or made
        return self._rows(self.examples(numbers), numbers)


class PretrainEvalData(_OfCorpus, pipeline.EvalBatches):
    """Every row of a split exactly once, always with the same masks, cuts and swaps.

    The arrays are those of `PretrainData` and example_mask (B,) bool, False where the last batch is
    filled up with copies. With `num_rows` only so many rows, spread over the split.
    """

    def __init__(
        self, corpus, batch_size, length=128, *, seed=0, split="valid", num_rows=None, **settings
    ):
        self._rows = _Rows(corpus, split, length, seed=seed, **settings)
        whole = len(self._rows.index)
        count = min(num_rows or whole, whole)
        # Evenly over the split, so that a part of it has all kinds of documents.
        super().__init__(batch_size, np.arange(count) * whole // count)

    def make(self, examples, mask, rows: pipeline.Rows) -> dict[str, np.ndarray]:
        examples = examples[rows]
        return self._rows(examples, examples)
