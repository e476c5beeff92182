"""Rotary positions: queries and keys turned by angles that grow with their place.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def wave_numbers(
    head_size: int, base: float, scaling: tuple[float, ...] | None = None
) -> np.ndarray:
    """Angle per place of each pair of entries: (head_size / 2,) float32.

    Args:
      head_size: even width of a head.
      base: wave lengths lie between 2 pi and about 2 pi * base.
      scaling: of LLaMA 3.1, section 3.4.2 of its report: (factor, low, high, first positions).
        Waves longer than first / low are stretched by the factor, those shorter than first / high
        are kept, between them it goes over smoothly.
    """
    numbers = 1.0 / base ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling is not None:
        factor, low, high, first = scaling
        turns = first * numbers / (2 * math.pi)  # of each wave within the first positions
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        numbers = numbers * (share + (1 - share) / factor)
    return numbers.astype(np.float32)


def angles(positions: jax.Array, numbers: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (batch or 1, length, 1, head_size / 2), float32, of places (B, S)."""
    turned = positions.astype(jnp.float32)[..., None, None] * numbers.reshape(1, 1, 1, -1)
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns (batch, length, heads, head_size); entry i is paired with entry i + head_size / 2."""
    cosines, sines = turns
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
