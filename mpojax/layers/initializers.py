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
    deviations would multiply.
    """
    share = (variance / math.prod(shape.bond_dims)) ** (1.0 / shape.num_cores)
    keys = jax.random.split(key, shape.num_cores)
    draws = [normal(k, core, 1.0) for k, core in zip(keys, shape.core_shapes, strict=True)]
    return tuple(draw * jnp.sqrt(share / jnp.mean(jnp.square(draw))) for draw in draws)
