"""config.json of a language model <-> `DecoderConfig` and `EncoderDecoderConfig`."""

import dataclasses
import json
from collections.abc import Mapping

from absl import logging

from mpojax import checks
from mpojax.io.generation_config import token_ids
from mpojax.io.hf.gpt2 import GPT2
from mpojax.io.hf.language_architectures import Config, LanguageArchitecture
from mpojax.io.hf.llama import LLAMA, MISTRAL, QWEN2
from mpojax.io.hf.t5 import T5

ARCHITECTURES = {a.model_type: a for a in (GPT2, T5, LLAMA, MISTRAL, QWEN2)}

# Fields that no checkpoint configuration knows or needs to know, or that are treated by themselves.
_OWN_FIELDS = (
    *("tied", "remat", "scan_boundaries", "dtype", "source_config", "adapter_scale", "adapters"),
    *("dropout", "embedding_dropout", "attention_dropout", "experts"),
    *("sampling", "source_generation_config"),
)


def read_architecture(source: Mapping, where: str) -> tuple[LanguageArchitecture, str]:
    """The description and the class of transformers that a configuration names.

    Raises:
      ValueError: a class that is not supported.
    """
    architecture = ARCHITECTURES[source["model_type"]]
    names = source.get("architectures") or [architecture.classes[0]]
    if len(names) != 1 or names[0] not in architecture.names:
        raise ValueError(
            f"{where} has architecture {', '.join(map(str, names))}, which is not supported; "
            f"supported are {', '.join(architecture.names)}."
        )
    return architecture, names[0]


def checked(architecture: LanguageArchitecture, source: Mapping, where: str) -> dict:
    """The settings with defaults for what is absent.

    Raises:
      ValueError: settings that are missing or not supported; all are named.
    """
    checks.check(source, architecture.all_types, where)
    values = {**architecture.defaults, **source}
    for key in architecture.fields:
        if values.get(key) is None and key in architecture.defaults:
            values[key] = architecture.defaults[key]
    problems = [
        f"{key}={checks.shortened(source[key])} (supported: {allowed[0]!r})"
        for key, allowed in architecture.required.items()
        if key in source and source[key] not in allowed
    ]
    missing = [f"{key} is missing" for key in architecture.fields if key not in values]
    if not missing:
        problems += [text for text, is_wrong in architecture.refused if is_wrong(values)]
        try:
            architecture.read(values)
        except ValueError as error:
            problems.append(str(error))
    if problems or missing:
        raise ValueError(
            f"{where} has a configuration that is not supported: {'; '.join(problems + missing)}."
        )
    return values


def to_config(
    architecture: LanguageArchitecture, source: Mapping, values: Mapping, tied: bool, where: str
) -> Config:
    """Our settings; `values` as `checked` gives them.

    Raises:
      ValueError: an impossible setting.
    """
    settings = {
        **architecture.fixed,
        **{ours: values[theirs] for theirs, ours in architecture.fields.items()},
        **architecture.read(values),
        "tied": tied,
    }
    for key, (ours, default) in architecture.ids.items():
        given = values.get(key, default)
        settings[ours] = token_ids(key, given, values["vocab_size"])
        if settings[ours] is None and given is not None:
            logging.info("%s: %s=%r is no token of the vocabulary; left out", where, key, given)
    if settings.get("scale_logits") and not tied:
        raise ValueError(
            f"{where} scales its logits although it has an output map of its own "
            "(scale_decoder_outputs), which is not supported."
        )
    try:
        return architecture.kind(**settings, source_config=json.dumps(dict(source), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has an impossible configuration: {error}") from error


def architecture_for(config: Config) -> LanguageArchitecture:
    """The description that a model fits: that of the checkpoint it came from, or the first.

    Raises:
      ValueError: it fits none; for each the settings in the way are named.
    """
    came_from = json.loads(config.source_config).get("model_type")
    ordered = sorted(ARCHITECTURES.values(), key=lambda a: a.model_type != came_from)
    ordered = [a for a in ordered if isinstance(config, a.kind)]
    misfits = {architecture.model_type: _misfits(architecture, config) for architecture in ordered}
    for architecture in ordered:
        if not misfits[architecture.model_type]:
            return architecture
    lines = "; ".join(f"not {name}: {', '.join(wrong)}" for name, wrong in misfits.items())
    raise ValueError(f"the model has no counterpart in transformers: {lines}.")


def from_config(architecture: LanguageArchitecture, config: Config) -> dict:
    """config.json for export: that of the source where there is one, brought up to date."""
    content = json.loads(config.source_config)
    if content.get("model_type") != architecture.model_type:
        content = {}
    if architecture.tensors_decide is not None:
        content.pop(architecture.tensors_decide, None)
    content.update({theirs: getattr(config, ours) for theirs, ours in architecture.fields.items()})
    for key, (ours, _) in architecture.ids.items():
        value = getattr(config, ours)
        # What was read as these ids stays as it was.
        if key not in content or token_ids(key, content[key], config.vocab_size) != value:
            content[key] = value
    content["tie_word_embeddings"] = config.tied
    content.update(architecture.write(config, content))
    content["model_type"] = architecture.model_type
    content["architectures"] = [architecture.classes[0]]
    content.pop("torch_dtype", None)
    content["dtype"] = "float32"
    return content


def _misfits(architecture: LanguageArchitecture, config: Config) -> list[str]:
    """Settings that the checkpoint configuration cannot express."""
    known = (
        *_OWN_FIELDS,
        *architecture.fields.values(),
        *architecture.derived,
        *(ours for ours, _ in architecture.ids.values()),
    )
    wrong = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in known and value != architecture.fixed.get(field.name, field.default):
            wrong.append(f"{field.name}={value!r}")
    return wrong + architecture.misfits(config)
