"""Checkpoints of transformers <-> (settings, flat dict of arrays), with strict name coverage.

A model type is a description as data, in `FAMILIES`; see `family`.
"""

import json
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from mpojax import checks, models
from mpojax.io import other_folders
from mpojax.io.hf import names
from mpojax.io.hf.bert import ALBERT, BERT, DISTILBERT, ELECTRA
from mpojax.io.hf.deberta import DEBERTA_V2
from mpojax.io.hf.family import Family
from mpojax.io.hf.gemma import GEMMA2, GEMMA3
from mpojax.io.hf.gpt2 import GPT2
from mpojax.io.hf.gpt_neox import GPT_NEOX, OPT
from mpojax.io.hf.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3
from mpojax.io.hf.mixtures import MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from mpojax.io.hf.mobilebert import MOBILEBERT
from mpojax.io.hf.modernbert import MODERNBERT
from mpojax.io.hf.roberta import CAMEMBERT, MPNET, ROBERTA, XLM_ROBERTA
from mpojax.io.hf.t5 import MT5, T5, UMT5
from mpojax.io.weights import check_depth

_ENCODERS = (
    *(BERT, ALBERT, DISTILBERT, MOBILEBERT, ELECTRA),
    *(ROBERTA, XLM_ROBERTA, CAMEMBERT, MPNET, MODERNBERT, DEBERTA_V2),
)
_DECODERS = (
    *(GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3),
    *(GEMMA2, GEMMA3, PHI3, OLMO2, GPT_NEOX, OPT),
    *(MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE),
)
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (*_ENCODERS, *_DECODERS, T5, MT5, UMT5)
}
_EXPERTS = (
    "the model has experts in its feed-forward blocks (MPOE or a mixture of dense ones), which no "
    "family of transformers here knows like that: save_pretrained keeps it."
)
_ADAPTERS = (
    "the model has adapters, which transformers cannot load: "
    "export_huggingface(merge(model), folder)."
)


def import_model(
    content: Mapping,
    tensors: Mapping[str, np.ndarray],
    source: str,
    pretraining_head: bool = False,
) -> tuple[models.Config, dict[str, np.ndarray]]:
    """Settings and arrays by logical path from a checkpoint's configuration and tensors.

    Args:
      content: of config.json.
      tensors: content of the weight files.
      source: named in errors, such as the folder.
      pretraining_head: keep the heads of pre-training, where there are some.

    Raises:
      ValueError: an unsupported model type, class or setting; or tensors that are missing,
        unexpected or of another shape.
    """
    family, config, tensors = read_config(content, tensors, source, pretraining_head)
    check_depth(config, tensors, source)
    shapes = models.array_shapes(config)
    wanted = family.tensors_of(config, shapes).items()
    wanted = {name.removeprefix(family.prefix): tensor for name, tensor in wanted}
    return config, names.read(wanted, tensors, shapes, config, source)


def read_config(
    content: Mapping,
    tensors: Mapping[str, np.ndarray],
    source: str,
    pretraining_head: bool = False,
) -> tuple[Family, models.Config, dict[str, np.ndarray]]:
    """The family, the config, and the tensors that belong to the model, by plain names.

    Raises:
      ValueError: an unsupported model type, class or setting; two tensors of one name.
    """
    family = family_of(content, source)
    values = family.values(content, source)
    tensors = names.bare(tensors, family.embeddings, family.prefix, family.ignored_buffers, source)
    settings = family.settings(values, source)
    settings, tensors = family.complete(settings, values, tensors, source, pretraining_head)
    settings["source_config"] = json.dumps(dict(content), sort_keys=True)
    return family, family.config(settings, source), tensors


def family_of(content: Mapping, source: str) -> Family:
    """The family of a config.json; one without a type is BERT's, as old ones are.

    Raises:
      ValueError: a model type or a class that is not supported, or quantised weights.
    """
    model_type = content.get("model_type", "bert")
    _check_not_of_several(content, source)
    if model_type not in FAMILIES:
        raise ValueError(
            f"{source} has model_type {checks.shortened(model_type)}, which is not supported; "
            f"supported are {', '.join(FAMILIES)}{_nearest(model_type, FAMILIES)}."
        )
    other_folders.check_not_quantised(content, source)
    family = FAMILIES[model_type]
    classes = content.get("architectures") or []
    if len(classes) > 1 or not set(classes) <= set(family.class_names):
        raise ValueError(
            f"{source} has architecture {', '.join(classes)}, which is not supported; supported "
            f"are {', '.join(family.class_names)}{_nearest(classes[0], family.class_names)}."
        )
    return family


def _check_not_of_several(content: Mapping, source: str) -> None:
    """Raises ValueError for images and text together, whose text model alone is supported."""
    part = content.get("text_config")
    part = part.get("model_type") if isinstance(part, Mapping) else None
    if part in FAMILIES and content.get("model_type") not in FAMILIES:
        name = FAMILIES[part].classes["lm"]
        raise ValueError(
            f"{source} has model_type {checks.shortened(content.get('model_type'))}, of images and "
            f"text; supported is its text model, {part}: transformers.{name}.from_pretrained("
            f"{source!r}).save_pretrained(folder) makes a folder of that alone."
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    found = checks.nearest(name, known)
    return "" if found is None else f"; the nearest of these is {found}"


def export_model(
    config: models.Config, arrays: Mapping[str, np.ndarray]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Inverse of `import_model`: content of config.json, and tensors by transformers' names.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    family, config, content, wanted = layout(config, arrays)
    tensors = {name: tensor.join(arrays, config) for name, tensor in wanted.items()}
    return content, tensors | family.copies_of(config, content, tensors)


def layout(
    config: models.Config, arrays: Collection[str]
) -> tuple[Family, models.Config, dict, dict[str, names.Tensor]]:
    """(family, config as that has it, content of config.json, tensors by name) of a dense model.

    Args:
      config: of the model.
      arrays: logical paths of all its arrays.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    if config.adapters:
        raise ValueError(_ADAPTERS)
    family, config = family_for(config)
    content = family.content(config)
    wanted = family.tensors_of(config, arrays)
    covered = {path for tensor in wanted.values() for path in tensor.paths}
    if unmatched := checks.listed(sorted(set(arrays) - covered)):
        name = content["architectures"][0]
        raise ValueError(f"{unmatched} have no counterpart in {name} of transformers.")
    return family, config, content, wanted


def family_for(config: models.Config) -> tuple[Family, models.Config]:
    """The family that a model fits, and its config as that has it.

    The one of the checkpoint that it came from, or the first.

    Raises:
      ValueError: it fits none; for each the settings in the way are named.
    """
    came_from = json.loads(config.source_config).get("model_type")
    misfits = {}
    for family in sorted(FAMILIES.values(), key=lambda each: each.model_type != came_from):
        if isinstance(config, family.config_class):
            fitted = family.fitted(config)
            misfits[family.model_type] = family.misfits_of(fitted)
            if not misfits[family.model_type]:
                return family, fitted
    if getattr(config, "experts", ()):
        raise ValueError(_EXPERTS)
    lines = "; ".join(f"not {name}: {', '.join(wrong)}" for name, wrong in misfits.items())
    raise ValueError(f"the model has no counterpart in transformers: {lines}.")
