"""The tokenizer of a GGUF file, as a `tokenizers.Tokenizer` and as files that others read.

Byte-level BPE alone. What llama.cpp calls `tokenizer.ggml.pre` names how texts are cut into words
first (llama_vocab in its src/llama-vocab.cpp); of these there are the kinds that `tokenizers` cuts
alike.
"""

import dataclasses
import json
import os
from collections.abc import Callable

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers import models as token_models

from mpojax import files
from mpojax.io.gguf.reader import GGUFFile

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    """GPT-2's words, but every digit by itself."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, to_bytes])


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How texts are cut into words; `tokenizer.ggml.pre`.

    Attributes:
      words: makes what cuts them.
      whole_words: whether a word that is a token is taken whole.
      begins: whether a text begins with the first token where the file does not say.
    """

    words: Callable[[], pre_tokenizers.PreTokenizer]
    whole_words: bool = False
    begins: bool = False


_KINDS = {
    "gpt-2": _Kind(_gpt2),
    "smollm": _Kind(_smollm),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Kind(_llama3, True, True)),
}


def gguf_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file.

    Names of control tokens in a text, such as <|im_end|>, stand for the tokens.

    Raises:
      ImportError: the package gguf is not installed.
      FileNotFoundError: no such file.
      ValueError: a damaged file, or a kind of tokenizer that cannot be rebuilt exactly.
    """
    return _rebuild(GGUFFile(path))


def write_gguf_tokenizer(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a GGUF file's tokenizer.

    The folder, made where needed, can then be given to `data.Tokenizer.from_folder`,
    `transformers.AutoTokenizer.from_pretrained`, and as `tokenizer_from`. Padding is the file's
    padding token, else its last token of a text.

    Args:
      path: the GGUF file.
      folder: where to write; files of these names are replaced.

    Raises:
      OSError: the folder cannot be written.
      ImportError, FileNotFoundError, ValueError: as `gguf_tokenizer`.
    """
    file = GGUFFile(path)
    backend = _rebuild(file)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, name in roles.items():
        number = file.get(f"tokenizer.ggml.{name}_token_id")
        # An id beyond the vocabulary has no token.
        if number is not None and (token := backend.id_to_token(number)) is not None:
            settings[f"{role}_token"] = token
    if "eos_token" in settings:
        settings.setdefault("pad_token", settings["eos_token"])
    if (template := file.get("tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    folder = files.at(folder)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    files.write_atomic(folder / "tokenizer_config.json", text + "\n")
    files.write_atomic(folder / "tokenizer.json", backend.to_str(pretty=True) + "\n")


def _rebuild(file: GGUFFile) -> tokenizers.Tokenizer:
    model, cut = file.need("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or cut not in _KINDS:
        raise ValueError(
            f"{file.path} has a tokenizer of model {model!r} with pre-tokenizer {cut!r}, which "
            f"cannot be rebuilt exactly; supported are model 'gpt2' with {', '.join(_KINDS)}. Take "
            "tokenizer.json from the folder that the file was made of."
        )
    kind, tokens = _KINDS[cut], file.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.need("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = [token for number, token in enumerate(tokens) if vocabulary[token] != number]
        raise ValueError(f"{file.path} holds tokens twice: {twice[:5]}.")
    try:
        model = token_models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind.whole_words)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file.path}: its merges do not fit its vocabulary: {error}.") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = kind.words()
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, tokens, file.get("tokenizer.ggml.token_type", []))
    _add_ends(file, backend, kind.begins)
    return backend


def _add_special(backend: tokenizers.Tokenizer, tokens, types):
    """Tokens that are found in a text before it is cut into words."""
    for token, kind in zip(tokens, types, strict=False):
        if kind in (_UNKNOWN, _CONTROL):
            backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])


def _add_ends(file: GGUFFile, backend: tokenizers.Tokenizer, begins: bool):
    """First and last token of a text, where the file wants them."""
    ends = {}
    for name, default in (("bos", begins), ("eos", False)):
        number = file.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and file.get(f"tokenizer.ggml.add_{name}_token", default):
            ends[name] = backend.id_to_token(number), number
    if not ends:
        return
    first, last = ([ends[name][0]] if name in ends else [] for name in ("bos", "eos"))
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{t}:1" for t in first), "$B:1", *(f"{t}:1" for t in last)],
        special_tokens=list(ends.values()),
    )
