"""Fresh layers for tests."""

import jax
from flax import nnx


def made(kind, *sizes, seed=0, **options):
    """A fresh layer, by one program instead of one for each operation of its start."""
    return jax.jit(lambda: kind(*sizes, rngs=nnx.Rngs(seed), **options))()
