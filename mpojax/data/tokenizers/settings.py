"""Settings of a tokenizer in a model folder, besides the vocabulary.

tokenizer_config.json, special_tokens_map.json, added_tokens.json and, of config.json, the model's
type; read with the precedence of transformers.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from mpojax import checks, tokenizer_folders

ROLES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
# Largest vocabularies have a million tokens; arrays as long as the largest id are made of them.
MAX_ID = 2**24 - 1
# Where the folder names no special tokens: special_map by role, in the order of preference.
USUAL_NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "bos_token": ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>"),
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>"),
}


def _is_token(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, str) and value != ""
    content = value.get("content")
    flags = [value[name] for name in _FLAGS if name in value]
    return isinstance(content, str) and content != "" and all(type(f) is bool for f in flags)


def _is_numbered(value: Any) -> bool:
    """True if it is an added_tokens_decoder: {id in decimal digits: token as an object}."""
    return isinstance(value, Mapping) and all(
        name.isascii()
        and name.isdecimal()
        and len(name) <= len(str(MAX_ID))
        and _ID.accepts(int(name))
        and isinstance(token, Mapping)
        and _is_token(token)
        for name, token in value.items()
    )


_TOKEN = checks.Allowed(
    "a token (a text that is not empty, or an object with such a content and true or false for "
    f"{', '.join(_FLAGS)})",
    _is_token,
)
_OPTIONAL = _TOKEN | checks.null()
_ID = checks.integer(0, MAX_ID)
_LIST = checks.sequence(_TOKEN) | checks.mapping(_TOKEN) | checks.null()
_SPECIAL = dict.fromkeys(ROLES, _OPTIONAL) | dict.fromkeys(LISTS, _LIST)
_NUMBERED = checks.Allowed(
    f"an object of tokens (objects with a content) by id from 0 to {MAX_ID}", _is_numbered
)
_OPTIONAL_FLAG = checks.flag() | checks.null()
_CONFIG = _SPECIAL | {
    "tokenizer_class": tokenizer_folders.CLASS,
    "added_tokens_decoder": _NUMBERED,
    "do_lower_case": checks.flag(),
    "strip_accents": _OPTIONAL_FLAG,
    "tokenize_chinese_chars": checks.flag(),
    "keep_accents": checks.flag(),
    "add_prefix_space": _OPTIONAL_FLAG,
    "add_bos_token": _OPTIONAL_FLAG,
    "add_eos_token": _OPTIONAL_FLAG,
    "split_special_tokens": checks.flag(),
    "truncation_side": checks.one_of("left", "right"),
    "model_input_names": checks.sequence(checks.text(100)) | checks.null(),
}


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Settings of a folder's tokenizer, besides the vocabulary.

    Attributes:
      values: tokenizer_config.json with special_tokens_map.json; tokens of roles as text.
      class_name: of its tokenizer, without "Fast": the one that is named, or the model's, or None.
      model_type: of its config.json, or None.
      is_named: whether the class is named.
      added: tokens by id, of added_tokens_decoder, else of added_tokens.json.
      in_decoder: whether they are of added_tokens_decoder.
      special: (role or list, token) of the special tokens that are named; text where no flags are.
    """

    values: dict[str, Any]
    class_name: str | None
    model_type: str | None
    is_named: bool
    added: dict[int, tokenizers.AddedToken]
    in_decoder: bool
    special: list[tuple[str, str | tokenizers.AddedToken]]

    @property
    def written_here(self) -> bool:
        """True if tokenizer_config.json holds what `Tokenizer.save` writes and nothing else."""
        name = self.values.get("tokenizer_class")
        return not self.added and tokenizer_folders.is_written_here(self.values, name)


