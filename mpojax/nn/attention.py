"""Multi-head self-attention."""

import math
from collections.abc import Mapping

import jax
from flax import nnx

from mpojax import mpo
from mpojax.nn import partition
from mpojax.nn.attend import attend, probabilities
from mpojax.nn.linear import linear


class SelfAttention(nnx.Module):
    """Query, key, value and output maps, each dense or MPO.

    All are (hidden, hidden), but the value map may read an input of another width.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        value_size: int | None = None,
        dropout_rate: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`shapes` gives the MPO form of any of query, key, value, out; `value_size` is the width
        of `value_input` where calls give one; `dropout_rate` is of the attention probabilities.
        """
        shapes = shapes or {}
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

        def projection(name, size=hidden_size):
            return linear(size, hidden_size, shapes.get(name), dtype=dtype, rngs=rngs)

        self.query = projection("query")
        self.key = projection("key")
        self.value = projection("value", value_size or hidden_size)
        self.out = projection("out")

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        value_input: jax.Array | None = None,
    ) -> jax.Array:
        """Maps (batch, length, hidden) to the same shape.

        Args:
          x: hidden states.
          mask: booleans, True where a position may be attended to: (batch, length), or (batch,
            length, length) with a row for each attending position. A row without any True attends
            evenly to all positions: finite, and meant to be thrown away.
          dropout_key: turns dropout on.
          value_input: (batch, length, value_size), what the values are made of; None for `x`.
        """
        heads, query, key = self._query_and_key(x)
        value = self.value(x if value_input is None else value_input).reshape(heads)
        query, key, value = (
            partition.place(y, partition.BATCH, None, partition.TENSOR, None)
            for y in (query, key, value)
        )
        mixed = attend(
            query,
            key,
            value,
            _for_scores(mask),
            scale=1.0 / math.sqrt(query.shape[-1]),
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(mixed.reshape(x.shape))

    def _query_and_key(self, x):
        heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        return heads, *(project(x).reshape(heads) for project in (self.query, self.key))

    def probabilities(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Attention (batch, heads, attending position, attended position), float32, no dropout."""
        _, query, key = self._query_and_key(x)
        scale = 1.0 / math.sqrt(query.shape[-1])
        return probabilities(query, key, _for_scores(mask), scale=scale)


def _for_scores(mask: jax.Array | None) -> jax.Array | None:
    """A mask of (batch, length) or (batch, length, length) with an axis of heads."""
    if mask is None:
        return None
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
