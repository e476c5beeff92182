"""Descriptions of checkpoint formats; `name_maps` holds the descriptions.

A row of names is (checkpoint name, logical path, transform). `{i}` stands for the layer, `{j}` for
a feed-forward block before the last of its layer and `{last}` for the last one, in both. The
`{group}` is the number of a group of layers in a checkpoint's name, in a path its first layer. The
transform is "transpose" for torch linear weights, which are (out_features, in_features), else
"same". Rows whose path is no array of the model at hand do not count.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mpojax import checks
from mpojax.checks import anything, flag, integer, mapping, null, number, sequence, text
from mpojax.models import setting_types

Row = tuple[str, str, str]


# Of every config.json, of whatever model.
COMMON = {
    "model_type": text(200),
    "architectures": sequence(text(200)) | null(),
    "id2label": mapping(anything()) | null(),
    "label2id": mapping(anything()) | null(),
    "num_labels": integer(1) | null(),
    "tie_word_embeddings": flag() | null(),
    "mpojax": mapping(anything()),
}


def types_of(
    fields: Mapping[str, str], defaults: Mapping[str, Any], more: Mapping[str, checks.Allowed]
) -> dict[str, checks.Allowed]:
    """The type of every entry of config.json: those of our settings, and `more`.

    Null in place of one of our settings stands for its default.
    """
    own = {theirs: setting_types.FIELDS[ours] for theirs, ours in fields.items()}
    optional = {key for key in own if key in defaults and not own[key].accepts(None)}
    return {**own, **{key: own[key] | null() for key in optional}, **more}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that is particular to one model type of transformers.

    Attributes:
      model_type: its name in config.json.
      prefix: of the encoder's names in models with a head.
      classes: transformers' class by what is on the encoder: "none", "classifier", "span",
        "pretraining" (masked words and the order or succession of sentences), "masked_lm".
      pretraining: classes whose heads are dropped unless they are asked for.
      dropped: regular expression for the names in those heads.
      encoder: rows inside the prefix.
      outside: rows outside of it, by the same kinds as `classes`.
      fields: {configuration key: field of EncoderConfig}.
      defaults: values of keys that may be absent.
      activation: key of the activation.
      pooler_flag: key that says whether the pooler has weights (else it is the first token as it
        is); None where a pooler always has.
      head_dropout: key of the dropout before the head, by kind of head; None where there is none.
      fixed: fields that have one value in every model of this type.
      required: values that change the computation: a key that is present must have one of these.
      derived: {configuration key: (another key, {value of that: value of this})}, settings that
        follow from others.
      refused: (what is wrong, predicate of the settings), for settings that do not go together.
      types: of the keys that are in none of the above.
    """

    model_type: str
    classes: Mapping[str, str]
    pretraining: tuple[str, ...]
    dropped: str
    encoder: tuple[Row, ...]
    outside: Mapping[str, tuple[Row, ...]]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    head_dropout: Mapping[str, str | None]
    activation: str = "hidden_act"
    pooler_flag: str | None = None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    derived: Mapping[str, tuple[str, Mapping]] = dataclasses.field(default_factory=dict)
    refused: tuple[tuple[str, Callable[[Mapping], bool]], ...] = ()
    types: Mapping[str, checks.Allowed] = dataclasses.field(default_factory=dict)

    @property
    def all_types(self) -> dict[str, checks.Allowed]:
        """The type of every key."""
        rates = {key: number() | null() for key in self.head_dropout.values() if key is not None}
        return types_of(
            self.fields, self.defaults, {self.activation: text(100) | null(), **rates, **self.types}
        )

    @property
    def prefix(self) -> str:
        """Prefix of the encoder's names in task models."""
        return f"{self.model_type}."

    @property
    def names(self) -> tuple[str, ...]:
        """Every class whose checkpoints are read."""
        return tuple(dict.fromkeys((*self.classes.values(), *self.pretraining)))


def linear(theirs: str, ours: str) -> tuple[Row, Row]:
    """Weight and bias of a linear map."""
    return (
        (f"{theirs}.weight", f"{ours}/kernel", "transpose"),
        (f"{theirs}.bias", f"{ours}/bias", "same"),
    )


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """Weight and bias of a norm."""
    return (f"{theirs}.weight", f"{ours}/scale", "same"), (f"{theirs}.bias", f"{ours}/bias", "same")


def rows(*parts: tuple[Row, ...]) -> tuple[Row, ...]:
    """All rows of the parts."""
    return tuple(row for part in parts for row in part)
