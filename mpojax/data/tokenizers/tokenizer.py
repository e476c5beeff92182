"""Text to padded token arrays, through the `tokenizers` library."""

import json
import os
from collections.abc import Sequence

import numpy as np
import tokenizers

from mpojax import checks, files, tokenizer_folders
from mpojax.data.tokenizers import loading


class Tokenizer:
    """A model folder's own tokenizer with explicit padding and truncation.

    Files carry settings of their own (a saved tokenizer.json often truncates at the length of its
    last use); these are always overridden by the `max_length` of the call.

    Attributes:
      pad_token, pad_id: of padding. A vocabulary without such a token (GPT-2, LLaMA) pads with the
        end of text: the attention mask tells both apart.
      bos_token, bos_id, eos_token, eos_id: beginning and end of a text, one token in GPT-2; None
        where the tokenizer has none. `encode` adds them only where the tokenizer's files say so.
      truncation_side: "right" or "left": the end of a text that `encode` cuts.
      split_special_tokens: names of special tokens in a text are text.
      has_token_types: False where model_input_names of tokenizer_config.json lacks token_type_ids:
        they are zeros then, of the second text of a pair too.

    Padding is always on the right, whatever padding_side in the files: positions count from the
    first token, and the attention mask tells padding apart.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        pad_token: str | None = None,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        truncation_side: str = "right",
        split_special_tokens: bool = False,
        has_token_types: bool = True,
    ):
        self._backend = backend
        self.split_special_tokens = backend.encode_special_tokens = split_special_tokens
        self.truncation_side = truncation_side
        self.has_token_types = has_token_types
        self.bos_token, self.bos_id = bos_token, self._id("bos_token", bos_token)
        self.eos_token, self.eos_id = eos_token, self._id("eos_token", eos_token)
        pad_token = pad_token or eos_token or "[PAD]"
        self.pad_token, self.pad_id = pad_token, self._id("pad_token", pad_token)

    def _id(self, role: str, token: str | None) -> int | None:
        number = None if token is None else self._backend.token_to_id(token)
        if token is not None and number is None:
            raise ValueError(
                f"the tokenizer has no token {checks.shortened(token)}; pass {role}= with one of "
                "its tokens"
            )
        return number

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, pad_token: str | None = None) -> "Tokenizer":
        """Loads a model folder's tokenizer: see `tokenizer_files` for what it may hold.

        Args:
          pad_token: None: the one that the folder names, else a usual one that the vocabulary has.

        Raises:
          FileNotFoundError: the folder has no tokenizer; names the folder and the files.
          ValueError: a file is corrupt, a special token that is named is not in the vocabulary, or
            there is none to pad with.
        """
        backend, found = loading.read(tokenizer_folders.local(folder))
        return cls(backend, **found | ({"pad_token": pad_token} if pad_token else {}))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json and tokenizer_config.json into a folder, made where needed."""
        folder = files.at(folder)
        self._backend.no_truncation()
        self._backend.no_padding()
        roles = {role: getattr(self, role) for role in loading.USUAL_NAMES}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
            role: token for role, token in roles.items() if token is not None
        }
        if self.truncation_side != "right":
            settings["truncation_side"] = self.truncation_side
        if self.split_special_tokens:
            settings["split_special_tokens"] = True
        if not self.has_token_types:
            settings["model_input_names"] = ["input_ids", "attention_mask"]
        files.write_atomic(
            folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False)
        )
        files.write_atomic(folder / "tokenizer.json", self._backend.to_str(pretty=True) + "\n")

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """{token: id}, special tokens included."""
        return self._backend.get_vocab()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._backend.decode([int(i) for i in ids])

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128
    ) -> dict[str, np.ndarray]:
        """Encodes texts, or text pairs, to fixed length.

        Returns:
          int32 arrays (N, max_length): input_ids, attention_mask (1 = real token), token_type_ids.
          Too long inputs lose tokens at `truncation_side`, of the longer one in a pair.
        """
        self._check(texts, pairs, max_length)
        self._backend.enable_truncation(
            max_length, strategy="longest_first", direction=self.truncation_side
        )
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
            with _library_errors():
                encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = self.split_special_tokens
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued, such as one of `chat_prompt`.

        It begins as `encode` begins a text, with `bos_id` or not, and has no end. Special tokens
        that it names are tokens, unless `split_special_tokens`.
        """
        self._backend.no_truncation()
        self._backend.no_padding()
        with _library_errors():
            ids = self._backend.encode(text, add_special_tokens=False).ids
            # The tokens around an empty text show whether the tokenizer's template begins with bos.
            begins = self.bos_id in self._backend.encode("").ids[:1]
        return [self.bos_id, *ids] if begins and ids[:1] != [self.bos_id] else ids

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
          ValueError: max_length leaves no more tokens for the context than `overlap`, or none.
        """
        self._check(questions, contexts, max_length)
        questions, longest = self._cut(questions, max_question_length)
        # Tokens that every window has for the context, also next to the longest question.
        capacity = max_length - longest - self._backend.num_special_tokens_to_add(True)
        overlap = min(128, capacity // 2) if overlap is None else overlap
        if not 0 <= overlap < capacity:
            raise ValueError(
                f"overlap={overlap} must be from 0 to below the {capacity} context tokens that "
                f"max_length={max_length} leaves besides questions of up to {longest} tokens; "
                "raise max_length, or lower overlap or max_question_length"
            )
        self._backend.enable_truncation(max_length, stride=overlap, strategy="only_second")
        inputs = list(zip(questions, contexts, strict=True))
        windows, index = [], []
        for number, encoding in enumerate(self._padded(inputs, max_length)):
            # The library keeps the first window and hangs the others on it.
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
                f"max_length={max_length} leaves no token for text besides {special} special tokens"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs; lengths must be equal")

    def _cut(self, texts: Sequence[str], max_tokens: int) -> tuple[list[str], int]:
        """Texts of at most `max_tokens` tokens, and the tokens of the longest one."""
        self._backend.no_truncation()
        self._backend.no_padding()
        with _library_errors():
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        cut = [
            # Up to the character where the last token that is kept ends.
            text[: e.offsets[max_tokens - 1][1]] if len(e) > max_tokens else text
            for text, e in zip(texts, encodings, strict=True)
        ]
        return cut, max((min(len(e), max_tokens) for e in encodings), default=0)

    def _padded(self, inputs: list, max_length: int) -> list[tokenizers.Encoding]:
        self._backend.enable_padding(
            length=max_length, pad_id=self.pad_id, pad_token=self.pad_token
        )
        with _library_errors():
            return self._backend.encode_batch(inputs)

    def _arrays(self, encodings: list, max_length: int) -> dict[str, np.ndarray]:
        fields = {
            "input_ids": "ids",
            "attention_mask": "attention_mask",
            "token_type_ids": "type_ids",
        }
        arrays = {
            name: np.array([getattr(e, field) for e in encodings], np.int32).reshape(-1, max_length)
            for name, field in fields.items()
        }
        if not self.has_token_types:
            arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
        return arrays


def _library_errors():
    return loading.library_errors("the tokenizer cannot encode the text")
