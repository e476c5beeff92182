"""Dropout as a pure function: on exactly when a key is given."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate).

    Without a key, or at rate 0, `x` comes back unchanged.
    """
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def split_or_none(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` keys from one, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))
