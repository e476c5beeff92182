"""Chat templates of tokenizer folders: a conversation as the text that a model was tuned on.

A template is a program of Jinja, in `chat_template.jinja` or tokenizer_config.json, and runs in
Jinja's sandbox, with the names that transformers gives it.
"""

import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mpojax import checks, tokenizer_folders

_FILE = "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_NAMED = checks.mapping(checks.text(2**20), ("name", "template"))
_FIELDS = {"chat_template": checks.null() | checks.text(2**20) | checks.sequence(_NAMED)}


def read_template(folder: str | os.PathLike) -> str | None:
    """The chat template of a tokenizer's folder, None where it has none; of several "default".

    Raises:
      ValueError: damaged files.
    """
    return _template(tokenizer_folders.local(folder))


def _template(folder: pathlib.Path) -> str | None:
    if (folder / _FILE).is_file():
        return (folder / _FILE).read_text(encoding="utf-8")
    found = _settings(folder).get("chat_template")
    if isinstance(found, (list, tuple)):
        return {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found


def chat_prompt(
    folder: str | os.PathLike, messages: Sequence[Mapping[str, str]], *, answer: bool = True
) -> str | None:
    """The text of a conversation by the chat template of a tokenizer's folder; None without one.

    It names its special tokens itself: encode it by `Tokenizer.encode_prompt`.

    Args:
      folder: of a tokenizer.
      messages: {"role": "system", "user" or "assistant", "content": text}, in order.
      answer: end with what begins an answer of the model.

    Raises:
      ImportError: there is a template, and jinja2 is not installed.
      ValueError: a template that fails on these messages; says why.
    """
    here = tokenizer_folders.local(folder)
    template, settings = _template(here), _settings(here)
    if template is None:
        return None
    tokens = {role: _content(settings[role]) for role in _ROLES if settings.get(role)}
    try:
        compiled = _environment(str(folder)).from_string(template)
        return compiled.render(messages=list(messages), add_generation_prompt=answer, **tokens)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # a template may raise anything
        raise ValueError(f"the chat template of {folder} fails: {error}") from error


def _environment(folder: str):
    """As transformers makes it."""
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError(
            f"the chat template of {folder} needs jinja2: pip install -e '.[chat]'"
        ) from error
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False} | how)
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def _raise(message: str) -> None:
    raise ValueError(message)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / tokenizer_folders.SETTINGS
    return checks.read_json(path, _FIELDS) if path.is_file() else {}


def _content(token: Any) -> str:
    return token.get("content", "") if isinstance(token, Mapping) else str(token)
