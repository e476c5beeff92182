"""Positions inside attention: rotary embedding, and a learned bias by distance (T5)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax.nn.embed import Embed

# Cosines and sines (batch or 1, length, 1, head_size / 2) of rotary angles, float32.
Rotary = tuple[jax.Array, jax.Array]


def inverse_frequencies(
    head_size: int, base: float, scaling: tuple[float, ...] | None = None
) -> np.ndarray:
    """inv_freq[i] = base^(-2 i / head_size), the angle per position: (head_size / 2,) float32.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

    Args:
      head_size: even width of a head.
      base: wave lengths lie between 2 pi and about 2 pi * base.
      scaling: of LLaMA 3.1, section 3.4.2 of its report: (factor, low, high, first positions).
        Waves longer than first / low are stretched by the factor, those shorter than first / high
        are kept, between them it goes over smoothly.
    """
    inv_freq = 1.0 / base ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling is not None:
        factor, low, high, first = scaling
        periods = first * inv_freq / (2 * math.pi)  # of each wave within the first positions
        smooth = np.clip((periods - low) / (high - low), 0.0, 1.0)
        inv_freq = inv_freq * (smooth + (1 - smooth) / factor)
    return inv_freq.astype(np.float32)


def rotary_embedding(positions: jax.Array, inv_freq: np.ndarray) -> Rotary:
    """(cos, sin) of the angles of positions (batch or 1, length)."""
    angles = positions.astype(jnp.float32)[..., None, None] * inv_freq.reshape(1, 1, 1, -1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BxSxNxD: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotates entry i of each head together with entry i + D / 2."""
    cos, sin = rotary
    first, second = jnp.split(x_BxSxNxD.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BxSxNxD.dtype)


def relative_buckets(
    distances: jax.Array, num: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """Bucket indices of distances (key position minus query position), any shape, int32.

    Small distances have a bucket each, larger ones share them by logarithm, all from `max_distance`
    on are in the last. With `bidirectional` half of the buckets are for later keys; else later keys
    count as distance 0. Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020),
    section 2.1.
    """
    start = jnp.zeros_like(distances)
    if bidirectional:
        num //= 2
        start = jnp.where(distances > 0, num, 0).astype(distances.dtype)
        distances = jnp.abs(distances)
    else:
        distances = jnp.maximum(-distances, 0)
    exact = num // 2
    # log(0) is never chosen, but must not be infinite.
    share = jnp.log(jnp.maximum(distances, 1).astype(jnp.float32) / exact)
    share = share / math.log(max_distance / exact) * (num - exact)
    far = jnp.minimum(exact + share.astype(distances.dtype), num - 1)
    return start + jnp.where(distances < exact, distances, far)


class RelativeBias(nnx.Module):
    """A table (buckets, heads) of what is added to scores."""

    def __init__(
        self,
        num_buckets: int,
        num_heads: int,
        max_distance: int,
        bidirectional: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """Arguments as in `relative_buckets`: an encoder looks both ways."""
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.table = Embed(num_buckets, num_heads, rngs=rngs).table

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Biases (1, heads, queries, keys), float32, of positions (queries,) and (keys,)."""
        distances = key_positions[None, :] - query_positions[:, None]
        rows = relative_buckets(distances, self.num_buckets, self.max_distance, self.bidirectional)
        return jnp.transpose(self.table[...][rows], (2, 0, 1))[None]
