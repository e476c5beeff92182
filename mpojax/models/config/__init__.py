"""Settings of models, declared once: encoders, decoders, and encoder-decoders."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mpojax import checks, patterns
from mpojax.checks import anything, number, sequence, text
from mpojax.models.config.base import COMPUTE_DTYPES, TABLES, Config, LayerKind, StackSpec
from mpojax.models.config.encoder import HEADS, EncoderConfig
from mpojax.models.config.language import (
    DecoderConfig,
    EncoderDecoderConfig,
    LanguageModelConfig,
)

__all__ = [
    "COMPUTE_DTYPES",
    "CONFIGS",
    "HEADS",
    "SETTINGS",
    "TABLES",
    "Config",
    "DecoderConfig",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "LanguageModelConfig",
    "LayerKind",
    "StackSpec",
    "check_rules",
]

# By their name in files.
CONFIGS = {kind.kind: kind for kind in (EncoderConfig, EncoderDecoderConfig, DecoderConfig)}


def _declared() -> Iterator[tuple[str, checks.Allowed]]:
    for kind in CONFIGS.values():
        for entry in dataclasses.fields(kind):
            yield entry.name, entry.metadata["allowed"]


# {setting: what it may be}, of all kinds of models: for files that name settings otherwise.
SETTINGS = dict(_declared())

_RULE = {"pattern": text(), "settings": checks.mapping(anything()) | number()}


def check_rules(values: Mapping[str, Any], where: str) -> None:
    """Checks the rules for adapters and experts of a file, whose patterns take bounded time.

    Raises:
      ValueError: names a rule that is none.
    """
    for name in ("adapters", "experts"):
        rules = values.get(name) or ()
        checks.check({name: rules}, {name: sequence(sequence(anything(), 2))}, where)
        for entry in rules:
            checks.check(dict(zip(_RULE, entry, strict=True)), _RULE, f"{where}: {name}")
        if fault := patterns.fault([pattern for pattern, _ in rules]):
            raise ValueError(f"{where}: {name}: a pattern {fault}.")
