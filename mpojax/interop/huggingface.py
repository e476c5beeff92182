"""Hugging Face BERT checkpoints <-> (settings, flat dict of arrays), with strict name coverage."""

import json
import re
from collections.abc import Mapping

import numpy as np
from absl import logging

from mpojax import models
from mpojax.interop import name_maps
from mpojax.interop.safe_weights import is_floating


def import_bert(
    source: Mapping, tensors: Mapping[str, np.ndarray], where: str
) -> tuple[models.EncoderConfig, dict[str, np.ndarray]]:
    """Settings and arrays by logical path from a checkpoint's configuration and tensors.

    Args:
      source: content of config.json.
      tensors: content of the weight files.
      where: named in errors, such as the folder.

    Raises:
      ValueError: an unsupported architecture or setting; or tensors that are missing, surplus or
        misshapen (all are named).
    """
    parts = _architecture(source, where)
    _check_settings(source, where)
    tensors = _without_heads(_unprefixed(tensors, where), parts["heads"], where)
    has_pooler = parts["pooler"]
    if has_pooler is None:
        has_pooler = any(name.startswith("pooler.") for name in tensors)
        if not has_pooler:
            logging.info("%s has no pooler; the model is built without one", where)
    config = _encoder_config(source, has_pooler, parts["classifier"], where)
    table = _name_table(config)
    _check_coverage(table, tensors, config, where)
    return config, {
        path: tensors[name].T if transform == "transpose" else tensors[name]
        for name, (path, transform) in table.items()
    }


