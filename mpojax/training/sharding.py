"""One mesh and one table of rules for every size of machine.

Axes: `data`, `fsdp` and `expert` split the batch; `fsdp` also splits parameters and optimizer
state; `tensor` and `expert` split what the rules say. With all devices on `data` (the default)
parameters are replicated.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mpojax import checks
from mpojax import devices as devices_lib
from mpojax.nn import functional
from mpojax.training import state as state_lib

AXES = ("data", "fsdp", "tensor", "expert")
BATCH = PartitionSpec(functional.BATCH)


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence | None = None) -> Mesh:
    """A mesh with the axes data, fsdp, tensor and expert.

    Args:
      sizes: {axis: size}; one size may be -1 (all remaining devices). Default: all devices on
        `data`.
      devices: default all devices of all processes, or those of `mpojax.devices.described`.

    Raises:
      ValueError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    sizes = dict(sizes or {})
    checks.check_names(sizes, AXES, "mesh axes")
    sizes = {"data": -1, "fsdp": 1, "tensor": 1, "expert": 1} | sizes
    devices = devices_lib.visible() if devices is None else devices
    count = len(devices)
    free = [axis for axis in AXES if sizes[axis] == -1]
    wrong = {axis: n for axis, n in sizes.items() if n < 1 and n != -1}
    if wrong or len(free) > 1:
        raise ValueError(f"mesh sizes must be at least 1, and one of them may be -1; got {sizes}")
    known = math.prod(sizes[axis] for axis in AXES if axis not in free)
    if free and (known > count or count % known):
        others = {axis: n for axis, n in sizes.items() if axis not in free}
        raise ValueError(
            f"mesh sizes {others} multiply to {known}, which does not divide the {count} "
            f"device(s); choose sizes that do ({free[0]}=-1 takes what remains)"
        )
    if free:
        sizes[free[0]] = count // known
    if math.prod(sizes.values()) != count:
        raise ValueError(
            f"mesh sizes {sizes} multiply to {math.prod(sizes.values())}, but there are {count} "
            "device(s); choose sizes that multiply to that, or -1 for one of them"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules of how parameters are sharded.

    Attributes:
      table: (pattern, axes) pairs; the first pattern that fully matches a parameter path decides.
        `axes` has an entry per dimension: an axis name, a tuple of names, or None.
      strict: every pattern must match a parameter, and every size must be divisible. Otherwise a
        dimension is split over as many of its axes, from the first on, as divide it.
      fsdp_min_size: parameters that no rule matches and that have at least so many elements are
        split over `fsdp` along their largest divisible dimension, but never along an axis that
        counts layers or experts; smaller ones are replicated.
    """

    table: tuple[tuple[str, tuple], ...] = ()
    strict: bool = True
    fsdp_min_size: int = 2**14

    def specs(self, parameters: Mapping[str, Any], mesh: Mesh) -> dict[str, PartitionSpec]:
        """{path: partition} for {path: array or shape struct}.

        Raises:
          ValueError: see `strict`; names path, dimension, axis and sizes.
        """
        used = set()
        result = {}
        for path, leaf in parameters.items():
            for pattern, axes in self.table:
                if re.fullmatch(pattern, path):
                    used.add(pattern)
                    result[path] = self._from_rule(path, leaf.shape, axes, mesh)
                    break
            else:
                result[path] = self._automatic(path, leaf.shape, mesh)
        idle = [pattern for pattern, _ in self.table if pattern not in used]
        if idle and self.strict:
            raise ValueError(
                f"sharding patterns {idle} decide for no parameter; paths are like "
                f"{sorted(parameters)[:5]}"
            )
        return result

    def axes_of(self, path: str) -> tuple | None:
        """Entry of the table for a path, or None."""
        return next((axes for pattern, axes in self.table if re.fullmatch(pattern, path)), None)

    def _from_rule(self, path: str, shape: tuple, axes: tuple, mesh: Mesh) -> PartitionSpec:
        if len(axes) > len(shape):
            raise ValueError(f"rule {axes} has more dimensions than {path} with shape {shape}")
        kept = []
        for dimension, names in enumerate(axes):
            names = axis_names(names)
            checks.check_names(names, AXES, f"rule for {path}: mesh axes")
            while shape[dimension] % (parts := math.prod(mesh.shape[name] for name in names)):
                if self.strict:
                    raise ValueError(
                        f"{path}: dimension {dimension} of size {shape[dimension]} cannot be split "
                        f"over the mesh axes {names} of size {parts}; change the rule or the mesh"
                    )
                # One axis fewer from the end, until the rest divides the size; none always does.
                names = names[:-1]
            kept.append(names[0] if len(names) == 1 else names or None)
        return PartitionSpec(*kept)

    def _automatic(self, path: str, shape: tuple, mesh: Mesh) -> PartitionSpec:
        parts, first = mesh.shape["fsdp"], state_lib.stack_axes(path)
        if parts == 1 or math.prod(shape) < self.fsdp_min_size:
            return PartitionSpec()
        sizes = [(size, dimension) for dimension, size in enumerate(shape) if dimension >= first]
        # Largest first; of equal sizes the last dimension.
        for size, dimension in sorted(sizes, reverse=True):
            if size % parts == 0:
                return PartitionSpec(*(None,) * dimension, "fsdp")
        return PartitionSpec()


def axis_names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension's entry, in a rule or a partition."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


REPLICATED = Rules()  # no table: what `fsdp` does not split is replicated


def state_shardings(
    state: state_lib.TrainState, mesh: Mesh, rules: Rules = REPLICATED
) -> state_lib.TrainState:
    """A state of shardings. Optimizer leaves shaped like their parameter are split like it."""
    parameters = state_lib.flatten({"frozen": state.frozen, "trainable": state.trainable})
    # Rules know paths in the model, without frozen/ or trainable/ in front.
    short = {path.split("/", 1)[1]: leaf for path, leaf in parameters.items()}
    specs = rules.specs(short, mesh)

    def of_parameters(tree):
        shardings = [NamedSharding(mesh, specs[path]) for path in state_lib.flatten(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), shardings)

    replicated = NamedSharding(mesh, PartitionSpec())
    trained = {path: leaf.shape for path, leaf in state_lib.flatten(state.trainable).items()}
    optimizer = []
    for path, leaf in state_lib.flatten(state.optimizer).items():
        owner = state_lib.owner(path, trained)
        # Moments are shaped like their parameter; counts and factored moments are not.
        same = owner is not None and trained[owner] == leaf.shape
        optimizer.append(NamedSharding(mesh, specs[owner]) if same else replicated)
    return dataclasses.replace(
        state,
        step=replicated,
        key=replicated,
        trainable=of_parameters(state.trainable),
        frozen=of_parameters(state.frozen),
        optimizer=jax.tree.unflatten(jax.tree.structure(state.optimizer), optimizer),
    )


def device_put(tree: Any, shardings: Any) -> Any:
    """Puts arrays on the mesh; every process holds the same values and keeps its own parts."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf, sharding):
        # Spread over the processes already: no host has all of it.
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def replicated(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array whole on every device: what one process can write to a file.

    All processes must call it.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda t: t, out_shardings=everywhere)(tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings without arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in functional.BATCH)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError where the rows cannot be split evenly over data, fsdp and expert."""
    parts = batch_parts(mesh)
    if batch_size % parts:
        sizes = " x ".join(str(mesh.shape[axis]) for axis in functional.BATCH)
        raise ValueError(
            f"batch_size={batch_size} cannot be split over the mesh axes "
            f"{' x '.join(functional.BATCH)} = {sizes}; make it a multiple of {parts}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a global batch that this process loads.

    Raises:
      ValueError: the batch cannot be split evenly over data, fsdp and expert.
    """
    check_batch(batch_size, mesh)
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    if not indices:  # the mesh is of devices that are only described
        return slice(0, batch_size)
    bounds = [index[0].indices(batch_size)[:2] for index in indices.values()]
    start, stop = min(b[0] for b in bounds), max(b[1] for b in bounds)
    # Parts that leave a gap are shorter in all than what they span.
    if sum(b - a for a, b in set(bounds)) != stop - start:
        raise ValueError("this mesh gives a process rows that are not contiguous; reorder devices")
    return slice(start, stop)


def shard_batch(batch: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict:
    """A global batch from this process's rows, split over data, fsdp and expert."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))
        for name, x in batch.items()
    }
