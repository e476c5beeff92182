"""Layers of any Flax NNX module that hold a matrix: found by path, exchanged for chains and back.

A layer that becomes a chain keeps what it was without its weights (`DenseForm`), so that `merge`
puts the same layer back.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo, nn

TABLES = (nnx.Embed, nn.Embed)
MAPS = (nnx.Linear, nnx.LinearGeneral, nn.Dense)


class MPOLinearGeneral(nnx.Module):
    """`nnx.LinearGeneral` on the last axes of its input, its matrix held as a chain of cores."""

    def __init__(self, chain: nn.MPOLinear, num_in_axes: int, out_features: tuple[int, ...]):
        """`chain` maps the flattened input axes to the flattened output axes."""
        self.chain = chain
        self.num_in_axes = num_in_axes
        self.out_features = out_features

    def __call__(self, x, out_sharding=None):
        """Maps (..., *in_features) to (..., *out_features); `out_sharding` is left to XLA."""
        lead = x.shape[: x.ndim - self.num_in_axes]
        return self.chain(x.reshape(*lead, -1)).reshape(*lead, *self.out_features)


class AdaptedLayer(nnx.Module):
    """A linear layer of any kind with an adapter: see `mpojax.nn.AdapterSettings`."""

    def __init__(self, base: nnx.Module, adapter: nnx.Module, settings: nn.AdapterSettings):
        """`settings` of the adapter, with which `merge` folds it into the matrix."""
        self.base, self.adapter, self.settings = base, adapter, settings

    def __call__(self, x, **options):
        """The base layer's map with the adapter; `options` go to the base layer."""
        num_in_axes = num_input_axes(self.base)
        lead = x.shape[: x.ndim - num_in_axes]
        # (..., in): an adapter knows no axes, so inputs and outputs go through it flattened.
        rows = self.adapter.pre(x.reshape(*lead, -1))
        y = self.base(rows.reshape(x.shape), **options)
        flat = self.adapter.parallel(y.reshape(*lead, -1), rows)
        return self.adapter.post(flat).reshape(y.shape)

    def adapter_arrays(self) -> dict[str, np.ndarray]:
        """Parameters of the adapter by name, float64."""
        flat = nnx.to_flat_state(nnx.state(self.adapter, nnx.Param))
        return {str(path[-1]): np.asarray(v[...], np.float64) for path, v in flat}


CHAINS = (nn.MPOLinear, nn.MPOEmbed, MPOLinearGeneral)


class Located(NamedTuple):
    """A layer with a kernel or a table, where it is in a module, and the adapter around it."""

    location: tuple
    layer: nnx.Module
    adapted: AdaptedLayer | None

    @property
    def outer_location(self) -> tuple:
        """Location of the layer with its adapter."""
        return self.location if self.adapted is None else self.location[:-1]


def check_module(module: nnx.Module) -> None:
    """Raises TypeError for anything but a module."""
    if not isinstance(module, nnx.Module):
        is_path = isinstance(module, str | os.PathLike)
        hint = f": load it by mpojax.load({str(module)!r})" if is_path else ""
        raise TypeError(f"a Flax NNX module is needed, not {type(module).__name__}{hint}.")


def locations(module: nnx.Module) -> dict[str, Located]:
    """{matrix path: where it is} of every layer with a kernel or a table, in natural order.

    The path is that of the layer as the user wrote it: an adapter around it does not show. A layer
    that is held in two places has the path of the first.

    Raises:
      TypeError: it is no module.
    """
    check_module(module)
    nodes = {tuple(path): node for path, node in nnx.iter_graph(module)}
    found = {}
    for location, layer in sorted(nodes.items(), key=lambda item: _natural(item[0])):
        is_layer = isinstance(layer, (*CHAINS, *TABLES, *MAPS)) or _has_kernel(layer)
        outer = nodes.get(location[:-1]) if location else None
        if is_layer and not isinstance(outer, MPOLinearGeneral):
            adapted = outer if isinstance(outer, AdaptedLayer) else None
            entry = Located(location, layer, adapted)
            found["/".join(map(str, entry.outer_location))] = entry
    return found


def aliases(module: nnx.Module) -> dict[str, str]:
    """{other path: path that `locations` gives} of what is held in two places."""
    first = {id(node): "/".join(map(str, path)) for path, node in nnx.iter_graph(module)}
    found = {}
    for location, node in nnx.iter_graph(module):
        if not isinstance(node, nnx.Module):
            continue
        for name, child in nnx.iter_children(node):
            path = "/".join(map(str, (*location, name)))
            if first.get(id(child), path) != path:
                found[path] = first[id(child)]
    return found


