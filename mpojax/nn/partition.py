"""Sharding of activations on a mesh.

The compiler finds placements by itself from those of parameters and batch. Told where the
activations of each layer belong, it divides the work of every matrix over all devices instead of
repeating it, whether the matrix is dense or rebuilt from cores.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH = ("data", "fsdp", "expert")  # mesh axes that split the rows of a batch
TENSOR = "tensor"  # mesh axis that splits attention heads and the features inside a feed-forward


def place(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x`, told to be split: an entry per dimension, of mesh axes; None for not split.

    The values stay as they are. Without a mesh (`jax.set_mesh`), and on a mesh of one device,
    nothing happens. A dimension is left to the compiler where the mesh lacks an axis or its size is
    no multiple of theirs.
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