def read_settings(folder: pathlib.Path) -> TokenizerSettings:
    """The settings of a folder.

    Raises:
      ValueError: a file is no JSON or has a field of a wrong type; names both.
    """
    config = _read_optional(folder / "tokenizer_config.json", _CONFIG)
    model = _read_optional(folder / "config.json", tokenizer_folders.MODEL_FIELDS)
    in_decoder = "added_tokens_decoder" in config
    special_map = {} if in_decoder else _read_optional(folder / "special_tokens_map.json", _SPECIAL)
    # special_tokens_map.json stands, except over an object that only tokenizers of here read.
    raw = config | {k: v for k, v in special_map.items() if not _is_untyped(config.get(k))}
    special = [(role, _special(token)) for role, token in _named_tokens(raw)]
    early, late = _listed_tokens(config, special_map)
    if in_decoder:
        added = {int(n): _added(token) for n, token in config["added_tokens_decoder"].items()}
    else:
        names = {_content(token) for token in [*map(raw.get, ROLES), *early]}
        added = _read_added(folder / "added_tokens.json", names)
    special += [(LISTS[0], _special(token)) for token in early + late]
    is_whole = (folder / "tokenizer.json").is_file()
    class_name = tokenizer_folders.class_of(config, model, is_whole=is_whole)
    return TokenizerSettings(
        {k: _content(v) if k.endswith("_token") and _is_token(v) else v for k, v in raw.items()},
        class_name and class_name.removesuffix("Fast"),
        model.get("model_type"),
        bool(tokenizer_folders.named_class(config, model)),
        added,
        in_decoder,
        special,
    )


def read_numbered(path: pathlib.Path) -> dict[str, int]:
    """{token: id} of a vocab.json or added_tokens.json.

    Raises:
      ValueError: the file holds something else, or an id twice.
    """
    try:
        vocabulary = checks.read_json(path)
    except ValueError as error:
        example = 'a vocabulary must hold one JSON object like {"token": 0, ...}'
        raise ValueError(f"{error} ({example})") from error
    wrong = [token for token, number in vocabulary.items() if not _ID.accepts(number)]
    if wrong:
        token, number = checks.shortened(wrong[0]), checks.shortened(vocabulary[wrong[0]])
        raise ValueError(
            f'{path} is not a vocabulary: expected an object like {{"token": 0, ...}}, but the id '
            f"of {token} is {number} in place of {_ID.what}"
        )
    check_once(path, "ids", vocabulary.values())
    return vocabulary


def check_once(path: pathlib.Path, what: str, values: Iterable) -> None:
    """Raises ValueError where a value occurs twice."""
    twice = sorted(value for value, count in collections.Counter(values).items() if count > 1)
    if twice:
        raise ValueError(
            f"{path} holds {what} twice: {checks.shortened(twice[:5])}; every token must have an "
            "id of its own"
        )


def _read_optional(path: pathlib.Path, fields: Mapping[str, checks.Allowed]) -> dict:
    return checks.read_json(path, fields) if path.is_file() else {}


def _named_tokens(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(role, token) of the special tokens that have a role, a usual one or the model's own."""
    own = [
        (role, token)
        for role, token in raw.items()
        if role.endswith("_token")
        and role not in ROLES
        and _is_token(token)
        and not _is_untyped(token)
    ]
    return [(role, raw[role]) for role in ROLES if raw.get(role) is not None] + own


def _listed_tokens(config: Mapping, special_map: Mapping) -> tuple[list, list]:
    """Special tokens without a role: those by which added_tokens.json is read, and the others."""
    extra, additional = LISTS
    values = [config.get(extra) or config.get(additional) or [], special_map.get(extra) or []]
    early = [token for value in values if isinstance(value, list) for token in value]
    late = [token for value in values if isinstance(value, dict) for token in value.values()]
    if not {extra, additional}.intersection(config) and extra not in special_map:
        more = special_map.get(additional) or []
        late += more.values() if isinstance(more, dict) else more
    return early, late


def _read_added(path: pathlib.Path, special: set[str]) -> dict[int, tokenizers.AddedToken]:
    """Tokens by id of an added_tokens.json, given the names of special tokens."""
    numbers = read_numbered(path) if path.is_file() else {}
    return {
        number: tokenizers.AddedToken(
            token, normalized=token not in special, special=token in special
        )
        for token, number in numbers.items()
    }


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, Mapping) else token


def _is_untyped(token: Any) -> bool:
    return isinstance(token, Mapping) and "__type" not in token


def _special(token: str | Mapping) -> str | tokenizers.AddedToken:
    if isinstance(token, str):
        return token
    return _added({**token, "special": True} if _is_untyped(token) else token)


def _added(token: Mapping) -> tokenizers.AddedToken:
    flags = {name: token[name] for name in _FLAGS if name in token}
    return tokenizers.AddedToken(token["content"], **flags)
