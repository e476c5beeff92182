"""Hugging Face checkpoints <-> (settings, flat dict of arrays), with strict name coverage.

Which model types there are, and all that is particular to one, is data: see `name_maps` for
encoders. Language models have settings and data of their own: see `language_models`.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from absl import logging

from mpojax import checks, models
from mpojax.io import sizes
from mpojax.io.hf import (
    checkpoint_config,
    language_models,
    language_settings,
    name_maps,
    tensor_names,
)
from mpojax.io.hf.architectures import Architecture

_TABLE = "embeddings.word_embeddings.weight"


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
      ValueError: an unsupported architecture or setting; or tensors that are missing,
        unexpected or of another shape.
    """
    if source.get("model_type") in language_settings.ARCHITECTURES:
        return language_models.import_model(source, tensors, where)
    architecture, name = checkpoint_config.read_architecture(source, where)
    checkpoint_config.check_settings(architecture, source, where)
    tensors = tensor_names.bare(
        tensors, {_TABLE}, architecture.prefix, name_maps.HARMLESS_BUFFERS.__contains__, where
    )
    if not source.get("architectures"):
        name = _class_of(architecture, tensors)
    kind = checkpoint_config.head_kind(architecture, name, pretraining_head)
    if kind in checkpoint_config.PRETRAINING_KINDS:
        kind, tensors = _with_pretraining_head(architecture, tensors, where)
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
    sizes.check(config, tensors, where)
    expected = models.array_shapes(config)
    table = name_table(architecture, config, expected)
    shapes = {
        name: expected[path][::-1] if transform == "transpose" else expected[path]
        for name, (path, transform) in table.items()
    }
    models.check_coverage(shapes, tensors, f"the weights in {where} do not fit its configuration")
    return config, {
        path: tensors[name].T if transform == "transpose" else tensors[name]
        for name, (path, transform) in table.items()
    }


def check_supported(source: Mapping, where: str) -> None:
    """Checks the model type and the class before weights are looked for, read or converted.

    Raises:
      ValueError: one that is not supported.
    """
    if source.get("model_type") in language_settings.ARCHITECTURES:
        language_settings.read_architecture(source, where)
    else:
        checkpoint_config.read_architecture(source, where)


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
    if unmatched := sorted(set(expected) - {path for path, _ in table.values()}):
        raise ValueError(
            f"{checks.listed(unmatched)} have no counterpart in {architecture.classes[kind]} of "
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


def _class_of(architecture: Architecture, tensors: Mapping) -> str:
    """The class whose head is among the tensors, for configurations that name none."""
    if any(re.fullmatch(architecture.dropped, name) for name in tensors):
        return architecture.pretraining[0]
    for kind in ("classifier", "span"):
        if any(name in tensors for name, _, _ in architecture.outside[kind]):
            return architecture.classes[kind]
    return architecture.classes["none"]


def _with_pretraining_head(
    architecture: Architecture, tensors: dict, where: str
) -> tuple[str, dict[str, np.ndarray]]:
    """The kind of head that the tensors are of, and the tensors that it needs.

    Not the class decides: published files of BertForMaskedLM and AlbertForMaskedLM also have the
    head for the succession or order of sentences, with or without the pooler that it reads.
    """
    tensors = _without_copies(tensors, where)
    order = [n for n, path, _ in architecture.outside["pretraining"] if path.startswith("head/")]
    has_pooler = any(name.startswith("pooler.") for name in tensors)
    if has_pooler and any(name in tensors for name in order):
        logging.info("%s: kept the heads for masked words and for pairs of sentences", where)
        return "pretraining", tensors
    pattern, what = "|".join(map(re.escape, order)), "the head for pairs, as there is no pooler"
    return "masked_lm", _without(pattern, what, tensors, where)


def _without(pattern: str, what: str, tensors: dict, where: str) -> dict:
    """Drops tensors that are no part of the model, and says so."""
    dropped = [name for name in tensors if re.fullmatch(pattern, name)]
    if dropped:
        logging.info("%s: left out %s (%s)", where, what, checks.listed(dropped))
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _without_copies(tensors: Mapping, where: str) -> dict[str, np.ndarray]:
    """Drops second names of the token embedding and of the output's bias.

    Where the two biases differ transformers adds that of the decoder.
    """
    kept = dict(tensors)
    for name in tensors:
        if name.endswith("predictions.decoder.weight"):
            table = kept.setdefault(_TABLE, kept.pop(name))
            if not np.array_equal(tensors[name], table):
                raise ValueError(
                    f"{where}: {name} differs from the word embeddings; only tied output maps are "
                    "supported."
                )
        elif name.endswith("predictions.decoder.bias"):
            kept[name.replace(".decoder.", ".")] = kept.pop(name)
    return kept


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
