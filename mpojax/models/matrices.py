"""The matrices of a model by path: their sizes, which may be MPO, which may have adapters, their
FLOPs."""

import math
import re
from collections.abc import Mapping
from typing import Any

from mpojax import mpo
from mpojax.models.config import TABLES, Config
from mpojax.nn import AdapterSettings


def dense_name(path: str) -> str:
    """Name of the array of a matrix that is dense: `<path>/table` or `<path>/kernel`."""
    return f"{path}/table" if path in TABLES else f"{path}/kernel"


def adapter_settings(config: Config) -> dict[str, AdapterSettings]:
    """{matrix path: settings} of the adapters that are added to matrices."""
    found = {}
    # Compiled once: Python keeps no more than 512 patterns.
    added = [(re.compile(pattern), s) for pattern, s in config.adapters if not s.in_place]
    for path in config.adaptable() if added else ():
        matching = [settings for pattern, settings in added if pattern.fullmatch(path)]
        if matching:
            found[path] = matching[0]
    return found


def subtree(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries whose path starts with `prefix`, with the prefix taken off."""
    return {path[len(prefix) :]: e for path, e in entries.items() if path.startswith(prefix)}


def checked_shapes(
    config: Config, shapes: Mapping[str, mpo.MPOShape] | None
) -> dict[str, mpo.MPOShape]:
    """`shapes` as a dict, after checking each against the matrix it is for.

    Raises:
      ValueError: a path that is no matrix of the model, or a shape of another size.
    """
    sizes = config.matrix_sizes()
    problems = []
    for path, shape in (shapes or {}).items():
        if path not in sizes:
            problems.append(f"{path} is no matrix of this model")
        elif (shape.in_features, shape.out_features) != sizes[path]:
            problems.append(
                f"{path} is {sizes[path][0]} x {sizes[path][1]}, its shape is for "
                f"{shape.in_features} x {shape.out_features}"
            )
    if problems:
        raise ValueError(
            f"shapes do not fit the model: {'; '.join(problems)}. Matrix paths look like "
            "embeddings/word, layers/0/attention/query, layers/0/feed_forward/up, pooler, head."
        )
    return dict(shapes or {})


def model_flops(
    config: Config,
    batch_size: int,
    length: int,
    *,
    predictions: int = 0,
    sentences: int = 1,
) -> int:
    """FLOPs of one training step of the dense encoder of the same sizes: forward, twice backward.

    What model FLOP utilisation is measured by: rebuilding matrices from cores and recomputing
    activations are not in it. Lookups, norms and activations are left out.

    Args:
      batch_size, length: of the batch, padding included.
      predictions: masked positions per row whose logits are computed.
      sentences: sentence vectors per row, where the model has a pooler or a head.
    """
    sizes = config.matrix_sizes()
    first = f"layers/{config.matrix_layers[0]}/"
    in_layer = sum(rows * columns for path, (rows, columns) in sizes.items() if first in path)
    # Multiply-adds of a token: the matrices, and q k^T and p v over `length` keys each.
    per_token = config.num_layers * (in_layer + 2 * length * config.attention_size)
    per_token += math.prod(sizes.get("embeddings/projection", (0,)))
    per_prediction = 0
    if config.masked_lm:
        per_prediction = math.prod(sizes["masked_lm/transform"])
        per_prediction += math.prod(sizes["embeddings/word"])
    per_sentence = sum(math.prod(sizes.get(path, (0,))) for path in ("pooler", "head"))
    per_row = length * per_token + predictions * per_prediction + sentences * per_sentence
    # Forward, dx and dW: three products of two FLOPs a multiply-add.
    return 3 * 2 * batch_size * per_row
