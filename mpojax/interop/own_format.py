"""The entry of our own folders in config.json: kind, settings and shapes of a model."""

import dataclasses
from collections.abc import Mapping

from mpojax import models, mpo

# 1: BERT-shaped encoders alone. 2: settings of other encoders as well; those of version 1 are read.
# 3: layers that share parts of their parameters, adapters, pre-training heads. 4: language models.
# 5: kinds of adapters; a number in place of their settings is a low rank.
# 6: several end tokens, and how a language model chooses tokens by default.
FORMAT_VERSION = 6
READ_VERSIONS = (1, 2, 3, 4, 5, 6)
KINDS = {"decoder": models.DecoderConfig, "encoder_decoder": models.EncoderDecoderConfig}


def describe(model: models.Model) -> dict:
    """Format version, settings and shapes, for JSON.

    Settings of an encoder stand under "encoder", as ever; others under "config" with their "kind".
    """
    settings = dataclasses.asdict(model.config)
    kind = next((name for name, config in KINDS.items() if type(model.config) is config), None)
    entry = {"encoder": settings} if kind is None else {"kind": kind, "config": settings}
    names = getattr(model.config, "label_names", ())
    return {
        "format_version": FORMAT_VERSION,
        **entry,
        **({"label_names": list(names)} if names else {}),  # for readers; `source_config` has them
        "shapes": {path: shape.to_dict() for path, shape in model.shapes.items()},
    }


def build(content: Mapping, tensors: Mapping) -> models.Model:
    """The model of a description.

    Raises:
      TypeError, KeyError, ValueError: it is incomplete, or the tensors do not fit.
    """
    shapes = {path: mpo.MPOShape.from_dict(s) for path, s in content["shapes"].items()}
    return models.from_arrays(_config(content), shapes, tensors)


def _config(content: Mapping):
    if "kind" in content:
        if content["kind"] not in KINDS:
            raise ValueError(f"kind {content['kind']!r} is none of {', '.join(KINDS)}.")
        return KINDS[content["kind"]](**content["config"])
    settings = dict(content["encoder"])
    if settings.pop("share_layers", False):  # versions 1 and 2
        settings["layer_groups"] = 1
    return models.EncoderConfig(**settings)
