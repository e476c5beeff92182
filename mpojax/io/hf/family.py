"""Description of a model family as data: settings and tensors, for reading and for writing.

`Description` is what any file format has, config.json of transformers or the metadata of a GGUF
file: a key is declared once, with type, default and field of the model config. `Family` adds what a
model type of transformers has; `encoders.EncoderFamily` and `language_models.LanguageFamily` know
poolers, heads and tied output maps.

To add a family: write a module like `gpt2` (keys, names of tensors, what is refused), and list it
in `checkpoints.FAMILIES`; loading, export, peft folders and errors follow from that.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from absl import logging

from mpojax import checks, models
from mpojax.checks import Allowed, anything, flag, integer, mapping, null, sequence, text
from mpojax.io.generation_config import TOKEN_IDS, token_ids
from mpojax.io.hf import names
from mpojax.io.hf.names import Marks, Module, Tensor

# Entries of config.json, of whatever model.
COMMON = {
    "model_type": text(200),
    "architectures": sequence(text(200)) | null(),
    "id2label": mapping(anything()) | null(),
    "label2id": mapping(anything()) | null(),
    "num_labels": integer(1) | null(),
    "tie_word_embeddings": flag() | null(),
    "mpojax": mapping(anything()),
}
# What configurations of all types say in the same way.
_OF_EVERY_TYPE = ("id2label", "label2id", "problem_type")
# Name in transformers -> key of `nn.ACTIVATIONS`; the first name of each is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a file's settings, and the field of the model config that it is.

    Attributes:
      name: in the file.
      field: of the config; None for what only `Joint`s and refusals look at.
      allowed: its values.
      default: where it is absent, or null and that is not allowed; without one it must be there.
      choices: {value in the file: value of the field}; None: they are the same.
      supported: the only values that are computed here; empty for all.
      is_token: whether it names tokens, which count if they are in the vocabulary.
    """

    name: str
    field: str | None
    allowed: Allowed
    default: Any = _MISSING
    choices: Mapping[str, Any] | None = None
    supported: tuple = ()
    is_token: bool = False

    def is_absent(self, content: Mapping) -> bool:
        """True if the default holds."""
        if content.get(self.name) is None and self.name in content:
            return self.default is not _MISSING and not self.allowed.accepts(None)
        return self.name not in content

    def problem(self, value: Any) -> str:
        """What is wrong with a value; nothing of a good one."""
        shown = f"{value:g}" if isinstance(value, float) else checks.shortened(value)
        if not self.allowed.accepts(value):
            return f"{self.name}={shown} must be {self.allowed.what}"
        if self.supported and value not in self.supported:
            supported = [str(each) for each in self.supported if each is not None] or ["null"]
            return f"{self.name}={shown} (supported: {', '.join(supported)})"
        return ""

    def read(self, value: Any) -> Any:
        """Value of the field."""
        return value if self.choices is None else self.choices[value]

    def fits(self, value: Any) -> bool:
        """True if a value of the field can be written."""
        if self.choices is not None:
            return value in self.choices.values()
        return self.allowed.accepts(value)

    def write(self, value: Any, current: Any, vocab_size: int) -> Any:
        """Value in the file, of one of the field: the current one where that says the same."""
        if self.is_token:
            return current if token_ids(self.name, current, vocab_size) == value else value
        return value if self.choices is None else name_of(value, self.choices, current)


def key(name: str, field: str | None = None, default: Any = _MISSING, allowed=None) -> Key:
    """A field of the config; its name and type are those of the field unless given."""
    allowed = models.SETTINGS[field or name] if allowed is None else allowed
    return Key(name, field or name, allowed, default)


def activation(name: str, default: str) -> Key:
    """The activation, by its name in transformers."""
    return Key(name, "activation", text(100), default, ACTIVATIONS, tuple(ACTIVATIONS))


def token(name: str, field: str, default: int | None = None) -> Key:
    """A token, or several."""
    return Key(name, field, TOKEN_IDS, default, is_token=True)


def only(name: str, *supported: Any) -> Key:
    """A setting that changes the computation, of which these values alone are supported."""
    return Key(name, None, anything(), None, supported=supported)


def extra(name: str, allowed: Allowed, default: Any = None) -> Key:
    """A setting that joints and refusals look at."""
    return Key(name, None, allowed, default)


