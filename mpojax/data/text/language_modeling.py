"""Batches for language models: plain text as one stream of tokens, cut into blocks.

Documents stand one after another with the end-of-text token between them. A block of S + 1 tokens
makes one row: S inputs, and as targets the token after each.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence

import grain
import numpy as np

from mpojax.data import fingerprint
from mpojax.data.text import plain as plain_texts
from mpojax.data.tokenizers.tokenizer import Tokenizer

# Documents are tokenised in groups of so many characters: a compromise of speed and memory.
_GROUP = 2**21


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """Text as token ids, one document after another.

    Attributes:
      tokens: (T,) int32.
      num_words: words of the text before it was tokenised, cut at white space; the perplexity per
        word divides by them.
      num_documents: how many.
      name: for messages.
    """

    tokens: np.ndarray
    num_words: int
    num_documents: int = 1
    name: str = "stream"

    def __post_init__(self):
        tokens = np.asarray(self.tokens)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"tokens of {self.name} have shape {tokens.shape} and type {tokens.dtype}; "
                "expected one row of integers"
            )
        object.__setattr__(self, "tokens", tokens.astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.tokens)

    def fingerprint(self) -> str:
        """Digest of the tokens, and of the number of words that perplexities divide by."""
        return fingerprint.of_arrays({"tokens": self.tokens, "words": np.array(self.num_words)})

    @classmethod
    def from_documents(
        cls, documents: Sequence[str], tokenizer: Tokenizer, name: str = "stream"
    ) -> "TokenStream":
        """Tokenises documents and joins them with the tokenizer's end of text (`eos_id`).

        Special tokens that a text names (`<unk>` in WikiText) are text. A single document gets no
        token that it does not have.

        Raises:
          ValueError: no documents, no token in them, or several and a tokenizer without an
            end-of-text token.
        """
        if isinstance(documents, str):
            raise ValueError("documents must be a sequence of strings, not one string: pass [text]")
        if len(documents) > 1 and tokenizer.eos_id is None:
            raise ValueError(
                f"{name}: {len(documents)} documents need an end-of-text token between them, which "
                "the tokenizer does not name; set eos_token in its tokenizer_config.json"
            )
        parts = []
        for group in _groups(documents):
            for ids in tokenizer.encode_plain(group):
                if parts:
                    parts.append(np.array([tokenizer.eos_id], np.int32))
                parts.append(np.array(ids, np.int32))
        if not sum(map(len, parts)):
            raise ValueError(f"{name}: no text in {len(documents)} document(s)")
        words = sum(len(text.split()) for text in documents)
        return cls(np.concatenate(parts), words, len(documents), name)

    @classmethod
    def from_files(
        cls, paths: Iterable[str | os.PathLike], tokenizer: Tokenizer, name: str = ""
    ) -> "TokenStream":
        """Tokenises files, each .txt file one document, each line of a .jsonl file one.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: as `from_documents`, or a file that is not UTF-8.
        """
        paths = [os.fspath(path) for path in paths]
        return cls.from_documents(
            plain_texts.read_files(paths), tokenizer, name or ", ".join(paths)
        )


def _groups(documents: Iterable[str]) -> Iterable[list[str]]:
    group, size = [], 0
    for text in documents:
        group.append(text)
        size += len(text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class LanguageModelData:
    """Endless shuffled batches of blocks: `data[step]` is a dict of arrays.

    Every epoch has its own order and its own borders: its blocks start at a random offset into the
    stream, so that no token always stands at the start of a block without context. What the offset
    leaves at both ends, less than two blocks, is not read in that epoch. Rows are numbered over all
    batches: batches of another size hold the same rows in the same order.

    A batch of B rows holds input_ids, targets (B, S) int32 (the next token of each position) and
    target_weights (B, S) float32, all 1.

    Args:
      stream: the text.
      length: S.
      batch_size: B, rows of the global batch.
      seed: of order and offsets.
      shift: off: every epoch has the same blocks, from the first token on.

    Attributes:
      num_examples: blocks of an epoch.
      num_tokens: targets of an epoch.

    Raises:
      ValueError: length below 2 or above what the stream holds, or a batch size below 1.
    """

    def __init__(
        self,
        stream: TokenStream,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shift: bool = True,
    ):
        _check(stream, length, batch_size)
        self.stream, self.length, self.batch_size, self.seed = stream, length, batch_size, seed
        whole = (len(stream) - 1) // length
        self.num_examples = max(1, whole - 1) if shift else whole
        self.num_tokens = self.num_examples * length
        self._spare = len(stream) - 1 - self.num_tokens if shift else 0
        order = grain.MapDataset.range(self.num_examples).seed(seed % 2**32).shuffle()
        self._order = order.repeat(None)
        self._offset = functools.lru_cache(maxsize=64)(self._draw_offset)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.rows(step, slice(None))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one epoch, rounded up."""
        return -(-self.num_examples // self.batch_size)

    def fingerprint(self) -> str:
        """Digest of the text."""
        return self.stream.fingerprint()

    def rows(self, step: int, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Only some rows of batch `step`: no other rows are made."""
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        draws = step * self.batch_size + np.arange(self.batch_size)[rows]
        starts = [
            self._offset(int(draw) // self.num_examples) + int(self._order[int(draw)]) * self.length
            for draw in draws
        ]
        return _blocks(self.stream.tokens, np.array(starts, np.int64), self.length)

    def _draw_offset(self, epoch: int) -> int:
        draw = np.random.default_rng(np.random.SeedSequence((self.seed % 2**32, epoch)))
        return int(draw.integers(self._spare + 1))


class LanguageModelEvalData:
    """Every token of a stream but its first is predicted exactly once, in batches of one size.

    Window k starts at token k · stride, the last one so that it ends with the stream; of its S
    targets those count that no window before has predicted. So a token is predicted from at least
    S - stride tokens where the stream has them; the default, stride = S, is the usual perplexity of
    disjoint blocks (of which the last has some context more), a smaller one costs S / stride as
    much and gives every token more context.

    A batch is that of `LanguageModelData`, with weights 0 where a target does not count, and
    example_mask (B,) bool: False where the last batch is filled up with copies, whose weights are
    all 0.

    Args:
      stream: the text.
      length: S.
      batch_size: B, rows of the global batch.
      stride: tokens from one window to the next, 1 to S.

    Attributes:
      num_examples: windows.
      num_tokens: targets that count, T - 1: the perplexity per token divides by them.
      num_words: of the stream: the perplexity per word divides the same sum by them.
      order: (N,) the window that stands at each place of the batches.

    Raises:
      ValueError: length below 2 or above what the stream holds, a stride outside 1..length, or a
        batch size below 1.
    """

    def __init__(
        self, stream: TokenStream, length: int, batch_size: int, *, stride: int | None = None
    ):
        _check(stream, length, batch_size)
        stride = length if stride is None else stride
        if not 1 <= stride <= length:
            raise ValueError(f"stride={stride} must be from 1 to length={length}")
        self.stream, self.length, self.batch_size, self.stride = stream, length, batch_size, stride
        self.num_tokens, self.num_words = len(stream) - 1, stream.num_words
        last = self.num_tokens - length  # where the last window starts
        self.num_examples = 1 + -(-last // stride)
        self._starts = np.minimum(np.arange(self.num_examples) * stride, last)
        # Targets that windows before have predicted: those below the end of the one before.
        before = np.concatenate([[0], self._starts[:-1] + length])
        self._seen = before - self._starts
        self.order = np.arange(self.num_examples)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def fingerprint(self) -> str:
        """Digest of the text."""
        return self.stream.fingerprint()

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.rows(index, slice(None))

    def rows(self, index: int, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Only some rows of batch `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        numbers = index * self.batch_size + np.arange(self.batch_size)[rows]
        mask = numbers < self.num_examples
        numbers = np.minimum(numbers, self.num_examples - 1)
        batch = _blocks(self.stream.tokens, self._starts[numbers], self.length)
        counts = (np.arange(self.length) >= self._seen[numbers][:, None]) & mask[:, None]
        return batch | {"target_weights": counts.astype(np.float32), "example_mask": mask}


def continuations(
    stream: TokenStream, prompt: int, length: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts, evenly spread over a stream, and how the text goes on after each.

    Returns:
      int32 arrays (N, prompt) and (N, length), N = `count` or as many as fit without overlap.

    Raises:
      ValueError: a number below 1, or a stream shorter than one prompt with its continuation.
    """
    for name, value in {"prompt": prompt, "length": length, "count": count}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    size = prompt + length
    if size > len(stream):
        raise ValueError(
            f"prompt={prompt} and length={length} need {size} tokens; {stream.name} has "
            f"{len(stream)}"
        )
    count = min(count, len(stream) // size)
    starts = np.arange(count) * len(stream) // count
    rows = stream.tokens[starts[:, None] + np.arange(size)]
    return rows[:, :prompt], rows[:, prompt:]


def _blocks(tokens: np.ndarray, starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
    rows = tokens[starts[:, None] + np.arange(length + 1)]
    return {
        "input_ids": rows[:, :-1],
        "targets": rows[:, 1:],
        "target_weights": np.ones((len(starts), length), np.float32),
    }


def _check(stream: TokenStream, length: int, batch_size: int) -> None:
    if length < 2:
        raise ValueError(f"length={length} must be at least 2")
    if length >= len(stream):
        raise ValueError(
            f"length={length} needs blocks of {length + 1} tokens, but {stream.name} has only "
            f"{len(stream)}; lower the length or take more text"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
