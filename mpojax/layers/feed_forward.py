"""The two-layer feed-forward block and the activations it may use."""

import functools
from collections.abc import Mapping

import jax
from flax import nnx

from mpojax import mpo
from mpojax.layers import partition
from mpojax.layers.linear import linear

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class FeedForward(nnx.Module):
    """down(activation(up(x))), with up (hidden, intermediate) and down (intermediate, hidden)."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`shapes` gives the MPO form of up and down; `activation` is a key of `ACTIVATIONS`."""
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {sorted(ACTIVATIONS)}.")
        shapes = shapes or {}
        self.activation = activation
        self.up = linear(hidden_size, intermediate_size, shapes.get("up"), dtype=dtype, rngs=rngs)
        self.down = linear(
            intermediate_size, hidden_size, shapes.get("down"), dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., hidden) to (..., hidden)."""
        inner = self.up(x)
        middle = (None,) * (inner.ndim - 2)
        inner = partition.place(inner, partition.BATCH, *middle, partition.TENSOR)
        return self.down(ACTIVATIONS[self.activation](inner))
