"""A layer whose matrices are watched: what enters them, and products of it over the tokens."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import models, nn

# A product x^T x is symmetric: of blocks of more columns the lower half is not computed.
_BLOCK = 256


def gram(x, weights) -> jax.Array:
    """x^T x (features, features), float32, over the tokens of x (..., features) that count.

    Args:
      x: inputs, or gradients.
      weights: (...), 1 for a token that counts, else 0.
    """
    # Selected, not multiplied by 0: NaN at padding does not enter.
    rows = jnp.where(weights.reshape(-1, 1) > 0, x.reshape(weights.size, x.shape[-1]), 0.0)
    return _gram(rows.astype(jnp.float32))


def _gram(rows) -> jax.Array:
    half = rows.shape[1] // 2
    if half < _BLOCK // 2:
        return rows.T @ rows
    left, right = rows[:, :half], rows[:, half:]
    # [L R]^T [L R] = [[L^T L, L^T R], [(L^T R)^T, R^T R]]
    corner = left.T @ right
    return jnp.block([[_gram(left), corner], [corner.T, _gram(right)]])


class Tap(nnx.Module):
    """A part of a layer that notes what enters it; see `tapped`."""

    def __init__(self, inner, name: str, given, added, seen: dict):
        self.inner, self.name = inner, name
        # `seen` is a dict that the trace writes to: static, no part of the module's state.
        self.given, self.added, self.seen = nnx.data(given), nnx.data(added), nnx.static(seen)

    def __call__(self, x, *args, **options):
        self.seen[self.name] = x
        y = self.inner(x, *args, **options) if self.given is None else self.given
        return y if self.added is None else y + self.added.astype(y.dtype)

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "inner"), name)


def tapped(
    layer: nnx.Module,
    *inputs,
    given: Mapping[str, jax.Array] | None = None,
    added: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """({part: its input}, output) of a layer called with these inputs.

    Args:
      layer: its maps, norms and mixtures of experts are the parts, by path in it.
      inputs: (hidden states, context).
      given: outputs of parts, which are then not run.
      added: arrays that are added to outputs of parts.
    """
    seen: dict[str, jax.Array] = {}

    def capture(path, node):
        if not isinstance(node, (nn.Dense, nn.LayerNorm, nn.RMSNorm, nn.ExpertFeedForward)):
            return node
        name = "/".join(map(str, path))
        return Tap(node, name, (given or {}).get(name), (added or {}).get(name), seen)

    graph, state = nnx.split(layer)
    output, *_ = nnx.recursive_map(capture, nnx.merge(graph, state))(*inputs)
    return seen, output


def groups(layer: nnx.Module, x, context) -> list[tuple[str, ...]]:
    """Dense matrices of a layer, those that read one input together, in the order of a call."""
    found: dict[int, list[str]] = {}
    keep = []

    def trace(layer, x, context):
        seen, output = tapped(layer, x, context)
        for name, entering in seen.items():
            if isinstance(part(layer, name), nn.Dense):
                found.setdefault(id(entering), []).append(name)
                keep.append(entering)  # so that no other tracer gets its id
        return output

    jax.eval_shape(trace, layer, x, context)
    return [tuple(names) for names in found.values()]


def of_experts(block: nn.ExpertFeedForward, x, weights) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x^T x of what enters `up` (and `gate`) and `down` of each expert; how many tokens each gets.

    Args:
      block: experts.
      x: what it reads (..., hidden).
      weights: (...), 1 for a token that counts, else 0.

    Returns:
      (experts, hidden, hidden), (experts, width, width) and (experts,) int32.
    """
    # Waits for the device: a capacity is static under jit.
    most = int(_loads(block, x, weights).max())
    # Powers of two: few programs.
    return _expert_moments(block, x, weights, capacity=1 << max(most - 1, 0).bit_length())


@jax.jit
def _loads(block, x, weights):
    chosen = block.routed(x.reshape(weights.size, -1), weights.reshape(-1) > 0).experts
    each = jnp.arange(block.settings.number, dtype=jnp.int32)
    return jnp.sum(chosen.reshape(-1, 1) == each[None], 0, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames="capacity")
def _expert_moments(block, x, weights, *, capacity: int):
    with jax.default_matmul_precision("highest"):
        *parts, counts = block.entering(x, weights > 0, capacity)
        parts = [part.astype(jnp.float32) for part in parts]
        # parts (experts, capacity, features); empty slots are zero
        return *(jnp.einsum("eci,ecj->eij", part, part) for part in parts), counts


def part(layer: nnx.Module, name: str) -> nnx.Module:
    """A part of a layer by its path."""
    return nn.submodule(layer, name.split("/"))


def start(model: models.Model, batch: Mapping):
    """(hidden states before the first layer, context, weights of the tokens (B, S))."""
    ids = jnp.asarray(batch["input_ids"])
    arrays = [batch.get(name) for name in model.batch_inputs]
    arrays = [None if array is None else jnp.asarray(array) for array in arrays]
    x, context = _begin(model, *arrays)
    mask = batch.get("attention_mask")
    weights = np.ones(ids.shape) if mask is None else np.asarray(mask) != 0
    if batch.get("example_mask") is not None:
        weights = weights * (np.asarray(batch["example_mask"]) != 0)[:, None]
    return x, context, weights.astype(np.float32)


@jax.jit
def _begin(model, *arrays):
    return model.begin(*arrays)
