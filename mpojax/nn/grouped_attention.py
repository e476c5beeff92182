"""Attention of language models: grouped heads, rotary positions, score biases, KV cache."""

import math
from collections.abc import Mapping

import jax
from flax import nnx

from mpojax import mpo
from mpojax.nn import partition
from mpojax.nn.attend import attend
from mpojax.nn.linear import linear
from mpojax.nn.rotary import rotate

Turns = tuple[jax.Array, jax.Array]


class GroupedAttention(nnx.Module):
    """Queries of one sequence attend to keys and values of the same or another one.

    Keys and values are made by a call of their own, so that they can be cached between calls. Each
    head of keys serves num_heads / num_kv_heads heads of queries (Ainslie et al., 2023).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_size: int,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        num_kv_heads: int | None = None,
        use_bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        dropout_rate: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`shapes` gives the MPO form of any of query, key, value, out; `scale` multiplies scores
        (None: head_size^-0.5); `dropout_rate` is of the attention probabilities.
        """
        shapes = shapes or {}
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_size = head_size
        self.scale = 1.0 / math.sqrt(head_size) if scale is None else scale
        self.dropout_rate = dropout_rate
        more = {"dtype": dtype, "rngs": rngs}
        wide, narrow = num_heads * head_size, self.num_kv_heads * head_size
        self.query = linear(hidden_size, wide, shapes.get("query"), use_bias, **more)
        self.key = linear(hidden_size, narrow, shapes.get("key"), use_bias, **more)
        self.value = linear(hidden_size, narrow, shapes.get("value"), use_bias, **more)
        self.out = linear(wide, hidden_size, shapes.get("out"), out_bias, **more)

    def keys_values(self, x: jax.Array, turns: Turns | None = None) -> tuple[jax.Array, jax.Array]:
        """Keys and values (batch, length, num_kv_heads, head_size) of x (batch, length, hidden)."""
        key = self._heads(self.key(x), self.num_kv_heads)
        value = self._heads(self.value(x), self.num_kv_heads)
        return key if turns is None else rotate(key, turns), value

    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        mask: jax.Array | None = None,
        *,
        bias: jax.Array | None = None,
        turns: Turns | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Maps (batch, length, hidden) to the same shape.

        Args:
          x: what asks.
          keys, values: (batch, keys, num_kv_heads, head_size), from `keys_values`.
          mask: booleans that broadcast to (batch, heads, length, keys), True where a key may be
            attended to. A row without any True comes out finite, and is meant to be thrown away.
          bias: added to scores, broadcasts to the same shape.
          turns: rotary angles of the places of `x`, see `rotary.angles`.
          dropout_key: turns dropout on.
        """
        query = self._heads(self.query(x), self.num_heads)
        query = query if turns is None else rotate(query, turns)
        mixed = attend(
            query,
            keys,
            values,
            mask,
            scale=self.scale,
            bias=bias,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def _heads(self, y: jax.Array, num: int) -> jax.Array:
        y = y.reshape(*y.shape[:-1], num, self.head_size)
        return partition.place(y, partition.BATCH, None, partition.TENSOR, None)
