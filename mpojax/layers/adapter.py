"""A low-rank update beside a matrix, dense or MPO (LoRA; MPOBERT, section 3.2.2)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax.layers import initializers
from mpojax.layers.roles import AdapterParam

# Standard deviation of a fresh down map. The up map starts at zero: nothing changes at first.
DEVIATION = 0.02


class LowRankAdapter(nnx.Module):
    """scale * x @ down @ up, with down (in_features, rank) and up (rank, out_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        scale: float = 1.0,
        *,
        deviation: float = DEVIATION,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws a float32 down map of this standard deviation and a zero up map.

        `dtype` is the compute dtype.

        Raises:
          ValueError: a rank below 1.
        """
        if rank < 1:
            raise ValueError(f"rank={rank!r} of an adapter must be at least 1.")
        self.scale = scale
        self.dtype = dtype
        down = initializers.normal(rngs.params(), (in_features, rank), deviation**2)
        self.down = AdapterParam(down)
        self.up = AdapterParam(jnp.zeros((rank, out_features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        narrow = jnp.matmul(x.astype(self.dtype), self.down[...].astype(self.dtype))
        return self.scale * jnp.matmul(narrow, self.up[...].astype(self.dtype))


def attach_adapters(
    module: nnx.Module, ranks: Mapping[str, int], scale: float, *, rngs: nnx.Rngs
) -> None:
    """Puts a fresh adapter beside the linear maps named by path, such as "attention/query"."""
    for path, rank in ranks.items():
        inner = module
        for part in path.split("/"):
            inner = inner[int(part)] if part.isdigit() else getattr(inner, part)
        inner.adapter = nnx.data(
            LowRankAdapter(
                inner.in_features, inner.out_features, rank, scale, dtype=inner.dtype, rngs=rngs
            )
        )
