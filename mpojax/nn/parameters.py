"""Parameters: their roles, as NNX variable types, and how they are initialised.

What is shared or trained is chosen by type, not by name:

    graphdef, trained, frozen = nnx.split(model, AuxiliaryCore, ...)

Everything without a role of its own (biases, norms, dense kernels, embeddings) is a plain
`nnx.Param`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo


class CentralCore(nnx.Param):
    """The middle core of a chain: at full bonds it holds almost all parameters of the matrix."""


class AuxiliaryCore(nnx.Param):
    """Any other core of a chain: few parameters, but each moves the whole matrix."""


class AdapterParam(nnx.Param):
    """A parameter of an adapter of a matrix, such as a low-rank update."""


class ColumnOrder(nnx.Variable):
    """The order of the columns of a pivoted chain, int32: stored, never trained."""


# Role name -> variable type; "other" is every `nnx.Param` that none of the types above matches.
ROLE_TYPES = {
    "central": CentralCore,
    "auxiliary": (AuxiliaryCore, ColumnOrder),
    "adapter": AdapterParam,
}
ROLES = (*ROLE_TYPES, "other")
# What a file of the model holds.
STORED = nnx.Any(nnx.Param, ColumnOrder)


def role_of(variable: nnx.Variable) -> str:
    """Name of the role of a variable: one of `ROLES`."""
    for name, kind in ROLE_TYPES.items():
        if isinstance(variable, kind):
            return name
    return "other"


def normal(key: jax.Array, shape: tuple[int, ...], variance: float) -> jax.Array:
    """Independent normal entries of the given variance, float32."""
    return jax.random.normal(key, shape, jnp.float32) * math.sqrt(variance)


def random_cores(key: jax.Array, shape: mpo.MPOShape, variance: float) -> tuple[jax.Array, ...]:
    """Random cores whose rebuilt matrix has entries of the given variance; nothing is factorised.

    An entry of the matrix sums prod(bonds) products of one entry of each core, so its variance is
    prod(bonds) times the product of the core variances; every core gets the same share of it. The
    entries are scaled to exactly that mean square: outer cores have few of them, and their random
    standard deviations would multiply.
    """
    share = (variance / math.prod(shape.bond_dims)) ** (1.0 / shape.num_cores)
    # One call for all cores: each is a program of its own to compile.
    entries = jax.random.normal(key, (shape.num_params,), jnp.float32)
    cores, start = [], 0
    for core_shape in shape.core_shapes:
        stop = start + math.prod(core_shape)
        core = entries[start:stop].reshape(core_shape)
        cores.append(core * jnp.sqrt(share / jnp.mean(jnp.square(core))))
        start = stop
    if shape.pivoted:
        cores.append(jnp.arange(shape.out_features, dtype=jnp.int32))
    return tuple(cores)
