"""What the feed-forward blocks of a language model read, on some texts."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import models
from mpojax.compression import matrices as matrices_lib
from mpojax.compression import tapping
from mpojax.nn import ACTIVATIONS


def of_blocks(model: models.Model, batches: Sequence[Mapping]) -> Iterator[tuple[str, np.ndarray]]:
    """(path of a block, (tokens, hidden)), one after the other; padding is left out.

    Args:
      model: a decoder, run layer by layer, or an encoder-decoder, run at once.
      batches: as for `compression.calibrate`.
    """
    matrices = matrices_lib.matrices_of(model)
    inputs = [matrices.inputs(b, f"calibration batch {i}") for i, b in enumerate(batches, 1)]
    if isinstance(model, models.EncoderDecoder):
        yield from _of_pairs(model, inputs)
        return
    stored = models.StoredModel.of(model)
    starts = [tapping.start(stored.outside(), arrays) for arrays, _ in inputs]
    hidden = [x for x, *_ in starts]
    for index in range(stored.num_layers):
        layer, found = stored.layer(index), []
        for batch, (_, context, weights) in enumerate(starts):
            hidden[batch], read = _run(layer, hidden[batch], context.of_layer(index))
            found.append(np.asarray(read)[weights > 0])
        yield f"layers/{index}/feed_forward", np.concatenate(found)


@jax.jit
def _run(layer, x, context):
    seen, y = tapping.tapped(layer, x, context)
    return y, seen["feed_forward/up"]


def _read(layer, x, y, context):
    del y
    return tapping.tapped(layer, x, context)[0]["feed_forward/up"]


def _of_pairs(model: models.EncoderDecoder, inputs) -> Iterator[tuple[str, np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for arrays, weights in inputs:
        given = [arrays.get(name) for name in model.batch_inputs]
        given = [None if array is None else jnp.asarray(array) for array in given]
        recorded = model.recorded(_read, *given)
        for (prefix, layers), real in zip(recorded.items(), weights, strict=True):
            for index, rows in enumerate(np.asarray(layers)):
                path = f"{prefix}layers/{index}/feed_forward"
                found.setdefault(path, []).append(rows[np.asarray(real) > 0])
    yield from ((path, np.concatenate(rows)) for path, rows in found.items())


def activity(arrays: Mapping, path: str, activation: str, rows) -> np.ndarray:
    """(tokens, neurons): |act(x W_up + b)|, of a gated block |act(x W_gate + b) (x W_up + b)|."""
    maps = [name for name in ("gate", "up") if f"{path}/{name}/kernel" in arrays]
    weights = [jnp.asarray(arrays[f"{path}/{name}/kernel"]) for name in maps]
    biases = [jnp.asarray(arrays.get(f"{path}/{name}/bias", np.float32(0))) for name in maps]
    return np.asarray(_activity(jnp.asarray(rows), weights, biases, activation))


@functools.partial(jax.jit, static_argnums=3)
def _activity(x, weights, biases, activation: str):
    first, *others = (
        x @ w + jnp.broadcast_to(b, w.shape[1:])[None] for w, b in zip(weights, biases, strict=True)
    )
    inner = ACTIVATIONS[activation](first)
    return jnp.abs(inner * others[0] if others else inner)
