"""Vocabularies: training WordPiece and byte-level ones, special tokens by role, starts of words."""

import collections
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mpojax.data.tokenizers import loading
from mpojax.data.tokenizers import tokenizer as tokenizer_lib

# Names by role: BERT's, then those of ALBERT and RoBERTa.
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_CONTINUATION = "##"
_WORD_STARTS = ("▁", "Ġ")


class SpecialTokens(NamedTuple):
    """Ids of the tokens that pre-training needs."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], where: str) -> "SpecialTokens":
        """Finds them by their usual names.

        Raises:
          ValueError: one is missing; names it and `where`.
        """
        ids = {}
        for role, names in _NAMES.items():
            found = [vocabulary[name] for name in names if name in vocabulary]
            if not found:
                raise ValueError(
                    f"the vocabulary of {where} has no {role} token; it needs one of {list(names)}"
                )
            ids[role] = found[0]
        return cls(**ids)


def word_mark(vocabulary: Mapping[str, int]) -> str | None:
    """Mark by which the vocabulary tells words apart, or None: all tokens are words.

    WordPiece marks continuations ("##"), SentencePiece and byte-level vocabularies mark starts ("▁"
    or "Ġ").
    """
    counts = {
        mark: sum(token.startswith(mark) for token in vocabulary)
        for mark in (_CONTINUATION, *_WORD_STARTS)
    }
    mark = max(counts, key=counts.get)
    return mark if counts[mark] else None


def word_starts(vocabulary: Mapping[str, int]) -> np.ndarray:
    """(V,) bool: whether a token starts a word, by the vocabulary's own marks."""
    mark = word_mark(vocabulary)
    starts = np.ones(max(vocabulary.values()) + 1, bool)
    if mark is not None:
        for token, number in vocabulary.items():
            # "##" marks the opposite of a start.
            starts[number] = token.startswith(mark) != (mark == _CONTINUATION)
    return starts


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A lower-case WordPiece tokenizer in BERT's manner, with ids 0 to 4 as in `SpecialTokens`.

    The same texts give the same vocabulary. The library alone would not: it numbers the characters
    inside words in the order of a hash table, and that decides between pairs that are equally
    frequent. Here all characters have their numbers beforehand.

    Args:
      texts: gone through twice.
      vocab_size: at most; less where the texts do not have so many pieces that occur twice.

    Raises:
      ValueError: vocab_size does not hold the special tokens and characters.
    """
    special = [names[0] for names in _NAMES.values()]
    vocabulary = dict(zip(special, range(len(special)), strict=True))
    backend = loading.word_piece(vocabulary, lower_case=True)
    # At most about a quarter of the vocabulary: a character counts twice, with "##" and without.
    alphabet = _alphabet(texts, backend.normalizer, max(100, vocab_size // 8))
    numbered = [*alphabet, *(_CONTINUATION + c for c in alphabet if _inside_words(c))]
    if vocab_size <= len(special) + len(numbered):
        raise ValueError(
            f"vocab_size={vocab_size} must be above {len(special) + len(numbered)}: "
            f"{len(special)} special tokens and {len(alphabet)} characters of the text"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        # Not special to the tokenizer that is made below; here they only fix the numbers.
        special_tokens=[*special, *numbered],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUATION,
    )
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trained.train_from_iterator(texts, trainer)
    result = loading.word_piece(trained.get_vocab(), lower_case=True)
    result.add_special_tokens(special)  # so that "[MASK]" in a text can stand for the token
    return result


# Special tokens of a trained byte-level vocabulary, with ids 0 to 2.
_BYTE_LEVEL_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizer_lib.Tokenizer:
    """A byte-level BPE tokenizer in GPT-2's manner: any text can be encoded and comes back whole.

    Ids 0 to 2 are `<pad>`, `<bos>` and `<eos>`, then come the 256 bytes, then the merges. `encode`
    adds no special tokens. The same texts give the same vocabulary.

    Args:
      texts: gone through once.
      vocab_size: at most; less where the texts do not have so many pieces that occur twice.

    Raises:
      ValueError: vocab_size does not hold the special tokens and the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(_BYTE_LEVEL_SPECIAL) + len(alphabet)
    if vocab_size <= least:
        raise ValueError(
            f"vocab_size={vocab_size} must be above {least}: {len(_BYTE_LEVEL_SPECIAL)} special "
            f"tokens and {len(alphabet)} bytes"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(_BYTE_LEVEL_SPECIAL.values()),
        initial_alphabet=alphabet,
    )
    backend.train_from_iterator(texts, trainer)
    return tokenizer_lib.Tokenizer(backend, **_BYTE_LEVEL_SPECIAL)


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The most frequent characters, at most `limit`, in the order of their code points."""
    counts = collections.Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    known = [(-count, c) for c, count in counts.items() if not c.isspace() and count > 1]
    return sorted(c for _, c in sorted(known)[:limit])


def _inside_words(character: str) -> bool:
    """True if BERT's pre-tokenizer may put it behind another character of one word."""
    ascii_mark = character.isascii() and not character.isalnum()
    chinese = "CJK" in unicodedata.name(character, "")
    return not (ascii_mark or chinese or unicodedata.category(character).startswith("P"))
