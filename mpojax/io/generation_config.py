"""generation_config.json <-> end tokens and sampling defaults of a language model's settings.

Where a folder has no such file, transformers reads the same entries from config.json; so does this.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from absl import logging

from mpojax import checks, models
from mpojax.checks import flag, integer, null, number, sequence, whole

NAME = "generation_config.json"
TOKEN_IDS = integer() | null() | sequence(integer())
# {entry: field of the config}.
_TOKENS = {
    "bos_token_id": "bos_id",
    "eos_token_id": "eos_id",
    "pad_token_id": "pad_id",
    "decoder_start_token_id": "decoder_start_id",
}
FIELDS = {
    **dict.fromkeys(_TOKENS, TOKEN_IDS),
    "do_sample": flag() | null(),
    **dict.fromkeys(("temperature", "top_k", "top_p"), number() | null()),
    "num_beams": integer(1) | null(),
    "length_penalty": number() | null(),
}
# What these may be, and what turns them off: a value outside says nothing of the model, which most
# uses of a folder never sample from.
_RANGES = {
    "temperature": (number(0.0), 1.0),
    "top_k": (whole(0), 0),
    "top_p": (number(above=0.0, high=1.0), 1.0),
}
# transformers keeps the 50 likeliest tokens where a file asks for draws and says no more.
_TOP_K = 50
# Entries that change texts and have no counterpart here, with the values that change nothing.
_UNSUPPORTED = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1.0),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "penalty_alpha"), 0.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens"), 0),
    **dict.fromkeys(
        ("bad_words_ids", "sequence_bias", "stop_strings", "watermarking_config"), None
    ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), None),
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
}
_UNSUPPORTED_OF_BEAMS = {
    "do_sample": False,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}


def read(config: models.Config, folder: pathlib.Path) -> models.Config:
    """Settings of an imported model with what its folder says about generation.

    Entries that `generate` has no counterpart of are named in the log.

    Raises:
      ValueError: an entry of a wrong type.
    """
    if not config.generates:
        return config
    path = folder / NAME
    if path.is_file():
        own = checks.read_json(path, FIELDS)
        config = dataclasses.replace(config, source_generation_config=_json(own))
    else:
        path, own = folder / "config.json", json.loads(config.source_config)
        checks.check(own, FIELDS, str(path))
    tokens = {
        field: token_ids(name, own.get(name), config.vocab_size)
        for name, field in _TOKENS.items()
        if hasattr(config, field)
    }
    found = {field: ids for field, ids in tokens.items() if ids is not None}
    _log_unsupported(own, str(path))
    if wrong := checks.problems(own, {name: r | null() for name, (r, _) in _RANGES.items()}):
        logging.warning("%s: %s; left out", path, "; ".join(wrong))
    return dataclasses.replace(config, sampling=sampling(own), **found)


def written(config: models.Config) -> dict:
    """Content for export: that of the source where there is one, brought up to date."""
    content = json.loads(config.source_generation_config)
    for name, field in _TOKENS.items():
        value = getattr(config, field, None)
        if token_ids(name, content.get(name), config.vocab_size) != value:
            content[name] = list(value) if isinstance(value, tuple) else value
    if sampling(content) != config.sampling:
        content |= _entries(config.sampling)
    return content


def sampling(content: Mapping) -> models.Sampling:
    """Default sampling settings."""
    values = {name: value for name, value in content.items() if value is not None}
    for name, (allowed, off) in _RANGES.items():
        if name in values and not allowed.accepts(values[name]):
            values[name] = off
    if (beams := values.get("num_beams", 1)) > 1:
        penalty = float(values.get("length_penalty", 1.0))
        return models.Sampling(beams=beams, length_penalty=penalty)
    temperature = float(values.get("temperature", 1.0))
    if not values.get("do_sample") or temperature == 0.0:
        return models.Sampling()
    top_p = float(values.get("top_p", 1.0))
    return models.Sampling(
        temperature=temperature,
        # 0 is off
        top_k=int(values.get("top_k", _TOP_K)) or None,
        top_p=top_p if top_p < 1.0 else None,
    )


def token_ids(name: str, value, vocab_size: int) -> int | tuple[int, ...] | None:
    """The token of an entry, or several of eos_token_id; None where there is none.

    What is no token of the vocabulary, such as -1, is left out.
    """
    given = value if isinstance(value, (list, tuple)) else [value]
    ids = tuple(dict.fromkeys(i for i in given if i is not None and 0 <= i < vocab_size))
    several = len(ids) > 1 and name == "eos_token_id"
    return ids if several else ids[0] if ids else None


def _entries(how: models.Sampling) -> dict:
    """The inverse of `sampling`; null is the default."""
    return {
        "do_sample": how.draws,
        "temperature": how.temperature if how.draws else None,
        "top_k": (how.top_k or 0) if how.draws else None,
        "top_p": how.top_p,
        "num_beams": how.beams,
        "length_penalty": how.length_penalty if how.beams > 1 else None,
    }


def _log_unsupported(content: Mapping, source: str):
    neutral = _UNSUPPORTED | (_UNSUPPORTED_OF_BEAMS if (content.get("num_beams") or 1) > 1 else {})
    found = [
        f"{name}={checks.shortened(content[name])}"
        for name, value in neutral.items()
        if content.get(name) not in (None, value)
    ]
    if found:
        logging.warning("%s: generate does not know %s; left out", source, ", ".join(found))


def _json(content: Mapping) -> str:
    return json.dumps(content, sort_keys=True)