def _has_kernel(node) -> bool:
    """True for layers of other kinds, such as convolutions, so that a rule for one is explained."""
    return isinstance(node, nnx.Module) and isinstance(getattr(node, "kernel", None), nnx.Variable)


def _natural(location: tuple) -> list:
    """Sort key: indices by value."""
    return [(0, part, "") if isinstance(part, int) else (1, 0, part) for part in location]


def is_dense(layer: nnx.Module) -> bool:
    """True for a linear layer or an embedding that is no chain."""
    return type(layer) in (*MAPS, *TABLES)


def is_table(layer: nnx.Module) -> bool:
    """True for an embedding, whose rows are looked up."""
    return isinstance(layer, (*TABLES, nn.MPOEmbed))


def refusal(layer: nnx.Module) -> str | None:
    """The reason why a layer cannot become a chain; None if it can, or is one."""
    kind = type(layer)
    chain = chain_of(layer)
    if getattr(layer if chain is None else chain, "adapter", None) is not None:
        return "it has an adapter of its own; use add_adapters on the module instead"
    if chain is not None:
        is_whole = len(chain.cores) == chain.shape.num_arrays
        # A stacked core has a fifth axis; a chain that lacks a core shares it with another layer.
        is_one = is_whole and all(c.ndim == 4 for c in list(chain.cores)[: chain.shape.num_cores])
        return None if is_one else "its cores are stacked, or shared, by several layers"
    if not is_dense(layer):
        return f"a {kind.__name__} has no chain form"
    if kind is nnx.LinearGeneral:
        axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
        if layer.batch_axis or axes != tuple(range(-len(axes), 0)):
            return "a LinearGeneral must contract the last axes of its input, without batch_axis"
        ndim = len(axes) + len(_as_tuple(layer.out_features))
    else:
        ndim = 2
    if _variable(layer).ndim != ndim:
        shape = tuple(_variable(layer).shape)
        return f"its weights {shape} are those of several layers, stacked by nnx.vmap or nnx.scan"
    return None


def _variable(layer) -> nnx.Variable:
    if isinstance(layer, nn.Embed):
        return layer.table
    return layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel


def num_input_axes(layer: nnx.Module) -> int:
    """Axes at the end of an input that the layer contracts."""
    if isinstance(layer, MPOLinearGeneral):
        return layer.num_in_axes
    return len(_as_tuple(layer.in_features)) if isinstance(layer, nnx.LinearGeneral) else 1


def size(layer: nnx.Module) -> tuple[int, int]:
    """(in_features, out_features) of the matrix, of a table (rows, features)."""
    if (chain := chain_of(layer)) is not None:
        return chain.shape.in_features, chain.shape.out_features
    shape = _variable(layer).shape
    in_axes = num_input_axes(layer)
    return math.prod(shape[:in_axes]), math.prod(shape[in_axes:])


def matrix(layer: nnx.Module):
    """(in_features, out_features) of a dense layer; stacked layers keep their leading axis."""
    value = _variable(layer)[...]
    return value.reshape(size(layer)) if isinstance(layer, nnx.LinearGeneral) else value


def chain_of(layer: nnx.Module) -> nn.MPOLinear | nn.MPOEmbed | None:
    """The chain of a layer in MPO form, None for a dense one."""
    chain = layer.chain if isinstance(layer, MPOLinearGeneral) else layer
    return chain if isinstance(chain, (nn.MPOLinear, nn.MPOEmbed)) else None


@dataclasses.dataclass(frozen=True)
class DenseForm:
    """What a dense layer is without its weights, so that it can be made again with others.

    Attributes:
      definition: of the layer, with all its settings.
      name: of the variable that holds the matrix.
      shape, dtype: of that variable.
      bias_shape: of the bias; None for a layer without.
    """

    definition: nnx.GraphDef = dataclasses.field(repr=False)
    name: str
    shape: tuple[int, ...]
    dtype: str
    bias_shape: tuple[int, ...] | None

    @classmethod
    def of(cls, layer: nnx.Module) -> "DenseForm":
        """The form of a dense layer."""
        shapes = {p[0]: (v.shape, v.dtype.name) for p, v in nnx.to_flat_state(nnx.state(layer))}
        bias_shape, _ = shapes.pop("bias", (None, None))
        ((name, (shape, dtype)),) = shapes.items()
        return cls(nnx.graphdef(layer), name, shape, dtype, bias_shape)

    def layer(self, matrix: np.ndarray, bias: np.ndarray | None) -> nnx.Module:
        """The layer with this matrix and bias, rounded to the type of its weights."""
        arrays = {self.name: (matrix, self.shape)}
        if self.bias_shape is not None:
            arrays["bias"] = bias, self.bias_shape
        flat = [
            ((name,), jnp.asarray(value, self.dtype).reshape(shape))
            for name, (value, shape) in arrays.items()
        ]
        return nnx.merge(self.definition, nnx.from_flat_state(flat))


