"""Folders with the weights of a module of one's own: what is in them, and how it is put back.

A class cannot be written down, so a folder holds weights by path, the shapes of chains and the
settings of adapters; loading changes the layers of a dense module of the same class accordingly.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, models, mpo, nn
from mpojax.compression import layers
from mpojax.compression.matrices import matrices_of
from mpojax.io import own_format

# 2: cores in 8 bits.
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
# Entry of the description that marks such a folder.
MODULE = "module"
_FIELDS = {
    MODULE: checks.text(),
    "shapes": checks.mapping(checks.mapping(checks.anything())),
    "adapters": checks.mapping(checks.mapping(checks.anything())),
}


def describe(module: nnx.Module) -> dict:
    """Name of the class, shapes and adapters by path, for JSON."""
    adapted = {p: e.adapted for p, e in layers.locations(module).items() if e.adapted is not None}
    return {
        "format_version": FORMAT_VERSION,
        MODULE: type(module).__name__,
        "shapes": {path: s.to_dict() for path, s in matrices_of(module).shapes.items()},
        "adapters": {path: dataclasses.asdict(layer.settings) for path, layer in adapted.items()},
    }


def arrays(module: nnx.Module) -> dict[str, np.ndarray]:
    """Floating-point variables by path, float32, and orders of columns; counters and random keys
    are no weights.
    """
    layers.check_module(module)
    return {
        "/".join(map(str, path)): np.asarray(variable[...], np.int32 if is_order else np.float32)
        for path, variable, is_order in _weights(module)
    }


def _weights(module: nnx.Module) -> list[tuple[tuple, nnx.Variable, bool]]:
    """(path, variable, whether it is the order of a pivoted chain's columns)."""
    flat = [(p, v, isinstance(v, nn.ColumnOrder)) for p, v in nnx.to_flat_state(nnx.state(module))]
    return [each for each in flat if each[2] or jnp.issubdtype(each[1].dtype, jnp.floating)]


def build(content: Mapping, tensors: Mapping[str, np.ndarray], into: nnx.Module) -> nnx.Module:
    """A copy of the dense module `into` with the chains, adapters and weights of a folder.

    Raises:
      ValueError: a description that is damaged or does not fit the module, or other weights.
    """
    checks.check(content, _FIELDS, "the description", _FIELDS)
    matrices = matrices_of(into)
    changed = {**content["shapes"], **content["adapters"]}
    dense = [path for path in matrices.sizes if path not in matrices.shapes]
    if unknown := [path for path in changed if path not in dense]:
        advice = f"its dense layers are {checks.listed(dense)}" if dense else "merge it first"
        raise ValueError(
            f"it was saved with chains or adapters at {checks.listed(unknown)}, where this "
            f"{type(into).__name__} has no dense layer; {advice}."
        )
    shapes = own_format.read_shapes(content["shapes"], tensors)
    settings = {path: nn.AdapterSettings.of(each) for path, each in content["adapters"].items()}
    _check_size(shapes, settings, matrices.sizes, tensors)
    chains = {}
    for path, shape in shapes.items():
        if (shape.in_features, shape.out_features) != matrices.sizes[path]:
            raise ValueError(f"{path} is {matrices.sizes[path]} here, its chain is {shape}.")
        order = [np.zeros(shape.out_features, np.int32)] if shape.pivoted else []
        chains[path] = shape, [*(np.zeros(core) for core in shape.core_shapes), *order]
    made = matrices.with_chains(chains)
    found, adapted = layers.locations(made), {}
    for path, each in settings.items():
        # Its numbers are overwritten below: only the shapes count.
        adapter = nn.make_adapter(each, *matrices.sizes[path], rngs=nnx.Rngs(0))
        adapted[found[path].location] = layers.AdaptedLayer(found[path].layer, adapter, each)
    made = layers.exchanged(made, adapted)
    weights = _weights(made)
    variables = {"/".join(map(str, path)): (path, v) for path, v, _ in weights}
    expected = {name: tuple(v.shape) for name, (_, v) in variables.items()}
    orders = ["/".join(map(str, path)) for path, _, is_order in weights if is_order]
    models.check_coverage(expected, tensors, "weights do not fit the module", orders)
    filled = [
        (path, variable.replace(jnp.asarray(tensors[name], variable.dtype)))
        for name, (path, variable) in variables.items()
    ]
    nnx.update(made, nnx.from_flat_state(filled))
    return made


def _check_size(
    shapes: Mapping[str, mpo.MPOShape],
    adapters: Mapping[str, nn.AdapterSettings],
    sizes: Mapping[str, tuple[int, int]],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Raises ValueError where more would be allocated than the file holds."""
    needed = sum(shape.num_params for shape in shapes.values())
    needed += sum(each.num_params(*sizes[path]) for path, each in adapters.items())
    if needed > (held := sum(tensor.size for tensor in tensors.values())):
        raise ValueError(
            f"its chains and adapters need {needed:,} parameters, its tensors hold {held:,}."
        )
