"""Parameters of a model that belong to its adapters, and stacks of them taken apart."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mpojax import nn
from mpojax.models import arrays as arrays_lib
from mpojax.models import matrices
from mpojax.models.config import Config
from mpojax.models.model import Model


def adapter_arrays(model: Model) -> dict[str, str]:
    """{logical path: kind} of every array that belongs to an adapter, added or in place.

    Works on abstract models, too. In model order.

    Raises:
      ValueError: a pattern of a kind in place that matches no array of its kind.
    """
    added = matrices.adapter_settings(model.config)
    found, tuned = {}, in_place(model)
    for name, _ in _names(model):
        matrix, has_adapter, _ = name.partition("/adapter/")
        if has_adapter:
            found[name] = added[matrix].kind
        elif name in tuned:
            found[name] = tuned[name]
    return found


def in_place(model: Model, config: Config | None = None) -> dict[str, str]:
    """{logical path: kind} of what the patterns of kinds in place match; `config` as the model's.

    Biases are those of linear maps and norms, scales those of norms, cores auxiliary ones. The head
    belongs to the task, not to the adapters.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    config, found = config or model.config, {}
    named = [(name, kind) for name, kind in _names(model) if kind is not None]
    for pattern, settings in config.adapters:
        if not settings.in_place:
            continue
        names = [n for n, kind in named if kind == settings.kind and re.fullmatch(pattern, n)]
        if not names:
            examples = [n for n, kind in named if kind == settings.kind][:3]
            raise ValueError(
                f"adapters: {pattern!r} matches no array of kind {settings.kind!r}; those of the "
                f"model look like {', '.join(examples) or 'none at all'}."
            )
        found |= dict.fromkeys(names, settings.kind)
    return found


def adapter_filter(model: Model, head: bool = True):
    """NNX filter (path, variable) of the adapters' variables, and of the head's.

    Raises:
      ValueError: a stack of layers of which only some are tuned in place; `add_adapters` of
        `mpojax.compression` makes models whose stacks fit.
    """
    tuned, paths = adapter_arrays(model), set()
    for path, _, layer_range in arrays_lib.variables(model):
        names = [name for name, _ in arrays_lib.logical_names(path, layer_range)]
        inside = [name in tuned for name in names]
        if any(inside) and not all(inside):
            raise ValueError(
                f"{names[inside.index(True)]} is tuned and {names[inside.index(False)]} is not, "
                "but both are kept in one stack: give the model scan_boundaries between them."
            )
        if all(inside) or (head and is_head(model, path)):
            paths.add(tuple(path))
    return lambda path, variable: tuple(path) in paths


def is_head(model: Model, path: tuple) -> bool:
    """True if a variable belongs to the head of a task, which is no part of a pre-trained model."""
    return path[0] == "head" and model.config.num_labels is not None


def logical_arrays(model: Model, flat: Mapping[str, Any]) -> dict[str, Any]:
    """{logical path: array} from {module path joined by "/": array, stacked where the model does}.

    Works under jit; what `flat` lacks is left out.
    """
    found = {}
    for path, _, layer_range in arrays_lib.variables(model):
        key = "/".join(map(str, path))
        if key not in flat:
            continue
        for name, index in arrays_lib.logical_names(path, layer_range):
            found[name] = flat[key] if index is None else flat[key][index]
    return found


def stacked_arrays(model: Model, logical: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `logical_arrays`, for variables all of whose layers are in `logical`."""
    found = {}
    for path, _, layer_range in arrays_lib.variables(model):
        names = [name for name, _ in arrays_lib.logical_names(path, layer_range)]
        if not all(name in logical for name in names):
            continue
        parts = [logical[name] for name in names]
        found["/".join(map(str, path))] = parts[0] if layer_range is None else _stack(parts)
    return found


def _stack(parts: Sequence):
    """On the host where all parts are there: nothing to compile."""
    on_host = all(isinstance(part, np.ndarray) for part in parts)
    return np.stack(parts) if on_host else jnp.stack(parts)


def scan_boundaries(model: Model, tuned: Mapping[str, str]) -> tuple[int, ...]:
    """Layers before which a stack must end for all of its layers to be tuned alike."""
    breaks = set(model.config.scan_boundaries)
    for path, _, layer_range in arrays_lib.variables(model):
        if layer_range is None:
            continue
        names = [name for name, _ in arrays_lib.logical_names(path, layer_range)]
        pairs = zip(layer_range[1:], names[:-1], names[1:], strict=True)
        breaks |= {layer for layer, one, other in pairs if (one in tuned) != (other in tuned)}
    return tuple(sorted(breaks))


def _names(model: Model) -> Iterator[tuple[str, str | None]]:
    """(logical path, kind in place that may tune it, or None) of every array."""
    for path, variable, layer_range in arrays_lib.variables(model):
        for name, _ in arrays_lib.logical_names(path, layer_range):
            yield name, _kind(name, variable)


def _kind(name: str, variable) -> str | None:
    if "/adapter/" in name or name.startswith("head/"):
        return None
    if isinstance(variable, nn.AuxiliaryCore):
        return "cores"
    leaf = name.rpartition("/")[2]
    if leaf == "bias":
        return "bias"
    return "norm_scale" if leaf == "scale" else None
