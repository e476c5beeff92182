"""Tokenizers as model folders hold them: tokenizer.json, vocab.txt, vocab.json with merges.txt.

A folder has one of

    tokenizer.json                  whole, whatever the model (BERT, GPT-2, LLaMA, T5, ...)
    vocab.txt                       BERT's WordPiece
    vocab.json + merges.txt         byte-level BPE of GPT-2, RoBERTa and Qwen2, or by GPT-2's names
    encoder.json + vocab.bpe

and maybe tokenizer_config.json, special_tokens_map.json and added_tokens.json. The ids are those
that transformers gives, with its defaults for each class (see `tokenizer_classes`), except that

- tokenizer.json stands as it is but for the settings that its class has always taken from
  tokenizer_config.json (do_lower_case, strip_accents, tokenize_chinese_chars, keep_accents,
  add_prefix_space) and for added and special tokens;
- a special or added token without an id in the files, or with another one than it would get, is an
  error: transformers numbers it anew, and the model has another row there, or none.
"""

import contextlib
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import tokenizers

from mpojax import checks, files
from mpojax.data.tokenizers import classes
from mpojax.data.tokenizers import settings as tokenizer_settings
from mpojax.data.tokenizers.classes import BYTE_LEVEL_FILES, WORD_PIECE_FILES
from mpojax.data.tokenizers.settings import LISTS, MAX_ID, ROLES, USUAL_NAMES, TokenizerSettings

_SENTENCE_PIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_ALTERNATIVES = (*WORD_PIECE_FILES, *BYTE_LEVEL_FILES)
# Classes of whatever tokenizer.json holds.
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
_MAX_BYTES = 256 * 2**20


