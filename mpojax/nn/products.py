"""The product of activations with a matrix."""

import math

import jax
import jax.numpy as jnp


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """(..., in) times (in, out): (..., out), as one product of two matrices.

    With several axes in front, the gradient of `matrix` contracts them all, for which XLA's CPU
    backend copies the larger operand with its axes turned: half of a training step.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.matmul(rows, matrix).reshape(*x.shape[:-1], matrix.shape[-1])
