"""Tokenizers as model folders hold them: tokenizer.json, vocab.txt, vocab.json with merges.txt.

A folder has one of

    tokenizer.json                  whole, whatever the model (BERT, GPT-2, LLaMA, T5, ...)
    vocab.txt                       BERT's WordPiece
    vocab.json + merges.txt         byte-level BPE of GPT-2 and RoBERTa, or by GPT-2's older names
    encoder.json + vocab.bpe

and maybe tokenizer_config.json and special_tokens_map.json, which name special tokens.
"""

import collections
import json
import pathlib
from collections.abc import Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

BYTE_LEVEL_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_SENTENCE_PIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
# Where the folder names no special tokens: theirs by role, in the order of preference.
USUAL_NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "bos_token": ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>"),
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>"),
}


def read(folder: pathlib.Path, settings: Mapping) -> tokenizers.Tokenizer:
    """The tokenizer of a folder, whose settings `read_settings` has read.

    Raises:
      FileNotFoundError: the folder has none of the files; names them.
      ValueError: a file is corrupt, or there is nothing but a SentencePiece model.
    """
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a readable tokenizer file: {error}") from error
    if (folder / "vocab.txt").is_file():
        return word_piece(_read_words(folder / "vocab.txt"), settings.get("do_lower_case", True))
    for vocabulary, merges in BYTE_LEVEL_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return byte_level(
                _read_numbered(folder / vocabulary),
                _read_merges(folder / merges),
                bool(settings.get("add_prefix_space", False)),
            )
    for name in _SENTENCE_PIECE:
        if (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is a SentencePiece model, which is not read here; make a "
                "tokenizer.json of it once: "
                "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    pairs = " and no ".join(" + ".join(pair) for pair in BYTE_LEVEL_FILES)
    raise FileNotFoundError(
        f"no tokenizer.json and no vocab.txt in {folder}, and no {pairs}; a tokenizer folder needs "
        "one of them"
    )


def read_settings(folder: pathlib.Path) -> dict:
    """tokenizer_config.json over special_tokens_map.json; tokens as strings, not as objects."""
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= _read_json(folder / name)
    return {  # objects: so written by older versions of transformers
        key: value["content"] if isinstance(value, dict) and "content" in value else value
        for key, value in settings.items()
    }


def special_token(backend: tokenizers.Tokenizer, settings: Mapping, role: str) -> str | None:
    """The token of a role (a key of `USUAL_NAMES`) by the settings, else by its usual names."""
    if role in settings:
        return settings[role]
    names = USUAL_NAMES[role]
    return next((name for name in names if backend.token_to_id(name) is not None), None)


def word_piece(vocabulary: dict[str, int], lower_case: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer with the given {token: id}, which holds BERT's special tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return backend


def byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, or RoBERTa's where the vocabulary has `<s>` and `</s>`.

    GPT-2's puts no tokens around a text, RoBERTa's `<s> A </s>` and `<s> A </s></s> B </s>`. Any
    text can be encoded and comes back whole.

    Args:
      vocabulary: {token: id}.
      merges: pairs of tokens, the first merged first.
      prefix_space: a text that starts without a space is read as if it had one.

    Raises:
      ValueError: merges that the vocabulary does not fit.
    """
    try:
        model = models.BPE(vocab=vocabulary, merges=merges)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"the merges do not fit the vocabulary: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    if "<s>" in vocabulary and "</s>" in vocabulary:
        backend.post_processor = processors.RobertaProcessing(
            ("</s>", vocabulary["</s>"]),
            ("<s>", vocabulary["<s>"]),
            add_prefix_space=prefix_space,
        )
    # Their names in a text stand for the tokens; all others are text.
    special = ("<|endoftext|>", "<pad>", "<unk>", "<s>", "</s>", "<mask>")
    backend.add_special_tokens([token for token in special if token in vocabulary])
    return backend


def _read_json(path: pathlib.Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return content


def _read_numbered(path: pathlib.Path) -> dict[str, int]:
    vocabulary = _read_json(path)
    if not vocabulary or not all(type(number) is int for number in vocabulary.values()):
        raise ValueError(f'{path} is not a vocabulary: expected an object like {{"token": 0, ...}}')
    return vocabulary


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_lines(path), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2:
            raise ValueError(f"{path}, line {number}: {line!r} is not a pair of tokens")
        merges.append(pair)
    return merges


def _read_words(path: pathlib.Path) -> dict[str, int]:
    words = _lines(path)
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


def _lines(path: pathlib.Path) -> list[str]:
    # Not str.splitlines, which also breaks at rare Unicode separators and would shift all ids.
    return [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").split("\n")]