def dense_form(layer: nnx.Module) -> DenseForm:
    """The form of a dense layer, or of the one that a chain was before.

    A chain that never was a dense layer becomes an `nnx.Linear` or `nnx.Embed`.
    """
    chain = chain_of(layer)
    if chain is None:
        return DenseForm.of(layer)
    if (form := getattr(chain, "dense_form", None)) is not None:
        return form
    kind = nnx.Embed if is_table(layer) else nnx.Linear
    options = {} if kind is nnx.Embed else {"use_bias": chain.bias is not None}
    # Shapes are enough for a form: no weights are made.
    return DenseForm.of(nnx.eval_shape(lambda: kind(*size(layer), **options, rngs=nnx.Rngs(0))))


def compute_dtype(layer: nnx.Module) -> str:
    """Name of the type that a layer computes in; that of its weights where it names none."""
    chain = chain_of(layer)
    if chain is not None:
        return chain.dtype
    return jnp.dtype(layer.dtype or _variable(layer).dtype).name


def to_chain(layer: nnx.Module, shape: mpo.MPOShape, cores: Sequence[np.ndarray]) -> nnx.Module:
    """The layer of a dense one's function with these cores in the place of its matrix."""
    # The last array of a pivoted chain is its order of columns: integers.
    *cores, last = (jnp.asarray(core) for core in cores)
    last = last if shape.pivoted else last.astype(jnp.float32)
    cores = [*(core.astype(jnp.float32) for core in cores), last]
    dtype = compute_dtype(layer)
    if is_table(layer):
        chain = made = nn.MPOEmbed(shape, dtype=dtype, cores=cores)
    else:
        chain = made = nn.MPOLinear(shape, layer.bias is not None, dtype=dtype, cores=cores)
        if layer.bias is not None:
            # Of an nnx.LinearGeneral (*out_features), of a chain (out,).
            chain.bias = nnx.Param(jnp.asarray(layer.bias[...], jnp.float32).reshape(-1))
        if isinstance(layer, nnx.LinearGeneral):
            out_features = _as_tuple(layer.out_features)
            made = MPOLinearGeneral(chain, num_input_axes(layer), out_features)
    chain.dense_form = DenseForm.of(layer)
    return made


def with_matrix(layer: nnx.Module, w: np.ndarray) -> nnx.Module:
    """A dense linear layer with another matrix."""
    bias = None if layer.bias is None else layer.bias[...]
    return dense_form(layer).layer(w, bias)


def merged_module(module: nnx.Module) -> nnx.Module:
    """A copy of a module, all of whose chains and adapters have gone into dense layers."""
    changed = {
        path: entry
        for path, entry in locations(module).items()
        if entry.adapted is not None or chain_of(entry.layer) is not None
    }
    for path, entry in changed.items():
        if (reason := refusal(entry.layer)) is not None:
            raise ValueError(f"{path} cannot be merged on its own: {reason}.")
    return exchanged(module, {e.outer_location: _merged(e) for e in changed.values()})


def _merged(entry: Located) -> nnx.Module:
    layer, chain = entry.layer, chain_of(entry.layer)
    if chain is None:
        w = np.asarray(matrix(layer), np.float64)
    else:
        cores = [in_float64(core) for core in chain.all_cores()]
        w = mpo.to_matrix(cores, chain.shape)
    bias = getattr(layer if chain is None else chain, "bias", None)
    bias = None if bias is None else np.asarray(bias[...], np.float64).reshape(-1)
    if entry.adapted is not None:
        arrays, settings = entry.adapted.adapter_arrays(), entry.adapted.settings
        w, bias = nn.merge_adapter(settings, arrays, w, bias, scale=1.0)
    return dense_form(layer).layer(w, bias)


def in_float64(core) -> np.ndarray:
    """A core in float64 on the host; the order of a pivoted chain stays integer."""
    core = np.asarray(core)
    return core if np.issubdtype(core.dtype, np.integer) else core.astype(np.float64)


def exchanged(module: nnx.Module, new: Mapping[tuple, nnx.Module]) -> nnx.Module:
    """A copy of a module with other layers at these locations, also where they are held twice."""
    return nnx.recursive_map(
        lambda location, node: new.get(tuple(location), node), nnx.clone(module)
    )


def _as_tuple(value) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
