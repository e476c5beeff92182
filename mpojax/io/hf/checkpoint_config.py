"""config.json of a Hugging Face checkpoint <-> `EncoderConfig`, by the `name_maps`."""

import dataclasses
import json
from collections.abc import Mapping

from mpojax import checks, models
from mpojax.io.hf import language_settings, name_maps
from mpojax.io.hf.architectures import Architecture

# Fields that no checkpoint configuration knows, or that are treated by themselves.
_OWN_FIELDS = (
    *("activation", "classifier_dropout", "pooling", "pooler_activation", "num_labels", "head"),
    *("remat", "scan_boundaries", "dtype", "source_config", "masked_lm", "adapter_scale"),
)
# What configurations of all types say in the same way.
_OF_EVERY_TYPE = ("id2label", "label2id", "problem_type")
PRETRAINING_KINDS = ("pretraining", "masked_lm")


def read_architecture(source: Mapping, where: str) -> tuple[Architecture, str]:
    """The description and the class of transformers that a configuration names.

    Raises:
      ValueError: neither is supported.
    """
    by_type = {a.model_type: a for a in name_maps.ARCHITECTURES}
    model_type = source.get("model_type", "bert")
    if model_type not in by_type:
        supported = by_type | language_settings.ARCHITECTURES
        raise ValueError(
            f"{where} has model_type {model_type!r}, which is not supported; supported are "
            f"{', '.join(supported)}, with the architectures "
            f"{', '.join(name for a in supported.values() for name in a.names)}."
        )
    architecture = by_type[model_type]
    names = source.get("architectures") or [architecture.classes["none"]]
    if len(names) != 1 or names[0] not in architecture.names:
        raise ValueError(
            f"{where} has architecture {', '.join(map(str, names))}, which is not supported; "
            f"supported are {', '.join(architecture.names)}."
        )
    return architecture, names[0]


def head_kind(architecture: Architecture, name: str, pretraining_head: bool = False) -> str:
    """Head that the class has on its encoder: a key of `Architecture.classes`.

    Of pre-training models "none", unless their heads are asked for.
    """
    kind = {theirs: kind for kind, theirs in architecture.classes.items()}.get(name, "none")
    return "none" if kind in PRETRAINING_KINDS and not pretraining_head else kind


def kind_of(config: models.EncoderConfig) -> str:
    """The same for settings of ours: "none", "classifier", "span", "pretraining", "masked_lm"."""
    if config.masked_lm:
        return "masked_lm" if config.num_labels is None else "pretraining"
    return "none" if config.num_labels is None else config.head


def check_settings(architecture: Architecture, source: Mapping, where: str):
    """Raises ValueError that names every setting that is missing or not supported."""
    checks.check(source, architecture.all_types, where)
    problems = [
        f"{key}={checks.shortened(source[key])} (supported: {allowed[0]!r})"
        for key, allowed in architecture.required.items()
        if key in source and source[key] not in allowed
    ]
    activation = _with_defaults(architecture, source).get(architecture.activation, "gelu")
    if activation not in name_maps.ACTIVATIONS:
        supported = ", ".join(name_maps.ACTIVATIONS)
        problems.append(f"{architecture.activation}={activation!r} (supported: {supported})")
    missing = [
        key for key in architecture.fields if key not in source and key not in architecture.defaults
    ]
    problems += [f"{key} is missing" for key in missing]
    if not missing:
        problems += _refusals(architecture, _with_defaults(architecture, source))
    if problems:
        raise ValueError(
            f"{where} has a configuration that is not supported: {'; '.join(problems)}."
        )


def pooler_has_weights(architecture: Architecture, source: Mapping) -> bool:
    """True if a pooler of this configuration, if there is one, is more than the first token."""
    flag = architecture.pooler_flag
    return flag is None or bool(_with_defaults(architecture, source)[flag])


def to_encoder_config(
    architecture: Architecture, source: Mapping, kind: str, has_pooler: bool, where: str
) -> models.EncoderConfig:
    """Our settings; `kind` as in `head_kind`, `has_pooler` whether the weights have one.

    Raises:
      ValueError: an impossible setting.
    """
    values = _with_defaults(architecture, source)
    num_labels = 2 if kind == "pretraining" else None
    if kind in ("classifier", "span"):
        labels = source.get("id2label")
        num_labels = len(labels) if labels else int(source.get("num_labels", 2))
    if kind == "span":
        pooling = "none"
    elif not pooler_has_weights(architecture, source):
        pooling = "first"
    else:
        pooling = "pooler" if has_pooler else "none"
    dropout_key = architecture.head_dropout[kind]
    try:
        return models.EncoderConfig(
            **{ours: values[theirs] for theirs, ours in architecture.fields.items()},
            **architecture.fixed,
            activation=name_maps.ACTIVATIONS[values.get(architecture.activation, "gelu")],
            classifier_dropout=None if dropout_key is None else values.get(dropout_key),
            pooling=pooling,
            num_labels=num_labels,
            head="span" if kind == "span" else "classifier",
            masked_lm=kind in PRETRAINING_KINDS,
            source_config=json.dumps(dict(source), sort_keys=True),
        )
    except ValueError as error:
        raise ValueError(f"{where} has an impossible configuration: {error}") from error


