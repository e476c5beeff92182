"""The entry of our own folders in config.json: kind, settings and shapes of a model."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from mpojax import checks, models, mpo
from mpojax.io.weights import check_depth

# 1: BERT-shaped encoders alone. 2: settings of other encoders as well; those of version 1 are read.
# 3: layers that share parts of their parameters, adapters, pre-training heads. 4: language models.
# 5: kinds of adapters; a number in place of their settings is a low rank.
# 6: several end tokens, and how a language model chooses tokens by default.
# 7: scan_boundaries, called stack_breaks before.
# 8: pivoted chains; positions counted over real tokens, heads on every token.
# 9: cores in 8 bits.
# 10: routed experts as adapters.
FORMAT_VERSION = 10
READ_VERSIONS = tuple(range(1, FORMAT_VERSION + 1))

# Settings that older versions called otherwise.
_RENAMED = {"stack_breaks": "scan_boundaries"}

_SIZE = checks.integer(1, 2**31 - 1)
_SIZES = checks.Allowed(
    "a list of at most 64 integers from 1 to 2147483647",
    lambda value: checks.sequence(_SIZE).accepts(value) and len(value) <= 64,
)
_SHAPE = {
    "in_factors": _SIZES,
    "out_factors": _SIZES,
    "bonds": _SIZES | checks.null(),
    "in_features": _SIZE | checks.null(),
    "out_features": _SIZE | checks.null(),
}
_SHAPE_FIELDS = {**_SHAPE, "pivoted": checks.flag()}  # absent where it is False
_FIELDS = {
    "kind": checks.text(),
    "config": checks.mapping(checks.anything()),
    "encoder": checks.mapping(checks.anything()),
    "shapes": checks.mapping(checks.mapping(checks.anything())),
}


def describe(model: models.Model) -> dict:
    """Format version, settings and shapes, for JSON.

    Settings of an encoder stand under "encoder", as ever; others under "config" with their "kind".
    """
    config = model.config
    settings, names = dataclasses.asdict(config), config.label_names
    is_encoder = config.kind == "encoder"
    entry = {"encoder": settings} if is_encoder else {"kind": config.kind, "config": settings}
    return {
        "format_version": FORMAT_VERSION,
        **entry,
        **({"label_names": list(names)} if names else {}),  # for readers; `source_config` has them
        "shapes": {path: shape.to_dict() for path, shape in model.shapes.items()},
    }


def read(content: Mapping, tensors: Mapping) -> models.StoredModel:
    """The model of a description, with its arrays where they are.

    Raises:
      TypeError, KeyError, ValueError: it is incomplete, or the tensors do not fit.
    """
    checks.check(content, _FIELDS, "the description")
    shapes = read_shapes(content["shapes"], tensors)
    config = _config(content)
    check_depth(config, tensors, "the folder")
    return models.StoredModel(config, shapes, tensors)


def read_shapes(content: Mapping[str, Mapping], tensors: Mapping) -> dict[str, mpo.MPOShape]:
    """{path: shape} of a description whose chains are among the tensors.

    Raises:
      TypeError, KeyError, ValueError: damaged ones, or more than the tensors can belong to.
    """
    if len(content) > len(tensors):
        raise ValueError(f"{len(content)} shapes for {len(tensors)} tensors.")
    for path, fields in content.items():
        checks.check(fields, _SHAPE_FIELDS, f"shapes[{checks.shortened(path)}]", _SHAPE)
    return {path: mpo.MPOShape.from_dict(fields) for path, fields in content.items()}


def _config(content: Mapping):
    if "kind" in content:
        checks.check_value("kind", content["kind"], checks.one_of(*models.CONFIGS))
        settings = _renamed(content["config"])
        models.check_rules(settings, "config")
        return models.CONFIGS[content["kind"]](**settings)
    settings = _renamed(content["encoder"])
    models.check_rules(settings, "encoder")
    if settings.pop("share_layers", False):  # versions 1 and 2
        settings["layer_groups"] = 1
    return models.EncoderConfig(**settings)


def _renamed(settings: Mapping) -> dict:
    """Settings with the names of now."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def fingerprint(arrays: Mapping[str, np.ndarray], description: dict) -> str:
    """Ties config.json and the weights of one save together."""
    digest = hashlib.blake2b(to_json(description).encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def to_json(content: dict) -> str:
    """Text of config.json and its like."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