def keys(*entries: Key) -> dict[str, Key]:
    """Keys by name."""
    return {entry.name: entry for entry in entries}


def num_labels(values: Mapping) -> int:
    """Outputs of a classifier, of a config.json."""
    return len(values.get("id2label") or ()) or values.get("num_labels") or 2


def write_labels(config: models.Config, content: dict) -> None:
    """Names of the outputs of a head, where there are not as many as it has outputs."""
    if len(content.get("id2label") or ()) != config.num_labels:
        content["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        content["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}


def name_of(value: Any, choices: Mapping[str, Any], current: Any = None) -> str:
    """The first name of a value of the field; the current one where it stands for it, too."""
    found = [name for name, meaning in choices.items() if meaning == value]
    return current if current in found else found[0]


@dataclasses.dataclass(frozen=True)
class Joint:
    """Fields that follow from several keys, or keys that follow from several fields.

    Attributes:
      fields: of the config.
      read: from the values of all keys to the fields; raises ValueError.
      write: from (config, the content so far) to keys.
    """

    fields: tuple[str, ...] = ()
    read: Callable[[Mapping], dict] = lambda values: {}
    write: Callable[[models.Config, Mapping], dict] = lambda config, content: {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Settings and tensors of a model family in one file format.

    Attributes:
      config_class: of the model config.
      keys: by name.
      joints: settings that are not one key each.
      fixed: fields that have one value in every model of the family.
      refused: (text, predicate) of the values; the text is formatted with them as {0[key]}.
      tensors: names of the modules, see `names`.
    """

    config_class: type
    keys: Mapping[str, Key]
    joints: tuple[Joint, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: tuple[tuple[str, Callable[[Mapping], bool]], ...] = ()
    tensors: Mapping[str, Module]

    def values(self, content: Mapping, source: str) -> dict:
        """The content of a file with defaults for what is absent.

        Raises:
          ValueError: names every entry that is missing, of a wrong type or not supported.
        """
        present = [k for k in self.keys.values() if not k.is_absent(content)]
        missing = [k.name for k in self.keys.values() if k.default is _MISSING and k not in present]
        problems = [problem for k in present if (problem := k.problem(content[k.name]))]
        problems += [f"{name} is missing" for name in missing]
        if not problems:
            values = self.with_defaults(content)
            problems = self.refusals(values)
        what = f"{source} has a configuration that is not supported"
        checks.check_none(problems, what, limit=30)
        return values

    def with_defaults(self, content: Mapping) -> dict:
        """The content with defaults for what is absent, or null where that stands for it."""
        absent = [k for k in self.keys.values() if k.is_absent(content)]
        return {**content, **{k.name: k.default for k in absent}}

    def refusals(self, values: Mapping) -> list[str]:
        """What is wrong with settings together."""
        found = [text.format(values) for text, is_wrong in self.refused if is_wrong(values)]
        for joint in self.joints:
            try:
                joint.read(values)
            except ValueError as error:
                found.append(str(error))
        return found

    def settings(self, values: Mapping, source: str) -> dict:
        """Fields of the config; `values` as the method of that name gives them."""
        found = dict(self.fixed)
        for k in self.keys.values():
            if k.field is not None:
                found[k.field] = k.read(values[k.name])
        for joint in self.joints:
            found |= joint.read(values)
        for k in self.keys.values():
            if k.is_token:
                given = values[k.name]
                found[k.field] = token_ids(k.name, given, found["vocab_size"])
                if found[k.field] is None and given is not None:
                    logging.info(
                        "%s: %s=%r is no token of the vocabulary; left out", source, k.name, given
                    )
        return found

    def config(self, settings: Mapping, source: str) -> models.Config:
        """The config with these fields.

        Raises:
          ValueError: impossible ones.
        """
        try:
            return self.config_class(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source} has an impossible configuration: {error}") from error

    def marks(self, config: models.Config) -> Marks:
        """What marks in names stand for."""
        layers = {"i": config.num_layers, "j": getattr(config, "num_decoder_layers", 0)}
        return {mark: [(n, n) for n in range(count)] for mark, count in layers.items()}

    def tensors_of(self, config: models.Config, arrays: Collection[str]) -> dict[str, Tensor]:
        """The tensors of a file with a model of these arrays, by name."""
        return names.tensors_of(self.tensors, self.marks(config), config, arrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Description):
    """A model type of transformers.

    Attributes:
      model_type: its name in config.json.
      classes: transformers' class by what is on the bare model: "none", "lm"; of encoders
        "classifier", "span", "pretraining" (masked LM and the order or succession of sentences),
        "masked_lm".
      prefix: of the bare model's names in models with a head.
      heads: names outside of it, by the same kinds.
      embedding: name of the token embedding.
      ignored_buffers: regular expression for names of constant buffers, which are no parameters.
      misfits: (text, predicate) of the config, for what has no counterpart; the text is formatted
        with it as {0.field}.
      fitted: from a config to the one that the family has for the same function and arrays.
    """

    model_type: str
    classes: Mapping[str, str]
    prefix: str
    heads: Mapping[str, Mapping[str, Module]]
    embedding: str
    ignored_buffers: str
    misfits: tuple[tuple[str, Callable[[models.Config], bool]], ...] = ()
    fitted: Callable[[models.Config], models.Config] = lambda config: config

    # Fields that no configuration knows, or that are treated by themselves.
    own_fields: ClassVar[tuple[str, ...]] = (
        *("remat", "scan_boundaries", "dtype", "source_config", "adapters", "adapter_scale"),
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class whose checkpoints are read."""
        return tuple(self.classes.values())

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the token embedding in the bare model."""
        return (self.embedding,)

    def head_of(self, config: models.Config) -> str:
        """A key of `classes`."""
        raise NotImplementedError

    def complete(
        self, settings: dict, values: Mapping, tensors: Mapping, source: str, pretraining_head: bool
    ) -> tuple[dict, dict]:
        """(settings with those that the class and the tensors decide, tensors of such a model)."""
        raise NotImplementedError

    def write_head(self, config: models.Config, content: dict) -> None:
        """Writes the keys of what is on the bare model."""
        raise NotImplementedError

    def copies_of(self, config: models.Config, content: Mapping, tensors: Mapping) -> dict:
        """Tensors that transformers wants under a second name."""
        return {}

    def tensors_of(self, config: models.Config, arrays: Collection[str]) -> dict[str, Tensor]:
        """The tensors, by the names that transformers writes."""
        head = self.head_of(config)
        prefix = "" if head == "none" else self.prefix
        inside = super().tensors_of(config, arrays).items()
        on_top = names.tensors_of(self.heads.get(head, {}), {}, config, arrays)
        return {**{prefix + name: tensor for name, tensor in inside}, **on_top}

    def misfits_of(self, config: models.Config) -> list[str]:
        """Settings that config.json of this type cannot express."""
        by_field = {k.field: k for k in self.keys.values() if k.field is not None}
        joint = {name for each in self.joints for name in each.fields}
        wrong = []
        for field in dataclasses.fields(config):
            name, value = field.name, getattr(config, field.name)
            if name in by_field:
                fits = by_field[name].fits(value)
            else:
                fits = value == self.fixed.get(name, field.default)
                fits = fits or name in joint or name in self.own_fields
            wrong += [] if fits else [f"{name}={value!r}"]
        return wrong + [text.format(config) for text, is_one in self.misfits if is_one(config)]

    def content(self, config: models.Config) -> dict:
        """config.json: that of the source where there is one, brought up to date.

        Raises:
          ValueError: settings that transformers cannot combine.
        """
        content = json.loads(config.source_config)
        if content.get("model_type") != self.model_type:
            content = {name: content[name] for name in _OF_EVERY_TYPE if name in content}
        for k in self.keys.values():
            if k.field is not None:
                value, current = getattr(config, k.field), content.get(k.name)
                content[k.name] = k.write(value, current, config.vocab_size)
        self.write_head(config, content)
        for joint in self.joints:
            content |= joint.write(config, content)
        problems = self.refusals(self.with_defaults(content))
        checks.check_none(problems, "the model has no counterpart in transformers")
        # The old name of "dtype", which is written below.
        content.pop("torch_dtype", None)
        architectures = [self.classes[self.head_of(config)]]
        own = {"model_type": self.model_type, "architectures": architectures, "dtype": "float32"}
        return content | own
