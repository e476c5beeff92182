"""Positions as a learned bias on attention scores, by bucketed distance (T5).

Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020), section 2.1.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax.nn.embed import Embed


def buckets(distances: jax.Array, num: int, longest: int, both_ways: bool) -> jax.Array:
    """Bucket indices of distances (key position minus query position), any shape, int32.

    Small distances have a bucket each, larger ones share them by logarithm, all from `longest` on
    are in the last. With `both_ways` half of the buckets are for later keys; else later keys count
    as distance 0.
    """
    start = jnp.zeros_like(distances)
    if both_ways:
        num //= 2
        start = jnp.where(distances > 0, num, 0).astype(distances.dtype)
        distances = jnp.abs(distances)
    else:
        distances = jnp.maximum(-distances, 0)
    exact = num // 2
    # log(0) is never chosen, but must not be infinite.
    share = jnp.log(jnp.maximum(distances, 1).astype(jnp.float32) / exact)
    share = share / math.log(longest / exact) * (num - exact)
    far = jnp.minimum(exact + share.astype(distances.dtype), num - 1)
    return start + jnp.where(distances < exact, distances, far)


class RelativeBias(nnx.Module):
    """A table (buckets, heads) of what is added to scores."""

    def __init__(
        self, num_buckets: int, num_heads: int, longest: int, both_ways: bool, *, rngs: nnx.Rngs
    ):
        """`longest` and `both_ways` as in `buckets`: an encoder looks both ways."""
        self.num_buckets = num_buckets
        self.longest = longest
        self.both_ways = both_ways
        self.table = Embed(num_buckets, num_heads, rngs=rngs).table

    def __call__(self, query_places: jax.Array, key_places: jax.Array) -> jax.Array:
        """Biases (1, heads, queries, keys), float32, of places (queries,) and (keys,)."""
        distances = key_places[None, :] - query_places[:, None]
        numbers = buckets(distances, self.num_buckets, self.longest, self.both_ways)
        return jnp.transpose(self.table[...][numbers], (2, 0, 1))[None]
