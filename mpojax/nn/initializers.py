"""Random starts of matrices and chains; cores are drawn directly, nothing is factorised."""

import math

import jax
import jax.numpy as jnp

from mpojax import mpo


def normal(key: jax.Array, shape: tuple[int, ...], variance: float) -> jax.Array:
    """Independent normal entries of the given variance, float32."""
    return jax.random.normal(key, shape, jnp.float32) * math.sqrt(variance)


def random_cores(key: jax.Array, shape: mpo.MPOShape, variance: float) -> tuple[jax.Array, ...]:
    """Random cores whose rebuilt matrix has entries of the given variance.

    An entry of the matrix sums prod(bonds) products of one entry of each core, so its variance is
    prod(bonds) times the product of the core variances; every core gets the same share of it. The
    draws are scaled to exactly that mean square: outer cores have few entries, and their chance
    standard deviations would multiply.
    """
    share = (variance / math.prod(shape.bond_dims)) ** (1.0 / shape.num_cores)
    # One draw for all cores: each draw is a program of its own to compile.
    numbers = jax.random.normal(key, (shape.num_params,), jnp.float32)
    cores, start = [], 0
    for core_shape in shape.core_shapes:
        stop = start + math.prod(core_shape)
        draw = numbers[start:stop].reshape(core_shape)
        cores.append(draw * jnp.sqrt(share / jnp.mean(jnp.square(draw))))
        start = stop
    return tuple(cores)