def architecture_for(config: models.EncoderConfig) -> Architecture:
    """The description that a model fits: that of the checkpoint it came from, or the first.

    Raises:
      ValueError: it fits none; for each the settings in the way are named.
    """
    came_from = json.loads(config.source_config).get("model_type")
    ordered = sorted(name_maps.ARCHITECTURES, key=lambda a: a.model_type != came_from)
    misfits = {architecture.model_type: _misfits(architecture, config) for architecture in ordered}
    for architecture in ordered:
        if not misfits[architecture.model_type]:
            return architecture
    lines = "; ".join(f"not {name}: {', '.join(wrong)}" for name, wrong in misfits.items())
    raise ValueError(f"the model has no counterpart in transformers: {lines}.")


def has_architecture(config: models.EncoderConfig) -> bool:
    """True if some description fits the model."""
    return any(not _misfits(architecture, config) for architecture in name_maps.ARCHITECTURES)


def from_encoder_config(architecture: Architecture, config: models.EncoderConfig) -> dict:
    """config.json for export: that of the source where there is one, brought up to date.

    Raises:
      ValueError: settings that transformers cannot combine.
    """
    content = json.loads(config.source_config)
    if content.get("model_type") != architecture.model_type:
        content = {name: content[name] for name in _OF_EVERY_TYPE if name in content}
    kind = kind_of(config)
    content.update({theirs: getattr(config, ours) for theirs, ours in architecture.fields.items()})
    for key, (other, values) in architecture.derived.items():
        content[key] = values[content[other]]
    if problems := _refusals(architecture, content):
        raise ValueError(f"the model has no counterpart in transformers: {'; '.join(problems)}.")
    _write_head_dropout(architecture, config, content)
    if architecture.pooler_flag is not None:
        content[architecture.pooler_flag] = config.pooling == "pooler"
    if name_maps.ACTIVATIONS.get(content.get(architecture.activation)) != config.activation:
        names = (n for n, ours in name_maps.ACTIVATIONS.items() if ours == config.activation)
        content[architecture.activation] = next(names)
    content["model_type"] = architecture.model_type
    content["architectures"] = [architecture.classes[kind]]
    for key in ("torch_dtype", "dtype"):
        content.pop(key, None)
    content["dtype"] = "float32"
    if kind in ("classifier", "span") and len(content.get("id2label") or ()) != config.num_labels:
        content["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        content["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}
    return content


def _write_head_dropout(architecture, config, content: dict):
    key = architecture.head_dropout[kind_of(config)]
    rate = config.classifier_dropout
    if key in architecture.defaults and rate is None:
        # There null does not stand for the general rate.
        rate = config.dropout if kind_of(config) in ("none", "classifier") else 0.0
    if key is not None and (rate is not None or key in content):
        content[key] = rate


def _with_defaults(architecture: Architecture, source: Mapping) -> dict:
    """`source` with defaults for what is absent, or an explicit null."""
    values = {**architecture.defaults, **source}
    return values | {k: d for k, d in architecture.defaults.items() if values[k] is None}


def _refusals(architecture: Architecture, settings: Mapping) -> list[str]:
    return [text for text, is_wrong in architecture.refused if is_wrong(settings)]


def _misfits(architecture: Architecture, config: models.EncoderConfig) -> list[str]:
    """Settings that the checkpoint configuration cannot express."""
    mapped = architecture.fields.values()
    wrong = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in mapped:
            fits = value is not None and not (field.name == "token_types" and value == 0)
        else:
            fits = value == architecture.fixed.get(field.name, field.default)
        if not fits and field.name not in _OWN_FIELDS:
            wrong.append(f"{field.name}={value!r}")
    activation = architecture.fixed.get("pooler_activation", "tanh")
    if config.pooling == "pooler" and config.pooler_activation != activation:
        wrong.append(f"pooler_activation={config.pooler_activation!r}")
    return wrong
