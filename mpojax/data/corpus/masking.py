"""Choosing the tokens that a masked language model has to fill in."""

import math

import numpy as np

from mpojax import checks
from mpojax.data.tokenizers.vocabulary import SpecialTokens

# Odd 64-bit numbers, between which SplitMix64 and its streams step; see `Randomness`.
_GOLDEN, _STREAM = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
_WORDS = 2**64


@checks.settings("masking.")
class Masking:
    """Settings of how tokens are masked, and what replaces them.

    Attributes:
      rate: fraction of a row's tokens, special ones not counted.
      whole_words: whole words are chosen; else single tokens.
      mask_share, random_share: of the chosen tokens so many become `[MASK]`, and so many another
        token sampled from all that are not special; the rest stay as they are.
      max_predictions: most tokens of a row, the static size P of a batch; None: rate · length,
        rounded up.
    """

    rate: float = checks.field(checks.number(above=0, below=1), 0.15)
    whole_words: bool = checks.field(checks.flag(), True)
    mask_share: float = checks.field(checks.number(0, 1), 0.8)
    random_share: float = checks.field(checks.number(0, 1), 0.1)
    max_predictions: int | None = checks.field(checks.integer(1), None)

    def __post_init__(self):
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share={self.mask_share} and random_share={self.random_share} must sum to at "
                "most 1"
            )

    def predictions(self, length: int) -> int:
        """P of rows of `length` tokens."""
        wanted = math.ceil(round(self.rate * length, 6))
        return wanted if self.max_predictions is None else min(self.max_predictions, length)


class Randomness:
    """Random numbers of rows, each a pure function of (seed, row, stream, position).

    SplitMix64 in every row. Any rows can be computed without the others, which generators of numpy
    could do only one row at a time.

    Args:
      seed: any integer.
      rows: (B,) numbers of the rows.
    """

    def __init__(self, seed: int, rows: np.ndarray):
        start = _mix(np.array([(seed + _GOLDEN) % _WORDS], np.uint64))
        self._rows = _mix(start + _counter(rows))

    def integers(self, stream: int, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """uint64, of the shape of `positions` and `rows` (indices of rows)."""
        state = _mix(self._rows + np.uint64((stream + 1) * _STREAM % _WORDS))
        return _mix(state[rows] + _counter(positions))

    def uniform(self, stream: int, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 in [0, 1)."""
        # A double has 53 bits: all its multiples of 2^-53 in [0, 1) are equally likely.
        return (self.integers(stream, positions, rows) >> np.uint64(11)) * 2.0**-53


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    starts: np.ndarray,
    masking: Masking,
    random: Randomness,
    special: SpecialTokens,
    replacements: np.ndarray,
) -> dict[str, np.ndarray]:
    """Chooses tokens of each row and replaces them.

    Words are taken in random order, each one that does not exceed the row's number of tokens.

    Args:
      tokens: (B, S) int32.
      maskable: (B, S) bool.
      starts: (B, S) bool: a new word starts here. A word never goes on over a token that is not
        maskable.
      random: of the B rows.
      replacements: (R,) token ids to draw from.

    Returns:
      input_ids (B, S) int32; mlm_positions, mlm_labels (B, P) int32, mlm_weights (B, P) float32, in
      the order of the positions, then fillers of weight 0.
    """
    rows, length = tokens.shape
    most = masking.predictions(length)
    wanted = np.round(masking.rate * maskable.sum(1)).astype(np.int64)
    # A row of few tokens, whose share rounds to 0, still has one to predict.
    wanted = np.clip(wanted, 1, most)
    chosen = _choose(maskable, starts | (not masking.whole_words), wanted, random)
    row, position = np.nonzero(chosen)
    labels = tokens[row, position]
    # Filled in from the left.
    count = chosen.sum(1)
    column = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    result = {
        "input_ids": tokens.copy(),
        "mlm_positions": np.zeros((rows, most), np.int32),
        "mlm_labels": np.zeros((rows, most), np.int32),
        "mlm_weights": np.zeros((rows, most), np.float32),
    }
    result["mlm_positions"][row, column] = position
    result["mlm_labels"][row, column] = labels
    result["mlm_weights"][row, column] = 1
    # [0, mask_share): [MASK]; the next random_share: a random token; the rest: unchanged.
    kind = random.uniform(1, position, row)
    sampled = replacements[random.integers(2, position, row) % np.uint64(len(replacements))]
    sampled = np.where(kind < masking.mask_share + masking.random_share, sampled, labels)
    result["input_ids"][row, position] = np.where(kind < masking.mask_share, special.mask, sampled)
    return result


def _choose(
    maskable: np.ndarray, starts: np.ndarray, wanted: np.ndarray, random: Randomness
) -> np.ndarray:
    """(B, S) bool, the tokens of the chosen words: at most `wanted` (B,) of each row."""
    rows = np.arange(len(maskable))[:, None]
    # A word also starts behind a token that is not maskable, whatever its mark.
    before = np.pad(maskable, ((0, 0), (1, 0)))[:, :-1]
    starts = maskable & (starts | ~before)
    # Number of the word within its row, for each token; words are counted from 0.
    word = np.cumsum(starts, axis=1) - 1
    words = int(word.max()) + 1 if maskable.any() else 0
    if not words:
        return np.zeros_like(maskable)
    row, position = np.nonzero(maskable)
    # (B, words): tokens of each word, 0 for the numbers that a row does not have.
    sizes = np.bincount(row * words + word[row, position], minlength=len(maskable) * words)
    sizes = sizes.reshape(-1, words)
    # Sorting random keys shuffles the words of each row; missing ones come last.
    keys = random.integers(0, np.arange(words)[None], rows)
    order = np.argsort(np.where(sizes > 0, keys, np.uint64(2**64 - 1)), axis=1, kind="stable")
    sizes = np.take_along_axis(sizes, order, axis=1)
    taken, total = np.zeros(sizes.shape, bool), np.zeros(len(sizes), np.int64)
    # Greedily, one rank of all rows at a time: a word that is too long is passed over, and a
    # shorter one behind it may still fit.
    for rank in range(words):
        fits = (sizes[:, rank] > 0) & (total + sizes[:, rank] <= wanted)
        taken[:, rank] = fits
        total += np.where(fits, sizes[:, rank], 0)
        if (total == wanted).all():
            break
    # From ranks back to the numbers of the words.
    by_word = np.zeros_like(taken)
    np.put_along_axis(by_word, order, taken, axis=1)
    # -1 stands before the first word, where nothing is maskable.
    return maskable & by_word[rows, np.maximum(word, 0)]


def _counter(numbers: np.ndarray) -> np.ndarray:
    return np.uint64(_GOLDEN) * (np.asarray(numbers).astype(np.uint64) + np.uint64(1))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
