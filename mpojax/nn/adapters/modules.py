"""Adapters of a matrix, dense or MPO: low rank, chains, routed low ranks, bottlenecks, rescaling.

Each is a module that a linear map calls three times: `pre(x)` on its input, `parallel(y, x)` on its
product without the bias, `post(y)` at the end. All start without effect, but for the offset start,
see `mpojax.compression.add_adapters`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import checks, mpo
from mpojax.nn.feed_forward import ACTIVATIONS
from mpojax.nn.functional import along_last, matmul
from mpojax.nn.parameters import AdapterParam, normal, random_cores

# Stddev of a fresh down map. The up map starts at zero: nothing changes at first.
STDDEV = 0.02


class Adapter(nnx.Module):
    """Adapter that changes nothing: the base class of all kinds."""

    def pre(self, x: jax.Array) -> jax.Array:
        """Input of the map, in place of `x`."""
        return x

    def parallel(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """Product of the map before the bias, in place of y = x W."""
        del x
        return y

    def post(self, y: jax.Array) -> jax.Array:
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
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws a float32 down map of standard deviation 0.02 and a zero up map.

        `dtype` is the compute dtype.

        Raises:
          ValueError: a rank below 1.
        """
        checks.check_value("rank", rank, checks.integer(1))
        self.scale = scale
        self.dtype = dtype
        self.down = AdapterParam(normal(rngs.params(), (in_features, rank), STDDEV**2))
        self.up = AdapterParam(jnp.zeros((rank, out_features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        # (x A) B, never x (A B): 2 r (in + out) FLOPs a token in place of 2 in out.
        narrow = matmul(x.astype(self.dtype), self.down[...].astype(self.dtype))
        return self.scale * matmul(narrow, self.up[...].astype(self.dtype))

    def parallel(self, y, x):
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
        # T = 0 with the last core at zero, and dL/dT_last is not: it learns first, then the others.
        *cores, last = random_cores(rngs.params(), shape, 1.0 / shape.in_features)
        self.cores = nnx.List([AdapterParam(core) for core in (*cores, jnp.zeros_like(last))])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        cores = tuple(core[...] for core in self.cores)
        return self.scale * mpo.apply(cores, x.astype(self.dtype), self.shape)

    def parallel(self, y, x):
        return y + self(x)


class RoutedAdapter(Adapter):
    """scale * sum over the top_k experts e of p_e (x @ down_e @ up_e + bias_e).

    Logits of the router are the lengths ||x @ gate_e|| of what the directions of an expert see of
    the input; p is their softmax, cut to the top_k and divided by its sum. All experts are
    computed in two products, down (in_features, experts rank) and up (experts rank, out_features):
    cheaper than to gather rows while experts rank is below the width.

    Tang et al., "SMILE: zero-shot sparse mixture of low-rank experts construction" (2024,
    arXiv:2408.10174), section 4.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        experts: int,
        *,
        top_k: int = 1,
        gate_rank: int = 1,
        scale: float = 1.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws float32 gates and down maps of standard deviation 0.02; all else is zero."""
        self.experts, self.top_k = experts, top_k
        self.scale = scale
        self.dtype = dtype
        gate, down = (in_features, experts * gate_rank), (in_features, experts * rank)
        self.gate = AdapterParam(normal(rngs.params(), gate, STDDEV**2))
        self.down = AdapterParam(normal(rngs.params(), down, STDDEV**2))
        self.up = AdapterParam(jnp.zeros((experts * rank, out_features), jnp.float32))
        self.bias = AdapterParam(jnp.zeros((experts, out_features), jnp.float32))

    def weights(self, x: jax.Array) -> jax.Array:
        """p of every expert, zero but for the top_k: (..., in_features) to (..., experts)."""
        seen = matmul(x.astype(self.dtype), self.gate[...].astype(self.dtype))
        seen = seen.astype(jnp.float32).reshape(*x.shape[:-1], self.experts, -1)
        # The root has no gradient at zero, where an expert is that of an unchanged matrix.
        p = jax.nn.softmax(jnp.sqrt(jnp.sum(jnp.square(seen), axis=-1) + 1e-12), axis=-1)
        kept, chosen = jax.lax.top_k(p, self.top_k)
        # p_e over the sum of the top_k: the weights of the kept ones sum to 1.
        kept = kept / jnp.sum(kept, axis=-1, keepdims=True)
        # A product with one-hot rows in place of a scatter, which is slow on accelerators.
        one_hot = jax.nn.one_hot(chosen, self.experts, dtype=kept.dtype)
        return jnp.einsum("...k,...ke->...e", kept, one_hot)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        down, up, bias = (
            value[...].astype(self.dtype) for value in (self.down, self.up, self.bias)
        )
        weights = self.weights(x).astype(self.dtype)
        narrow = matmul(x.astype(self.dtype), down)
        # Scaled by the weights before `up`, which sums over experts and ranks at once.
        narrow = narrow * jnp.repeat(weights, down.shape[1] // self.experts, axis=-1)
        return self.scale * (matmul(narrow, up) + matmul(weights, bias))

    def parallel(self, y, x):
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
        self.down = AdapterParam(normal(rngs.params(), (features, width), 1.0 / features))
        self.down_bias = AdapterParam(jnp.zeros(width, jnp.float32))
        self.up = AdapterParam(jnp.zeros((width, features), jnp.float32))
        self.up_bias = AdapterParam(jnp.zeros(features, jnp.float32))

    def post(self, y):
        down, down_bias, up, up_bias = (
            value[...].astype(self.dtype)
            for value in (self.down, self.down_bias, self.up, self.up_bias)
        )
        # f(...) @ 0 + 0 = 0 at the start, and dL/dup = f(...)^T dL/dy is not.
        inner = ACTIVATIONS[self.activation](matmul(y, down) + along_last(down_bias, y))
        return y + matmul(inner, up) + along_last(up_bias, y)


class Rescaling(Adapter):
    """y * scale after the map, or x * scale before it."""

    def __init__(self, features: int, side: str = "output", *, dtype: str = "float32"):
        """Ones, float32."""
        self.side = side
        self.dtype = dtype
        self.scale = AdapterParam(jnp.ones(features, jnp.float32))

    def pre(self, x):
        return x if self.side == "output" else self._scaled(x)

    def post(self, y):
        return y if self.side == "input" else self._scaled(y)

    def _scaled(self, x):
        x = x.astype(self.dtype)
        return x * along_last(self.scale[...].astype(self.dtype), x)
