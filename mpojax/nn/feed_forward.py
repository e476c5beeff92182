"""The two-layer feed-forward block and the activations it may use."""

import functools
from collections.abc import Mapping

import jax
from flax import nnx

from mpojax import mpo
from mpojax.nn.functional import BATCH, TENSOR, dropout, remat, shard
from mpojax.nn.linear import linear

# Recomputed from their input in the backward pass; relu's derivative is but the sign of that.
ACTIVATIONS = {
    "gelu": remat(functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_tanh": remat(functools.partial(jax.nn.gelu, approximate=True)),
    "relu": jax.nn.relu,
    "silu": remat(jax.nn.silu),
}


class FeedForward(nnx.Module):
    """down(activation(up(x))), with up (hidden, intermediate) and down (intermediate, hidden).

    Gated: down(activation(gate(x)) * up(x)), with gate (hidden, intermediate) (Shazeer, "GLU
    Variants Improve Transformer", 2020).
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        gated: bool = False,
        use_bias: bool = True,
        inner_dropout: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """`shapes` gives the MPO form of up, gate and down; `activation` is a key of `ACTIVATIONS`;
        `inner_dropout` is the rate on what the down map reads.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {sorted(ACTIVATIONS)}.")
        shapes = shapes or {}
        self.activation = activation
        self.inner_dropout = inner_dropout
        more = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        self.up = linear(hidden_size, intermediate_size, shapes.get("up"), **more)
        self.down = linear(intermediate_size, hidden_size, shapes.get("down"), **more)
        # An empty place would be a part of every checkpoint's structure.
        if gated:
            self.gate = linear(hidden_size, intermediate_size, shapes.get("gate"), **more)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Maps (..., hidden) to (..., hidden)."""
        activate = ACTIVATIONS[self.activation]
        inner = _sharded(self.up(x))
        if hasattr(self, "gate"):
            inner = activate(_sharded(self.gate(x))) * inner
        else:
            inner = activate(inner)
        return self.down(dropout(inner, self.inner_dropout, dropout_key))


def _sharded(inner: jax.Array) -> jax.Array:
    middle = (None,) * (inner.ndim - 2)
    return shard(inner, BATCH, *middle, TENSOR)
