"""Hugging Face checkpoints <-> (settings, flat dict of arrays), with strict name coverage.

Which model types there are, and all that is particular to one, is data: see `name_maps` for
encoders. Language models have settings and data of their own: see `language_models`.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from absl import logging

from mpojax import models
from mpojax.interop import checkpoint_config, language_models, language_settings, name_maps
from mpojax.interop.architectures import Architecture
from mpojax.interop.safe_weights import is_floating


def import_model(
    source: Mapping,
    tensors: Mapping[str, np.ndarray],
    where: str,
    pretraining_head: bool = False,
) -> tuple[models.Config, dict[str, np.ndarray]]:
    """Settings and arrays by logical path from a checkpoint's configuration and tensors.

    Args:
      source: content of config.json.
      tensors: content of the weight files.
      where: named in errors, such as the folder.
      pretraining_head: keep the heads of pre-training, where there are some.

    Raises:
      ValueError: an unsupported architecture or setting; or tensors that are missing, surplus or
        misshapen (all are named).
    """
    if source.get("model_type") in language_settings.ARCHITECTURES:
        return language_models.import_model(source, tensors, where)
    architecture, name = checkpoint_config.read_architecture(source, where)
    checkpoint_config.check_settings(architecture, source, where)
    tensors = _unprefixed(architecture, tensors, where)
    kind = checkpoint_config.head_kind(architecture, name, pretraining_head)
    if kind in checkpoint_config.PRETRAINING_KINDS:
        tensors = _without_tied_output(tensors, where)
    elif name in architecture.pretraining:
        tensors = _without(architecture.dropped, "the pre-training head", tensors, where)
    if kind == "span" or not checkpoint_config.pooler_has_weights(architecture, source):
        tensors = _without(
            r"pooler\..+", "the pooler, which the model does not use", tensors, where
        )
    has_pooler = kind in ("classifier", "pretraining") or any(
        name.startswith("pooler.") for name in tensors
    )
    config = checkpoint_config.to_encoder_config(architecture, source, kind, has_pooler, where)
    if kind == "none" and config.pooling == "none":
        logging.info("%s has no pooler; the model is built without one", where)
    expected = models.array_shapes(config)
    table = name_table(architecture, config, expected)
    _check_coverage(table, tensors, expected, where)
    return config, {
        path: tensors[name].T if transform == "transpose" else tensors[name]
        for name, (path, transform) in table.items()
    }


def export_model(
    config: models.Config, arrays: Mapping[str, np.ndarray]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Inverse of `import_model`: content of config.json, and tensors by transformers' names.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    if not isinstance(config, models.EncoderConfig):
        return language_models.export_model(config, arrays)
    if config.layer_groups is None and config.embedding_size is not None:
        # ALBERT writes layers of their own as groups of one layer; the arrays are the same.
        grouped = dataclasses.replace(config, layer_groups=config.num_layers)
        config = config if checkpoint_config.has_architecture(config) else grouped
    architecture = checkpoint_config.architecture_for(config)
    kind = checkpoint_config.kind_of(config)
    if kind not in architecture.classes:
        raise ValueError(
            f"{architecture.model_type} of transformers has no class for kind={kind!r}; its kinds "
            f"are {', '.join(architecture.classes)}."
        )
    poolings = ("pooler",) if architecture.pooler_flag is None else ("pooler", "first")
    if kind == "classifier" and config.pooling not in poolings:
        raise ValueError(
            f"a classifier with pooling={config.pooling!r} has no counterpart in transformers: "
            f"{architecture.classes[kind]} always has pooling={' or '.join(map(repr, poolings))}."
        )
    expected = models.array_shapes(config)
    table = name_table(architecture, config, expected)
    if surplus := sorted(set(expected) - {path for path, _ in table.values()}):
        raise ValueError(
            f"{', '.join(surplus)} have no counterpart in {architecture.classes[kind]} of "
            "transformers."
        )
    outside = {theirs for theirs, _, _ in architecture.outside[kind]}
    prefix = "" if kind == "none" else architecture.prefix
    tensors = {}
    for name, (path, transform) in table.items():
        array = np.asarray(arrays[path], np.float32)
        tensors[name if name in outside else prefix + name] = np.ascontiguousarray(
            array.T if transform == "transpose" else array
        )
    return checkpoint_config.from_encoder_config(architecture, config), tensors


def _unprefixed(architecture: Architecture, tensors: Mapping, where: str) -> dict[str, np.ndarray]:
    """Names without the prefix, harmless buffers left out, old suffixes renamed."""
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(architecture.prefix)
        if short in name_maps.HARMLESS_BUFFERS:
            continue
        for old, new in name_maps.RENAMED_SUFFIXES:
            if short.endswith(old):
                short = short.removesuffix(old) + new
        if short in plain:
            raise ValueError(f"{where} holds {short} twice, with and without prefix or old suffix.")
        plain[short] = tensor
    return plain


def _without(pattern: str, what: str, tensors: dict, where: str) -> dict:
    """Drops tensors that are no part of the model, and says so."""
    dropped = [name for name in tensors if re.fullmatch(pattern, name)]
    if dropped:
        logging.info("%s: left out %s (%s)", where, what, ", ".join(dropped))
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _without_tied_output(tensors: dict, where: str) -> dict:
    """Drops the second copy of the word table and of the output's bias that some files hold."""
    table = tensors.get("embeddings.word_embeddings.weight")
    for name, tensor in tensors.items():
        is_output = name.endswith("predictions.decoder.weight")
        if is_output and not np.array_equal(tensor, table):
            raise ValueError(
                f"{where}: {name} differs from the word embeddings; only tied output maps are "
                "supported."
            )
    decoder = re.compile(r".*predictions\.decoder\.(weight|bias)")
    return {name: tensor for name, tensor in tensors.items() if not decoder.fullmatch(name)}


def name_table(
    architecture: Architecture, config: models.EncoderConfig, arrays: Mapping
) -> dict[str, tuple[str, str]]:
    """Checkpoint name -> (logical path, transform) for exactly the arrays of this model."""
    last = config.num_feed_forwards - 1
    # What a mark stands for: (number in the checkpoint's name, number in our path).
    marks = {
        "{i}": [(layer, layer) for layer in config.matrix_layers],
        "{group}": list(enumerate(config.matrix_layers)),
        "{j}": [(j, j) for j in range(last)],
        "{last}": [(last, last)],
    }
    rows = [*architecture.encoder, *architecture.outside[checkpoint_config.kind_of(config)]]
    for mark, numbers in marks.items():
        rows = [
            (name.replace(mark, str(theirs)), path.replace(mark, str(ours)), transform)
            for name, path, transform in rows
            for theirs, ours in (numbers if mark in name or mark in path else [(0, 0)])
        ]
    return {name: (path, transform) for name, path, transform in rows if path in arrays}


def _check_coverage(table, tensors, expected, where):
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
