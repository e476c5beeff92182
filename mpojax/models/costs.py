"""Floating point operations of the dense model that a model stands for."""

import math

from mpojax.models import matrices
from mpojax.models.config import EncoderConfig


def model_flops(
    config: EncoderConfig,
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
    sizes = matrices.matrix_sizes(config)
    first = f"layers/{config.matrix_layers[0]}/"
    in_layer = sum(rows * columns for path, (rows, columns) in sizes.items() if first in path)
    per_token = config.num_layers * (in_layer + 2 * length * config.attention_size)
    per_token += math.prod(sizes.get("embeddings/projection", (0,)))
    per_prediction = 0
    if config.masked_lm:
        per_prediction = math.prod(sizes["masked_lm/transform"])
        per_prediction += math.prod(sizes["embeddings/word"])
    per_sentence = sum(math.prod(sizes.get(path, (0,))) for path in ("pooler", "head"))
    per_row = length * per_token + predictions * per_prediction + sentences * per_sentence
    return 3 * 2 * batch_size * per_row