def export_bert(
    config: models.EncoderConfig, arrays: Mapping[str, np.ndarray]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Inverse of `import_bert`: content of config.json, and tensors by transformers' names.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    if config.num_labels is not None and config.pooling != "pooler":
        raise ValueError(
            f"a classifier with pooling={config.pooling!r} has no counterpart in transformers: "
            "BertForSequenceClassification always uses the pooler."
        )
    classifier = config.num_labels is not None
    prefix = name_maps.BERT_PREFIX if classifier else ""
    heads = {theirs for theirs, _, _ in name_maps.BERT_CLASSIFIER}
    tensors = {}
    for name, (path, transform) in _name_table(config).items():
        array = np.asarray(arrays[path], np.float32)
        tensors[name if name in heads else prefix + name] = np.ascontiguousarray(
            array.T if transform == "transpose" else array
        )
    return _source_config(config, classifier), tensors


def _architecture(source: Mapping, where: str) -> dict:
    supported = ", ".join(name_maps.BERT_ARCHITECTURES)
    model_type = source.get("model_type", "bert")
    if model_type != "bert":
        raise ValueError(
            f"{where} has model_type {model_type!r}, which is not supported; supported is 'bert' "
            f"with the architectures {supported}."
        )
    architectures = source.get("architectures") or ["BertModel"]
    if len(architectures) != 1 or architectures[0] not in name_maps.BERT_ARCHITECTURES:
        raise ValueError(
            f"{where} has architecture {', '.join(map(str, architectures))}, which is not "
            f"supported; supported are {supported}."
        )
    return name_maps.BERT_ARCHITECTURES[architectures[0]]


def _check_settings(source: Mapping, where: str):
    problems = [
        f"{key}={source[key]!r} (supported: {allowed[0]!r})"
        for key, allowed in name_maps.BERT_REQUIRED_VALUES.items()
        if key in source and source[key] not in allowed
    ]
    activation = source.get("hidden_act", "gelu")
    if activation not in name_maps.ACTIVATIONS:
        problems.append(
            f"hidden_act={activation!r} (supported: {', '.join(name_maps.ACTIVATIONS)})"
        )
    missing = [
        key
        for key in name_maps.BERT_CONFIG_FIELDS
        if key not in source and key not in name_maps.BERT_CONFIG_DEFAULTS
    ]
    problems += [f"{key} is missing" for key in missing]
    if problems:
        raise ValueError(
            f"{where} has a configuration that is not supported: {'; '.join(problems)}."
        )


def _encoder_config(source, has_pooler, classifier, where) -> models.EncoderConfig:
    values = {**name_maps.BERT_CONFIG_DEFAULTS, **source}
    # An explicit null stands for the default.
    values.update(
        {k: d for k, d in name_maps.BERT_CONFIG_DEFAULTS.items() if values.get(k) is None}
    )
    fields = {ours: values[theirs] for theirs, ours in name_maps.BERT_CONFIG_FIELDS.items()}
    num_labels = None
    if classifier:
        labels = source.get("id2label")
        num_labels = len(labels) if labels else int(source.get("num_labels", 2))
    try:
        return models.EncoderConfig(
            **fields,
            activation=name_maps.ACTIVATIONS[source.get("hidden_act", "gelu")],
            pooling="pooler" if has_pooler else "none",
            num_labels=num_labels,
            source_config=json.dumps(dict(source), sort_keys=True),
        )
    except ValueError as error:
        raise ValueError(f"{where} has an impossible configuration: {error}") from error


def _unprefixed(tensors: Mapping, where: str) -> dict[str, np.ndarray]:
    """Names without the `bert.` prefix, harmless buffers left out, old suffixes renamed."""
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(name_maps.BERT_PREFIX)
        if short in name_maps.HARMLESS_BUFFERS:
            continue
        for old, new in name_maps.RENAMED_SUFFIXES:
            if short.endswith(old):
                short = short.removesuffix(old) + new
        if short in plain:
            raise ValueError(f"{where} holds {short} twice, with and without prefix or old suffix.")
        plain[short] = tensor
    return plain


def _without_heads(tensors: dict, may_have_heads: bool, where: str) -> dict:
    """Drops pre-training heads where the architecture has them, and says so."""
    heads = [name for name in tensors if re.fullmatch(name_maps.DROPPED_HEADS, name)]
    if not heads or not may_have_heads:
        return tensors
    logging.info(
        "%s: left out the pre-training head, no part of the encoder (%s)", where, ", ".join(heads)
    )
    return {name: tensor for name, tensor in tensors.items() if name not in heads}


def _name_table(config: models.EncoderConfig) -> dict[str, tuple[str, str]]:
    """Checkpoint name -> (logical path, transform) for exactly the tensors of this model."""
    rows = list(name_maps.BERT_ENCODER)
    rows += name_maps.BERT_POOLER if config.pooling == "pooler" else ()
    rows += name_maps.BERT_CLASSIFIER if config.num_labels is not None else ()
    table = {}
    for name, path, transform in rows:
        layers = range(config.num_layers) if "{i}" in name else (0,)
        for i in layers:
            table[name.replace("{i}", str(i))] = (path.replace("{i}", str(i)), transform)
    return table


def _check_coverage(table, tensors, config, where):
    expected = models.array_shapes(config)
    problems = [f"missing: {name}" for name in table if name not in tensors]
    problems += [f"surplus: {name}" for name in tensors if name not in table]
    for name, (path, transform) in table.items():
        if name not in tensors:
            continue
        shape = expected[path][::-1] if transform == "transpose" else expected[path]
        if tensors[name].shape != shape:
            problems.append(f"misshapen: {name} is {tensors[name].shape}, must be {shape}")
        elif not is_floating(tensors[name]):
            problems.append(f"not floating point: {name} is {tensors[name].dtype}")
    if problems:
        raise ValueError(
            f"the weights in {where} do not fit its configuration:\n  " + "\n  ".join(problems)
        )


def _source_config(config: models.EncoderConfig, classifier: bool) -> dict:
    """config.json for export: that of the source where there is one, brought up to date."""
    content = json.loads(config.source_config)
    for theirs, ours in name_maps.BERT_CONFIG_FIELDS.items():
        value = getattr(config, ours)
        if value is not None or theirs in content:
            content[theirs] = value
    if name_maps.ACTIVATIONS.get(content.get("hidden_act")) != config.activation:
        names = (n for n, ours in name_maps.ACTIVATIONS.items() if ours == config.activation)
        content["hidden_act"] = next(names)
    content["model_type"] = "bert"
    content["architectures"] = ["BertForSequenceClassification" if classifier else "BertModel"]
    for key in ("torch_dtype", "dtype"):
        content.pop(key, None)
    content["dtype"] = "float32"
    if classifier and len(content.get("id2label") or ()) != config.num_labels:
        content["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        content["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}
    return content
