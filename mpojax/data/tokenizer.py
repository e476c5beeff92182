"""Text to padded token arrays, through the `tokenizers` library."""

import collections
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors


class Tokenizer:
    """A model folder's own tokenizer with explicit padding and truncation.

    Files carry settings of their own (a saved tokenizer.json often truncates at the length of its
    last use); these are always overridden by the `max_length` of the call.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_token: str = "[PAD]"):
        pad_id = backend.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(
                f"the tokenizer has no token {pad_token!r}; pass pad_token= with its padding token"
            )
        self._backend = backend
        self.pad_token, self.pad_id = pad_token, pad_id

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, pad_token: str | None = None) -> "Tokenizer":
        """Loads `tokenizer.json`, or else `vocab.txt` (WordPiece), of a model folder.

        Raises:
          FileNotFoundError: the folder has neither file; names the folder and both files.
          ValueError: a file is corrupt, or the padding token is unknown.
        """
        folder = pathlib.Path(folder)
        settings = _read_settings(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            path = folder / "tokenizer.json"
            try:
                backend = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"{path} is not a readable tokenizer file: {error}") from error
        elif (folder / "vocab.txt").is_file():
            vocabulary = _read_vocabulary(folder / "vocab.txt")
            backend = word_piece(vocabulary, settings.get("do_lower_case", True))
        else:
            raise FileNotFoundError(
                f"no tokenizer.json and no vocab.txt in {folder}; a tokenizer folder needs one of "
                "them"
            )
        configured = settings.get("pad_token", "[PAD]")
        if isinstance(configured, dict):  # written so by older versions of transformers
            configured = configured["content"]
        return cls(backend, pad_token or configured)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """{token: id}, special tokens included."""
        return self._backend.get_vocab()

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(i) for i in ids])

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128
    ) -> dict[str, np.ndarray]:
        """Encodes texts, or text pairs, to fixed length.

        Returns:
          int32 arrays (N, max_length): input_ids, attention_mask (1 = real token), token_type_ids.
          Too long inputs lose tokens at the end, of the longer one in a pair.
        """
        self._check(texts, pairs, max_length)
        self._backend.enable_truncation(max_length=max_length, strategy="longest_first")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return self._arrays(self._padded(inputs, max_length), max_length)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, neither padded nor cut, without special tokens.

        What looks like a special token in a text (`[MASK]`) is text.
        """
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = False
        return [encoding.ids for encoding in encodings]

    def encode_windows(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        max_length: int = 384,
        overlap: int | None = None,
        max_question_length: int = 64,
    ) -> dict[str, np.ndarray]:
        """Encodes (question, context) pairs; a long context becomes several overlapping windows.

        Args:
          max_length: tokens of a window, the question and special tokens included.
          overlap: context tokens that neighbouring windows share; None = 128, or half of what a
            window can hold of the context where that is less.
          max_question_length: longer questions lose tokens at the end.

        Returns:
          Arrays of F >= N windows, in the order of the pairs: input_ids, attention_mask and
          token_type_ids as `encode` gives them, context_mask (F, max_length) int32 (1 = token of
          the context), offsets (F, max_length, 2) int32 (first and last-plus-one character of each
          token in its own text), example_index (F,) int32 (the pair a window comes from).

        Raises:
          ValueError: max_length leaves no more room for the context than `overlap`, or none.
        """
        self._check(questions, contexts, max_length)
        questions, longest = self._cut(questions, max_question_length)
        room = max_length - longest - self._backend.num_special_tokens_to_add(True)
        overlap = min(128, room // 2) if overlap is None else overlap
        if not 0 <= overlap < room:
            raise ValueError(
                f"overlap={overlap} must be from 0 to below the {room} context tokens that "
                f"max_length={max_length} leaves beside questions of up to {longest} tokens; raise "
                "max_length, or lower overlap or max_question_length"
            )
        self._backend.enable_truncation(max_length, stride=overlap, strategy="only_second")
        inputs = list(zip(questions, contexts, strict=True))
        windows, index = [], []
        for number, encoding in enumerate(self._padded(inputs, max_length)):
            windows += [encoding, *encoding.overflowing]
            index += [number] * (1 + len(encoding.overflowing))
        context = [[part == 1 for part in w.sequence_ids] for w in windows]
        return self._arrays(windows, max_length) | {
            "context_mask": np.array(context, np.int32).reshape(-1, max_length),
            "offsets": np.array([w.offsets for w in windows], np.int32).reshape(-1, max_length, 2),
            "example_index": np.array(index, np.int32),
        }

    def _check(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> None:
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of strings, not one string: pass [text]")
        special = self._backend.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise ValueError(
                f"max_length={max_length} leaves no room for text beside {special} special tokens"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs; lengths must be equal")

    def _cut(self, texts: Sequence[str], max_tokens: int) -> tuple[list[str], int]:
        """Texts of at most `max_tokens` tokens, and the tokens of the longest one."""
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        cut = [
            text[: e.offsets[max_tokens - 1][1]] if len(e) > max_tokens else text
            for text, e in zip(texts, encodings, strict=True)
        ]
        return cut, max((min(len(e), max_tokens) for e in encodings), default=0)

    def _padded(self, inputs: list, max_length: int) -> list[tokenizers.Encoding]:
        self._backend.enable_padding(
            length=max_length, pad_id=self.pad_id, pad_token=self.pad_token
        )
        return self._backend.encode_batch(inputs)

    def _arrays(self, encodings: list, max_length: int) -> dict[str, np.ndarray]:
        fields = {
            "input_ids": "ids",
            "attention_mask": "attention_mask",
            "token_type_ids": "type_ids",
        }
        return {
            name: np.array([getattr(e, field) for e in encodings], np.int32).reshape(-1, max_length)
            for name, field in fields.items()
        }


def _read_settings(path: pathlib.Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def word_piece(vocabulary: dict[str, int], lower_case: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer with the given {token: id}, which holds BERT's special tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return backend


def _read_vocabulary(path: pathlib.Path) -> dict[str, int]:
    # Not str.splitlines, which also breaks at rare Unicode separators and would shift all ids.
    words = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").split("\n")]
    if not words[-1]:
        words.pop()
    vocabulary = {word: index for index, word in enumerate(words)}
    if len(vocabulary) < len(words):
        twice = sorted(word for word, count in collections.Counter(words).items() if count > 1)
        raise ValueError(f"{path} holds tokens twice: {twice[:5]}; each line must be another token")
    missing = [t for t in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if t not in vocabulary]
    if missing:
        raise ValueError(f"{path} lacks the special tokens {missing}; it is not a BERT vocabulary")
    return vocabulary
