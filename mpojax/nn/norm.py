"""Layer and RMS norm, and what MobileBERT puts in their place, always computed in float32."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax.nn.functional import along_last, remat


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis."""

    def __init__(self, features: int, eps: float, *, use_bias: bool = True, dtype: str = "float32"):
        """Starts as the plain normalisation: scale 1, bias 0. `dtype` is that of the result."""
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (..., features); the statistics are float32 whatever the dtype of `x`."""
        bias = along_last(self.bias[...], x) if hasattr(self, "bias") else jnp.float32(0.0)
        return _layer_norm(x, along_last(self.scale[...], x), bias, self.eps).astype(self.dtype)


# remat: the backward pass computes the normalised input anew instead of keeping it in float32.
@remat
def _layer_norm(x, scale, bias, eps):
    x = x.astype(jnp.float32)
    # Two passes: E[x^2] - E[x]^2 would cancel where the mean is large.
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias


class NoNorm(nnx.Module):
    """x * scale + bias over the last axis: MobileBERT's norm without statistics.

    Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices" (ACL 2020),
    section 3.2.
    """

    def __init__(self, features: int, eps: float, *, dtype: str = "float32"):
        """Starts as the identity; `eps` is not used. `dtype` is that of the result."""
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to the same shape."""
        y = x.astype(jnp.float32) * along_last(self.scale[...], x) + along_last(self.bias[...], x)
        return y.astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean of squares + eps) * scale over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, features: int, eps: float, *, dtype: str = "float32"):
        """Starts with scale 1. `dtype` is that of the result."""
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (..., features); the statistics are float32 whatever the dtype of `x`."""
        y = _rms_norm(x, along_last(self.scale[...], x), self.eps)
        return y.astype(self.dtype)


@remat
def _rms_norm(x, scale, eps):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale


NORMS = {
    "layer_norm": LayerNorm,
    "layer_norm_without_bias": functools.partial(LayerNorm, use_bias=False),
    "no_norm": NoNorm,
    "rms_norm": RMSNorm,
}
