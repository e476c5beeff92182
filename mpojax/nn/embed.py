"""Embedding tables: dense and MPO, with look-up `(ids)` and the tied output map `attend(x)`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo
from mpojax.nn.linear import as_core_list, decomposed
from mpojax.nn.parameters import normal, random_cores

# Variance of a fresh table, as in BERT (standard deviation 0.02).
_TABLE_VARIANCE = 0.02**2


class Embed(nnx.Module):
    """Rows of a table (num, features)."""

    def __init__(self, num: int, features: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Draws a float32 table; `dtype` is the compute dtype of what comes out."""
        self.num = num
        self.features = features
        self.dtype = dtype
        self.table = nnx.Param(normal(rngs.params(), (num, features), _TABLE_VARIANCE))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Maps integer ids (...) to rows (..., features); an id outside the table gives NaN."""
        # "clip" gathers without a fill value; what ids outside read is replaced below.
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

    def __init__(
        self,
        shape: mpo.MPOShape,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
        cores: Sequence[jax.Array] | None = None,
    ):
        """Takes `cores`, or draws float32 ones of the scale of a fresh table."""
        self.shape = shape
        self.dtype = dtype
        if cores is None:
            cores = random_cores(rngs.params(), shape, _TABLE_VARIANCE)
        self.cores = as_core_list(cores, shape)

    @classmethod
    def from_table(
        cls,
        table: np.ndarray | jax.Array,
        *,
        bond: int | None = None,
        shape: mpo.MPOShape | None = None,
        dtype: str = "float32",
    ) -> "MPOEmbed":
        """The embedding of a given table (num, features); see `MPOLinear.from_matrix`.

        Examples:
          >>> import jax.numpy as jnp
          >>> import numpy as np
          >>> from mpojax import nn
          >>> table = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
          >>> exact = nn.MPOEmbed.from_table(table)
          >>> bool(np.allclose(exact(jnp.array([3, 99])), table[[3, 99]], atol=1e-5))
          True
          >>> small = nn.MPOEmbed.from_table(table, bond=4)
          >>> small(jnp.array([[3, 99]])).shape, small.shape.num_params < table.size
          ((1, 2, 16), True)

        Raises:
          ValueError: see `MPOLinear.from_matrix`.
        """
        cores, shape = decomposed(table, shape, bond)
        return cls(shape, dtype=dtype, cores=cores)

    @classmethod
    def from_embed(
        cls,
        layer: "Embed | nnx.Embed",
        *,
        bond: int | None = None,
        shape: mpo.MPOShape | None = None,
    ) -> "MPOEmbed":
        """The embedding of a dense one's table; see `from_table`.

        Examples:
          >>> from flax import nnx
          >>> from mpojax import nn
          >>> layer = nn.MPOEmbed.from_embed(nnx.Embed(100, 16, rngs=nnx.Rngs(0)), bond=4)
          >>> layer.shape.in_features, layer.shape.out_features
          (100, 16)

        Raises:
          TypeError: another kind of layer.
          ValueError: see `MPOLinear.from_matrix`.
        """
        if type(layer) not in (Embed, nnx.Embed):
            raise TypeError(
                f"from_embed takes an nnx.Embed or a nn.Embed, not {type(layer).__name__}; "
                "give the table itself to from_table."
            )
        table = (layer.table if isinstance(layer, Embed) else layer.embedding)[...]
        return cls.from_table(table, bond=bond, shape=shape, dtype=jnp.dtype(layer.dtype).name)

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
