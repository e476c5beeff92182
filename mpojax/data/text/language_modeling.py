"""Batches for language models: plain text as one stream of tokens, cut into blocks.

Documents stand one after another with the end-of-text token between them. A block of S + 1 tokens
makes one row: S inputs, and as targets the token after each.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mpojax import checks
from mpojax.data import pipeline
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
        return pipeline.fingerprint({"tokens": self.tokens, "words": np.array(self.num_words)})

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


class LanguageModelData(pipeline.TrainBatches):
    """Endless shuffled batches of blocks.

    Every epoch has its own borders, too: its blocks start at a random offset into the stream, so
    that no token always stands at the start of a block without context. What the offset leaves at
    both ends, less than two blocks, is not read in that epoch.

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
        _check(stream, length)
        self.stream, self.length = stream, length
        # Block k needs the tokens k S to (k + 1) S, its last target included.
        whole = (len(stream) - 1) // length
        # One of several blocks is left out, so that any of S offsets fits.
        super().__init__(batch_size, max(1, whole - 1) if shift else whole, seed)
        self.num_tokens = self.num_examples * length
        # Offsets 0 to this: beyond it the last target would lie behind the stream.
        self._spare = len(stream) - 1 - self.num_tokens if shift else 0
        self._offset = functools.lru_cache(maxsize=64)(self._random_offset)

    def fingerprint(self) -> str:
        """Digest of the text."""
        return self.stream.fingerprint()

    def make(self, numbers: np.ndarray, rows: pipeline.Rows) -> dict[str, np.ndarray]:
        numbers = numbers[rows]
        offsets = [self._offset(int(epoch)) for epoch in numbers // self.num_examples]
        starts = np.array(offsets, np.int64) + self.examples(numbers) * self.length
        return _blocks(self.stream.tokens, starts, self.length)

    def _random_offset(self, epoch: int) -> int:
        rng = np.random.default_rng(np.random.SeedSequence((self.seed % 2**32, epoch)))
        return int(rng.integers(self._spare + 1))


class LanguageModelEvalData(pipeline.EvalBatches):
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

    Raises:
      ValueError: length below 2 or above what the stream holds, a stride outside 1..length, or a
        batch size below 1.
    """

    def __init__(
        self, stream: TokenStream, length: int, batch_size: int, *, stride: int | None = None
    ):
        _check(stream, length)
        stride = length if stride is None else stride
        checks.check_value("stride", stride, checks.integer(1, length).noted("the length"))
        self.stream, self.length, self.stride = stream, length, stride
        self.num_tokens, self.num_words = len(stream) - 1, stream.num_words
        last = self.num_tokens - length  # where the last window starts
        # ceil(last / stride) windows before the last one.
        super().__init__(batch_size, np.arange(1 + -(-last // stride)))
        self._starts = np.minimum(self.order * stride, last)
        # Targets that windows before have predicted: those below the end of the one before.
        before = np.concatenate([[0], self._starts[:-1] + length])
        self._seen = before - self._starts

    def fingerprint(self) -> str:
        """Digest of the text."""
        return self.stream.fingerprint()

    def make(self, examples, mask, rows: pipeline.Rows) -> dict[str, np.ndarray]:
        examples, mask = examples[rows], mask[rows]
        batch = _blocks(self.stream.tokens, self._starts[examples], self.length)
        counts = (np.arange(self.length) >= self._seen[examples][:, None]) & mask[:, None]
        return batch | {"target_weights": counts.astype(np.float32)}


def continuations(
    stream: TokenStream, prompt: int, length: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts, evenly spread over a stream, and how the text goes on after each.

    Returns:
      int32 arrays (N, prompt) and (N, length), N = `count` or as many as fit without overlap.

    Raises:
      ValueError: a number below 1, or a stream shorter than one prompt with its continuation.
    """
    sizes = {"prompt": prompt, "length": length, "count": count}
    checks.check(sizes, dict.fromkeys(sizes, checks.integer(1)))
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
    # (B, S + 1)
    rows = tokens[starts[:, None] + np.arange(length + 1)]
    return {
        "input_ids": rows[:, :-1],
        "targets": rows[:, 1:],
        "target_weights": np.ones((len(starts), length), np.float32),
    }


def _check(stream: TokenStream, length: int) -> None:
    checks.check_value("length", length, checks.integer(2))
    if length >= len(stream):
        raise ValueError(
            f"length={length} needs blocks of {length + 1} tokens, but {stream.name} has only "
            f"{len(stream)}; lower the length or take more text"
        )
