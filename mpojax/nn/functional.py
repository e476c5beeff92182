"""Functions of arrays that modules share: dropout, softmax, matmul, remat, sharding of activations.

Written plainly, the backward pass of a norm or an activation keeps several arrays of its input's
size for every layer; recomputing them from one (`remat`) costs a fraction of writing and reading
them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

BATCH = ("data", "fsdp", "expert")  # mesh axes that split the rows of a batch
TENSOR = "tensor"  # mesh axis that splits attention heads and the features inside a feed-forward

# Keeps the inputs alone. Layers are scanned, where nothing is merged across the two passes.
remat = functools.partial(jax.checkpoint, prevent_cse=False)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate).

    Without a key, or at rate 0, `x` comes back unchanged.
    """
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def split_or_none(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` keys from one, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


@jax.custom_jvp
def softmax(x: jax.Array) -> jax.Array:
    """`jax.nn.softmax` over the last axis, whose backward pass keeps the result alone."""
    return jax.nn.softmax(x, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    y = softmax(x)
    # dy = y (dx - <y, dx>): of the result alone, and linear in dx, so that it transposes
    return y, y * (x_dot - jnp.sum(y * x_dot, axis=-1, keepdims=True))


def matmul(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """(..., in) times (in, out): (..., out), as one product of two matrices.

    With several leading axes, the gradient of `matrix` contracts them all, for which XLA's CPU
    backend copies the larger operand transposed: half of a training step.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.matmul(rows, matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` (features,) with the rank of `x` (..., features): no implicit rank promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def shard(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`with_sharding_constraint` for an activation: mesh axes of each dimension, None for no split.

    The compiler finds shardings by itself from those of parameters and batch. Told where the
    activations of each layer belong, it divides the work of every matrix over all devices instead
    of repeating it, whether the matrix is dense or rebuilt from cores.

    Values stay as they are. Without a mesh (`jax.set_mesh`), and on a mesh of one device, nothing
    happens. A dimension is left to the compiler where the mesh lacks an axis or its size is no
    multiple of theirs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    entries = []
    for size, names in zip(x.shape, axes, strict=True):
        names = () if names is None else (names,) if isinstance(names, str) else names
        known = all(name in mesh.shape for name in names)
        if known and size % math.prod(mesh.shape[name] for name in names) == 0:
            entries.append(names or None)
        else:
            entries.append(PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
