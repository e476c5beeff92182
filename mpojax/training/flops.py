"""Floating point operations: of a traced program, and of the dense model it stands for."""

import math
from typing import Any

from mpojax import models


def program_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products of a traced program, 2 for a multiply-add.

    The program as written: what several devices repeat, such as the rebuilding of a matrix from its
    cores for each part of the batch, counts once. Loops count as often as they run, which XLA's own
    cost analysis does not do. A `while` loop, whose length is not known, counts once; of a `cond`
    the costliest branch counts. Elementwise work is left out.

    Args:
      jaxpr: such as `jax.make_jaxpr(f)(x)`, or `jax.jit(f).trace(x).jaxpr`.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(equation) for equation in inner.eqns)


def _equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        depth = math.prod(sizes[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    parts = [part for value in parameters.values() for part in _programs(value)]
    if name == "scan":
        return parameters["length"] * sum(map(program_flops, parts))
    if name == "cond":
        return max(map(program_flops, parts))
    return sum(map(program_flops, parts))


def _programs(value: Any):
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _programs(entry)
    elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value


def model_flops(
    config: models.EncoderConfig,
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
      predictions: masked places per row whose logits are computed.
      sentences: sentence vectors per row, where the model has a pooler or a head.
    """
    sizes = models.matrix_sizes(config)
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
