"""Descriptions of the checkpoint formats of language models.

`gpt2`, `t5` and `llama` hold the descriptions. A row of names is (checkpoint name, logical path,
transform) as in `architectures`; `{i}` stands for the layer (of the encoder, where there is one)
and `{j}` for the layer of the decoder. Rows of one checkpoint name are arrays that stand side by
side in one tensor, along the last axis of our orientation. Rows whose path is no array of the model
at hand do not count.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mpojax import checks, models
from mpojax.checks import integer, null, sequence
from mpojax.io.hf import name_maps
from mpojax.io.hf.architectures import Row, types_of

Config = models.DecoderConfig | models.EncoderDecoderConfig

TOKEN_IDS = integer() | null() | sequence(integer())


@dataclasses.dataclass(frozen=True)
class LanguageArchitecture:
    """All that is particular to one model type of transformers.

    Attributes:
      model_type: its name in config.json.
      kind: class of our settings.
      classes: transformers' classes with an output map; the first one is written on export.
      headless: classes without: logits then come from the token embedding.
      prefix: of all names but those of the output map.
      rows: names, by whether feed-forward blocks are gated.
      table: name of the token embedding.
      copies: names of other copies of it that a file may hold.
      harmless: regular expression for constant buffers, which are no parameters.
      fields: {configuration key: field of our settings}.
      defaults: values of keys that may be absent.
      ids: {configuration key: (field, value where the key is absent)} of token ids.
      types: of the keys that `read` looks at.
      fixed: fields that have one value in every model of this type.
      required: values that change the computation: a key that is present must have one of these.
      refused: (what is wrong, predicate of the settings).
      read: fields that follow from several keys, from the settings; raises ValueError.
      derived: names of those fields.
      misfits: what of our settings has no counterpart.
      write: keys of those fields, from our settings and those of the source.
      tensors_decide: key whose presence says that not `tie_word_embeddings` but the tensors say
        whether there is an output map besides the token embedding.
    """

    model_type: str
    kind: type
    classes: tuple[str, ...]
    headless: tuple[str, ...]
    prefix: str
    rows: Mapping[bool, tuple[Row, ...]]
    table: str
    copies: tuple[str, ...]
    harmless: str
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    ids: Mapping[str, tuple[str, int | None]]
    types: Mapping[str, checks.Allowed]
    fixed: Mapping[str, Any]
    required: Mapping[str, tuple]
    read: Callable[[Mapping], dict]
    derived: tuple[str, ...]
    misfits: Callable[[Config], list[str]]
    write: Callable[[Config, Mapping], dict]
    refused: tuple[tuple[str, Callable[[Mapping], bool]], ...] = ()
    tensors_decide: str | None = None

    @property
    def all_types(self) -> dict[str, checks.Allowed]:
        """The type of every key."""
        ids = dict.fromkeys(self.ids, TOKEN_IDS)
        return types_of(self.fields, self.defaults, {**ids, **self.types})

    @property
    def names(self) -> tuple[str, ...]:
        """Every class whose checkpoints are read."""
        return (*self.classes, *self.headless)

    def is_harmless(self, name: str) -> bool:
        """True if a tensor is a constant buffer."""
        return re.fullmatch(self.harmless, name) is not None


def activation(key: str, name: str) -> str:
    """Our name of an activation.

    Raises:
      ValueError: one that is not supported.
    """
    if name not in name_maps.ACTIVATIONS:
        raise ValueError(f"{key}={name!r} (supported: {', '.join(name_maps.ACTIVATIONS)})")
    return name_maps.ACTIVATIONS[name]


def activation_name(ours: str, kept: str) -> str:
    """Their name of one of ours: `kept` where that is the same one."""
    if name_maps.ACTIVATIONS.get(kept) == ours:
        return kept
    return next(name for name, value in name_maps.ACTIVATIONS.items() if value == ours)
