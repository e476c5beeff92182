"""Embedding tables: dense and MPO, with look-up `(ids)` and the tied output map `attend(x)`."""

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.layers import initializers
from mpojax.layers.linear import as_core_list

# Variance of a fresh table, as in BERT (standard deviation 0.02).
_TABLE_VARIANCE = 0.02**2


class Embed(nnx.Module):
    """Rows of a table (num, features)."""

    def __init__(self, num: int, features: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Draws a float32 table; `dtype` is the compute dtype of what comes out."""
        self.num = num
        self.features = features
        self.dtype = dtype
        self.table = nnx.Param(initializers.normal(rngs.params(), (num, features), _TABLE_VARIANCE))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Maps integer ids (...) to rows (..., features); an id outside the table gives NaN."""
        rows = jnp.take(self.table[...], ids, axis=0, mode="clip").astype(self.dtype)
        return _nan_outside(rows, ids, self.num)

    def attend(self, x: jax.Array, dtype: str | None = None) -> jax.Array:
        """Tied output: x (..., features) @ table.T -> (..., num), in this or the compute dtype.

        Factors are of the compute dtype; sums are not rounded to it on the way to a wider one.
        """
        table = self.table[...].astype(self.dtype)
        return jnp.matmul(x.astype(self.dtype), table.T, preferred_element_type=dtype)


class MPOEmbed(nnx.Module):
    """Rows of a table held as a chain of cores; the table has `shape.in_features` rows."""

    def __init__(self, shape: mpo.MPOShape, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Draws float32 cores of the scale of a fresh table."""
        self.shape = shape
        self.dtype = dtype
        cores = initializers.random_cores(rngs.params(), shape, _TABLE_VARIANCE)
        self.cores = as_core_list(cores, shape)

    def all_cores(self) -> tuple[jax.Array, ...]:
        """The n cores in order."""
        return tuple(core[...] for core in self.cores)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Maps integer ids (...) to rows (..., features), without the whole table where cheaper.

        An id outside the table gives NaN.
        """
        rows = mpo.embed(self.all_cores(), ids, self.shape).astype(self.dtype)
        return _nan_outside(rows, ids, self.shape.in_features)

    def attend(self, x: jax.Array, dtype: str | None = None) -> jax.Array:
        """Tied output: x (..., features) @ table.T -> (..., num), in this or the compute dtype."""
        # The transposed matrix is the same chain with the two middle axes of every core swapped.
        cores = tuple(jnp.swapaxes(core, 1, 2) for core in self.all_cores())
        y = mpo.apply(cores, x.astype(self.dtype), transposed(self.shape))
        return y if dtype is None else y.astype(dtype)


def _nan_outside(rows: jax.Array, ids: jax.Array, num: int) -> jax.Array:
    """NaN for ids outside 0..num - 1: jax would clamp them, which hides a wrong tokenizer."""
    inside = jnp.logical_and(ids >= 0, ids < num)[..., None]
    return jnp.where(inside, rows, jnp.full((), jnp.nan, rows.dtype))


def transposed(shape: mpo.MPOShape) -> mpo.MPOShape:
    """Shape of the chain of the transposed matrix."""
    return mpo.MPOShape(
        shape.out_factors, shape.in_factors, shape.bonds, shape.out_features, shape.in_features
    )


def embedding(
    num: int, features: int, shape: mpo.MPOShape | None, *, dtype: str = "float32", rngs: nnx.Rngs
) -> Embed | MPOEmbed:
    """An embedding table: dense where `shape` is None, else in MPO form."""
    if shape is None:
        return Embed(num, features, dtype=dtype, rngs=rngs)
    return MPOEmbed(shape, dtype=dtype, rngs=rngs)
