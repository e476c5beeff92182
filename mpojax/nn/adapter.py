"""Adapters of a matrix, dense or MPO: low rank, chains, bottlenecks, rescaling.

Each is a module that a linear map calls three times: `before(x)`, `beside(y, x)` on its product
without the bias, `after(y)` at the end. All start without effect, but for the offset start, see
`mpojax.compression.add_adapters`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.nn import initializers
from mpojax.nn.adapter_settings import AdapterSettings
from mpojax.nn.feed_forward import ACTIVATIONS
from mpojax.nn.products import product
from mpojax.nn.roles import AdapterParam

# Standard deviation of a fresh down map. The up map starts at zero: nothing changes at first.
STDDEV = 0.02


class Adapter(nnx.Module):
    """Adapter that changes nothing: the base class of all kinds."""

    def before(self, x: jax.Array) -> jax.Array:
        """Input of the map, in place of `x`."""
        return x

    def beside(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """Product of the map before the bias, in place of y = x W."""
        del x
        return y

    def after(self, y: jax.Array) -> jax.Array:
        """Output of the map, in place of y = x W + b."""
        return y


class LowRankAdapter(Adapter):
    """scale * x @ down @ up, with down (in_features, rank) and up (rank, out_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        scale: float = 1.0,
        *,
        stddev: float = STDDEV,
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
        down = initializers.normal(rngs.params(), (in_features, rank), stddev**2)
        self.down = AdapterParam(down)
        self.up = AdapterParam(jnp.zeros((rank, out_features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        narrow = product(x.astype(self.dtype), self.down[...].astype(self.dtype))
        return self.scale * product(narrow, self.up[...].astype(self.dtype))

    def beside(self, y, x):
        return y + self(x)


class MPOAdapter(Adapter):
    """scale * x @ T, with T a chain of cores of which the last starts at zero."""

    def __init__(
        self, shape: mpo.MPOShape, scale: float = 1.0, *, dtype: str = "float32", rngs: nnx.Rngs
    ):
        """Draws float32 cores of a chain of variance 1 / in_features; the last is zero."""
        self.shape = shape
        self.scale = scale
        self.dtype = dtype
        *cores, last = initializers.random_cores(rngs.params(), shape, 1.0 / shape.in_features)
        self.cores = nnx.List([AdapterParam(core) for core in (*cores, jnp.zeros_like(last))])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        cores = tuple(core[...] for core in self.cores)
        return self.scale * mpo.apply(cores, x.astype(self.dtype), self.shape)

    def beside(self, y, x):
        return y + self(x)


class BottleneckAdapter(Adapter):
    """y + f(y @ down + down_bias) @ up + up_bias, after the map."""

    def __init__(
        self,
        features: int,
        width: int,
        activation: str = "gelu",
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws a float32 down map of variance 1 / features; the up map is zero."""
        self.activation = activation
        self.dtype = dtype
        down = initializers.normal(rngs.params(), (features, width), 1.0 / features)
        self.down, self.down_bias = AdapterParam(down), AdapterParam(jnp.zeros(width, jnp.float32))
        self.up = AdapterParam(jnp.zeros((width, features), jnp.float32))
        self.up_bias = AdapterParam(jnp.zeros(features, jnp.float32))

    def after(self, y):
        down, down_bias, up, up_bias = (
            value[...].astype(self.dtype)
            for value in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inner = ACTIVATIONS[self.activation](product(y, down) + _along_last(down_bias, y))
        return y + product(inner, up) + _along_last(up_bias, y)


class Rescaling(Adapter):
    """y * scale after the map, or x * scale before it."""

    def __init__(self, features: int, side: str = "output", *, dtype: str = "float32"):
        """Ones, float32."""
        self.side = side
        self.dtype = dtype
        self.scale = AdapterParam(jnp.ones(features, jnp.float32))

    def before(self, x):
        return x if self.side == "output" else self._scaled(x)

    def after(self, y):
        return y if self.side == "input" else self._scaled(y)

    def _scaled(self, x):
        x = x.astype(self.dtype)
        return x * _along_last(self.scale[...].astype(self.dtype), x)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def make_adapter(
    settings: AdapterSettings,
    in_features: int,
    out_features: int,
    scale: float = 1.0,
    *,
    dtype: str = "float32",
    rngs: nnx.Rngs,
) -> Adapter:
    """A fresh adapter for a matrix of this size; `scale` where the settings have none."""
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        size = (in_features, out_features, settings.rank, scale)
        return LowRankAdapter(*size, dtype=dtype, rngs=rngs)
    if settings.kind == "mpo":
        shape = settings.shape(in_features, out_features)
        return MPOAdapter(shape, scale, dtype=dtype, rngs=rngs)
    if settings.kind == "bottleneck":
        size = (out_features, settings.width, settings.activation)
        return BottleneckAdapter(*size, dtype=dtype, rngs=rngs)
    features = out_features if settings.side == "output" else in_features
    return Rescaling(features, settings.side, dtype=dtype)


def attach_adapters(
    module: nnx.Module,
    settings: Mapping[str, AdapterSettings | int],
    scale: float,
    *,
    rngs: nnx.Rngs,
) -> None:
    """Adds a fresh adapter to the linear maps named by path, such as "attention/query"; a number
    is a low rank.
    """
    for path, chosen in settings.items():
        inner = module
        for part in path.split("/"):
            inner = inner[int(part)] if part.isdigit() else getattr(inner, part)
        size = (inner.in_features, inner.out_features)
        adapter = make_adapter(
            AdapterSettings.of(chosen), *size, scale, dtype=inner.dtype, rngs=rngs
        )
        inner.adapter = nnx.data(adapter)


def fold_adapter(settings: AdapterSettings, arrays: Mapping, kernel, bias, scale: float):
    """(kernel, bias) of the plain map of the same function; exact but for rounding.

    Args:
      settings: of the adapter.
      arrays: its parameters by name: "down", "up", "scale", or the indices of the cores.
      kernel: (in_features, out_features); numpy or jax, as the arrays.
      bias: (out_features,), or None.
      scale: where the settings have none.

    Raises:
      ValueError: a bottleneck, which no matrix can stand for.
    """
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        return kernel + scale * (arrays["down"] @ arrays["up"]), bias
    if settings.kind == "mpo":
        cores = tuple(arrays[k] for k in sorted(arrays, key=int))
        return kernel + scale * mpo.to_matrix(cores, settings.shape(*kernel.shape)), bias
    if settings.kind == "rescale":
        if settings.side == "input":
            return kernel * arrays["scale"][:, None], bias
        factors = arrays["scale"]
        return kernel * factors[None], None if bias is None else bias * factors
    raise ValueError(
        f"an adapter of kind {settings.kind!r} is not linear: no matrix can take it in; keep it, "
        "or take it away."
    )