def read(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a folder, and the other arguments of `Tokenizer`.

    Raises:
      FileNotFoundError: the folder has none of the files; names them.
      ValueError: a file is corrupt or contradicts another, or the tokenizer is of a class that is
        not rebuilt; says what to do.
    """
    settings = tokenizer_settings.read_settings(folder)
    if (folder / "tokenizer.json").is_file():
        backend, values = _read_whole(folder / "tokenizer.json", settings), settings.values
    else:
        backend, values = _rebuild(folder, settings)
    if max(backend.get_vocab().values(), default=0) > MAX_ID:
        raise ValueError(f"{folder}: the tokenizer has ids above {MAX_ID}, which no model has")
    inputs = values.get("model_input_names") or ("token_type_ids",)
    return backend, {
        **{role: _special_token(backend, values, role) for role in USUAL_NAMES},
        "truncation_side": values.get("truncation_side")
        or (backend.truncation or {}).get("direction", "right"),
        "split_special_tokens": values.get("split_special_tokens", False),
        "has_token_types": "token_type_ids" in inputs,
    }


def word_piece(vocabulary: dict[str, int], lower_case: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer with the given {token: id}, which holds BERT's special tokens."""
    bert = classes.BERT
    settings = bert.roles | {"do_lower_case": lower_case}
    backend = bert.build(vocabulary, (), settings)
    bert.surround(backend, settings)
    return backend


@contextlib.contextmanager
def library_errors(message: str):
    """Turns what `tokenizers` raises, bare Exception and panics, into ValueError."""
    try:
        yield
    except BaseException as error:  # a panic is no Exception
        is_ours = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
        is_panic = type(error).__name__ == "PanicException"
        if is_ours or not (is_panic or isinstance(error, Exception)):
            raise
        why = " ".join(str(error)[:1000].split())
        raise ValueError(f"{message}: {why[:300]}{'...' * (len(why) > 300)}") from error


def _special_token(backend: tokenizers.Tokenizer, values: Mapping, role: str) -> str | None:
    """The token of a role (a key of `USUAL_NAMES`) by the settings, else by its usual names."""
    if role in values:
        return values[role]
    names = USUAL_NAMES[role]
    return next((name for name in names if backend.token_to_id(name) is not None), None)


def _read_whole(path: pathlib.Path, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json, with what the settings add to it."""
    _check_size(path)
    with library_errors(f"{path} is not a readable tokenizer file"):
        backend = tokenizers.Tokenizer.from_file(str(path))
    if settings.written_here:
        return backend
    before = backend.get_vocab()
    with library_errors(str(path.parent)):
        classes.adjust(settings.class_name, backend, settings.values)
        kind = classes.KINDS.get(settings.class_name)
        _add_tokens(backend, settings, kind, path.parent)
    new = {n: token for n, token in settings.added.items() if token.content not in before}
    _check_ids(backend, new, path)
    return backend


def _rebuild(
    folder: pathlib.Path, settings: TokenizerSettings
) -> tuple[tokenizers.Tokenizer, dict]:
    """The tokenizer of a folder without tokenizer.json; its settings with the class's tokens."""
    found = [n for n in _ALTERNATIVES if all((folder / name).is_file() for name in n)]
    if not found:
        _raise_not_found(folder, settings)
    kind = _named_kind(folder, settings, found)
    names = next((n for n in found if kind is None or n in kind.files), None)
    if names is None:
        needed = " or ".join(" + ".join(names) for names in kind.files)
        raise FileNotFoundError(
            f"{folder} has a {settings.class_name}, which is built from {needed}, but not these "
            "files; take them from where the folder came from"
        )
    vocabulary, merges = _read_vocabulary(folder, names)
    kind = kind or _kind_of(names, vocabulary)
    there = vocabulary.keys() | {token.content for token in settings.added.values()}
    values = {r: t for r, t in kind.roles.items() if t in there} | settings.values
    _check_required(kind, values, there, folder / names[0])
    fault = "the merges do not fit the vocabulary" if merges else "not a vocabulary"
    with library_errors(f"{folder / names[-1]}: {fault}"):
        backend = kind.build(vocabulary, merges, values)
    with library_errors(str(folder)):
        _add_tokens(backend, settings, kind, folder)
        kind.surround(backend, values)
    _check_ids(backend, settings.added, folder / names[0])
    return backend, values


def _check_required(kind: classes.Kind, values: Mapping, there: set[str], path) -> None:
    """Raises ValueError where a token that the kind cannot do without is not there."""
    missing = [
        values.get(role) or kind.roles[role]
        for role in kind.required
        if values.get(role) not in there
    ]
    if missing:
        raise ValueError(
            f"{path} lacks the special tokens {checks.shortened(missing)}; it is not a vocabulary "
            "of this kind, or tokenizer_config.json must name others "
            f"({', '.join(kind.required)})"
        )


def _named_kind(folder, settings: TokenizerSettings, found: list) -> classes.Kind | None:
    """The kind of the folder's class; None where the files alone tell it.

    Raises:
      ValueError: the class is not rebuilt.
    """
    kind = classes.KINDS.get(settings.class_name)
    if kind or (not settings.is_named and _files_tell(settings, found)):
        return kind
    what = settings.class_name or f"tokenizer of model_type {settings.model_type!r}"
    problem = f"{folder} has a {what}, which is not rebuilt from {' + '.join(found[0])}"
    if settings.class_name in _GENERIC:
        raise ValueError(f"{problem}; it needs tokenizer.json, which is missing")
    if settings.class_name in classes.WITHOUT_TOKENIZER_JSON:
        raise ValueError(
            f"{problem}; transformers has no fast form of this class and writes no tokenizer.json "
            "for it either: take a model whose tokenizer has one"
        )
    raise ValueError(f"{problem}; {_advice(folder, settings)}")


def _files_tell(settings: TokenizerSettings, found: list) -> bool:
    """True if the files say enough where no class is named: they come alone, or are vocab.txt."""
    return found[0] in WORD_PIECE_FILES or settings.model_type in (None, "mpojax")


def _kind_of(names: tuple[str, ...], vocabulary: Mapping[str, int]) -> classes.Kind:
    if names in WORD_PIECE_FILES:
        return classes.BERT
    # GPT-2 has neither: its one special token is <|endoftext|>.
    is_roberta = "<s>" in vocabulary and "</s>" in vocabulary
    return classes.ROBERTA if is_roberta else classes.GPT2


def _advice(folder: pathlib.Path, settings: TokenizerSettings) -> str:
    name = settings.class_name if settings.is_named else "AutoTokenizer"
    place = repr(str(folder.resolve()))
    call = f"{name}.from_pretrained({place}).save_pretrained({place})"
    code = f"import transformers; transformers.{call}"
    return (
        "let transformers write a tokenizer.json into it once, which is read whatever the class: "
        f"python -c {shlex.quote(code)}"
    )


def _raise_not_found(folder: pathlib.Path, settings: TokenizerSettings):
    for name in _SENTENCE_PIECE:
        if (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is a SentencePiece model, which is not read here; "
                f"{_advice(folder, settings)}"
            )
    pairs = " and no ".join(" + ".join(pair) for pair in BYTE_LEVEL_FILES)
    advice = "a tokenizer folder needs one of them"
    if not folder.is_dir():
        advice = (
            f"there is no such folder (mpojax.io.local_folder({str(folder)!r}) finds other names)"
        )
    raise FileNotFoundError(
        f"no tokenizer.json and no vocab.txt in {folder}, and no {pairs}; {advice}"
    )


def _add_tokens(backend, settings: TokenizerSettings, kind: classes.Kind | None, folder) -> None:
    """Adds the added tokens and makes the special ones special, as transformers does.

    Special tokens that only the kind names, and that the vocabulary lacks, are left out.
    """
    specials = _specials(settings, kind.roles if kind else {})
    in_file = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = [
        token
        for _, token in sorted(settings.added.items())
        if settings.in_decoder or token.content not in in_file
    ]
    known = in_file | {token.content for token in added}
    special = {  # Of different ones with one content the last stands; repeated ones do not count.
        (type(token), repr(token)): token
        for role, token in specials
        if str(token) not in known and _has_id(backend, role, token, settings, folder)
    }
    in_roles = {str(token) for role, token in specials if role not in LISTS}
    tokens = added + [_as_special(token) for token in special.values()]
    for token in tokens:
        token.special = token.special or token.content in in_roles
    backend.add_tokens(tokens)
    if kind and kind.plain_specials:
        names = [str(token) for _, token in specials]
        backend.add_tokens([_as_special(n) for n in names if backend.token_to_id(n) is not None])


def _has_id(backend, role: str, token, settings: TokenizerSettings, folder) -> bool:
    """True if a special token has an id.

    Raises:
      ValueError: it has none, although the folder names it.
    """
    if backend.token_to_id(str(token)) is not None:
        return True
    if role in USUAL_NAMES or not (role in settings.values or role in LISTS):
        return False  # one of the class, or told by `Tokenizer` where no other is chosen
    raise ValueError(
        f"{folder}: {role} names {checks.shortened(str(token))}, which has no id in the vocabulary "
        "or among the added tokens; give it one in added_tokens.json, or remove it"
    )


def _specials(settings: TokenizerSettings, defaults: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(role, token) of the special tokens that are named, and the class's for other roles."""
    others = [(role, token) for role, token in defaults.items() if role not in settings.values]
    order = {role: place for place, role in enumerate(ROLES)}
    return sorted(settings.special + others, key=lambda pair: order.get(pair[0], len(order)))


def _as_special(token: str | tokenizers.AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token


def _check_ids(backend, declared: Mapping[int, tokenizers.AddedToken], path) -> None:
    """Raises ValueError where an added token has another id than its file says."""
    ids = {number: backend.token_to_id(token.content) for number, token in declared.items()}
    wrong = [
        f"{checks.shortened(declared[number].content)} has id {found}, not {number}"
        for number, found in ids.items()
        if found != number
    ]
    if wrong:
        raise ValueError(
            f"the added tokens next to {path} do not continue its vocabulary: "
            f"{checks.listed(wrong)}; their ids must follow those of the vocabulary without a gap"
        )


def _read_vocabulary(folder: pathlib.Path, names: tuple[str, ...]):
    """The vocabulary, and the merges or none, of the given files."""
    if len(names) == 1:
        return _read_words(folder / names[0]), []
    vocabulary = tokenizer_settings.read_numbered(folder / names[0])
    if not vocabulary:
        raise ValueError(f"{folder / names[0]} holds no tokens")
    return vocabulary, _read_merges(folder / names[1])


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_lines(path), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2:
            raise ValueError(
                f"{path}, line {number}: {checks.shortened(line)} is not a pair of tokens"
            )
        merges.append(pair)
    return merges


def _read_words(path: pathlib.Path) -> dict[str, int]:
    # Space after a token is none of it; a token of nothing else is odd, but keeps its id.
    words = [line.rstrip() or line for line in _lines(path)]
    if not words[-1]:
        words.pop()
    tokenizer_settings.check_once(path, "tokens", words)
    return {word: index for index, word in enumerate(words)}


def _lines(path: pathlib.Path) -> list[str]:
    _check_size(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 ({error.reason}); convert the file, for instance "
            f"with: iconv -f latin1 -t utf-8 {shlex.quote(str(path))}"
        ) from error
    # Not str.splitlines, which also breaks at rare Unicode separators and would shift all ids.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _check_size(path: pathlib.Path) -> None:
    files.check_fetched(path)
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, too many for a tokenizer")
