"""Sharding of a model over a mesh, by role and path of its parameters; and a table of it.

Parameters of stacked layers have a leading axis of layers, or of the blocks that share them. It is
never split, because the scan over layers reads one slice at a time. What a block shares is one
array, so it is split once. What each expert owns has an axis of experts after that of layers.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from mpojax.training import sharding as sharding_lib
from mpojax.training import state as state_lib

# Dense kernels (in, out) by the end of their path; the first match decides. The axis `tensor`
# splits what one map makes and the next one sums over: attention heads, and features inside the
# feed-forward block.
KERNELS = (
    (r"(cross_)?attention/(query|key|value)/kernel", ("fsdp", "tensor")),
    (r"feed_forward(s/\d+)?(/experts|/shared(_expert)?)?/(up|gate)/kernel", ("fsdp", "tensor")),
    (r"(cross_)?attention/out/kernel", ("tensor", "fsdp")),
    (r"feed_forward(s/\d+)?(/experts|/shared(_expert)?)?/down/kernel", ("tensor", "fsdp")),
    (r"kernel", ("fsdp", None)),
)
WORD_TABLE = r"(.*/)?embeddings/word/table"
HEAD = r"(.*/)?head/kernel"
ROUTER = r"(.*/)?router/.+"


def model_rules(model: nnx.Module, min_size: int = 2**14) -> sharding_lib.Rules:
    """Rules for a model with any matrices dense, MPO or of experts, layers stacked or shared.

    * what each expert owns, whatever its size: its axis of experts over `expert`, each slice by
      the rules below;
    * central cores (d, i, j, d'): the larger bond over `fsdp`, the smaller over `tensor`; for equal
      bonds the first counts as the larger;
    * auxiliary cores: the larger bond over `fsdp`;
    * dense kernels: `KERNELS`;
    * the dense token embedding: its vocabulary over `tensor` and `fsdp`; a head with more outputs
      than inputs, such as the vocabulary: its inputs over `fsdp`, its outputs over `tensor`;
    * adapters, other tables: the largest axis over `fsdp`;
    * vectors, routers, and what has fewer elements than `min_size`: replicated.

    An axis whose size the mesh does not divide is not split (`sharding_table` says so).

    Args:
      model: arrays may be abstract.
      min_size: elements that a parameter must have, all layers and experts together, to be split
        over more than `expert`.
    """
    flat = state_lib.flatten_variables(model)
    roles = state_lib.roles(model)
    table = []
    for path, leaf in flat.items():
        layers, stacked = state_lib.layer_axes(path), state_lib.stack_axes(path)
        axes = (None,) * (len(leaf.shape) - stacked)
        if math.prod(leaf.shape) >= min_size:
            axes = _axes(path, leaf.shape[stacked:], roles[path])
        axes = (None,) * layers + ("expert",) * (stacked - layers) + axes
        table.append((re.escape(path), axes))
    return sharding_lib.Rules(tuple(table), strict=False, fsdp_min_size=min_size)


def _axes(path: str, shape: tuple[int, ...], role: str) -> tuple:
    """Mesh axes for the dimensions of one layer's, or expert's, slice."""
    if len(shape) < 2 or re.fullmatch(ROUTER, path):
        return (None,) * len(shape)
    if role in ("central", "auxiliary") and len(shape) == 4:
        larger, smaller = (0, 3) if shape[0] >= shape[3] else (3, 0)
        axes: list = [None] * 4
        axes[larger] = "fsdp"
        if role == "central":
            axes[smaller] = "tensor"
        return tuple(axes)
    if re.fullmatch(WORD_TABLE, path):
        return (("tensor", "fsdp"), None)
    if re.fullmatch(HEAD, path) and shape[1] > shape[0]:
        return ("fsdp", "tensor")
    if len(shape) == 2 and role == "other":
        for ending, axes in KERNELS:
            if re.fullmatch(rf"(.*/)?{ending}", path):
                return axes
    largest = shape.index(max(shape))
    return (None,) * largest + ("fsdp",) + (None,) * (len(shape) - largest - 1)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sharding of one parameter.

    Attributes:
      path, shape, dtype: of the parameter.
      spec: its partition, mesh axes of one device left out.
      bytes_per_device: of the parameter alone.
      notes: axes that a rule names but the mesh does not divide.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes_per_device: int
    notes: tuple[str, ...] = ()


def sharding_table(
    state: state_lib.TrainState, mesh: Mesh, rules: sharding_lib.Rules
) -> list[Placement]:
    """A row for each parameter, trained or frozen; arrays may be abstract."""
    parameters = state_lib.flatten(state.trainable) | state_lib.flatten(state.frozen)
    specs = rules.specs(parameters, mesh)
    return [
        Placement(
            path,
            tuple(leaf.shape),
            str(leaf.dtype),
            _effective(specs[path], mesh),
            bytes_per_device(leaf, specs[path], mesh),
            tuple(_notes(rules.axes_of(path), leaf.shape, specs[path], mesh)),
        )
        for path, leaf in sorted(parameters.items())
    ]


def bytes_per_device(leaf: Any, spec: PartitionSpec, mesh: Mesh) -> int:
    """Bytes of one device's part."""
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize


def table_text(rows: Sequence[Placement]) -> str:
    """Human-readable table: path, shape, partition, MiB per device, notes."""
    cells = [("parameter", "shape", "split", "MiB per device", "")]
    for row in rows:
        axes = [_shown(entry) for entry in row.spec]
        axes += ["-"] * (len(row.shape) - len(axes))
        shape = " x ".join(map(str, row.shape)) or "scalar"
        split = ", ".join(axes) if set(axes) - {"-"} else "replicated"
        size = f"{row.bytes_per_device / 2**20:.3f}"
        cells.append((row.path, shape, split, size, "; ".join(row.notes)))
    return aligned(cells, right=(3,))


def aligned(cells: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of aligned columns; the first row is the header."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _effective(spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    kept = [
        tuple(name for name in sharding_lib.axis_names(entry) if mesh.shape[name] > 1)
        for entry in spec
    ]
    return PartitionSpec(*(n[0] if len(n) == 1 else n or None for n in kept))


def _shown(entry) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)


def _notes(wanted: tuple | None, shape: tuple, spec: PartitionSpec, mesh: Mesh):
    for dimension, names in enumerate(wanted or ()):
        names = sharding_lib.axis_names(names)
        used = sharding_lib.axis_names(spec[dimension] if dimension < len(spec) else None)
        idle = [name for name in names if name not in used and mesh.shape[name] > 1]
        if idle:
            yield f"axis {dimension} of {shape[dimension]} not split over {'+'.join(idle)}"
