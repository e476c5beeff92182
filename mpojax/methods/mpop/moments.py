"""An optimizer's moments through a change of gauge and of bonds.

Moments are kept by logical path (`layers/3/attention/query/cores/1`), as the arrays of a model are:
how layers are stacked may change between two models.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mpojax import models, mpo
from mpojax.training import state as state_lib
from mpojax.training import transforms

# Optimizer states whose fields have the structure of the trained parameters: {field: is it a
# second moment?}.
_MOMENTS = {
    optax.ScaleByAdamState: {"mu": False, "nu": True},
    optax.TraceState: {"trace": False},
}

_CANNOT_FOLLOW = (
    "this optimizer keeps state of the parameters' shape that cannot follow a cut; use adam, "
    "adamw, lamb or sgd, or optimizer_state='reset'."
)


def transfer(
    state: Any,
    fresh: Any,
    maps: Mapping[str, list[np.ndarray]],
    old: models.Model,
    new: models.Model,
    trainable: Any,
) -> Any:
    """The optimizer state of `old`, re-gauged and sliced to the parameters of `new`.

    First moments follow the gauge exactly (`mpo.transform_gradients`), second moments by the
    squared maps, then both are sliced like the cores. Step counts stay.

    Args:
      state: optax state of the old model's trained parameters.
      fresh: the same optimizer's state for the new ones, freshly made: gives structure and shapes.
      maps: {matrix path: `mpo.gauge_maps` from its old cores to the new, uncut ones}.
      old, new: the models before and after.
      trainable: NNX filter of what is trained, the same for both.

    Raises:
      ValueError: an optimizer that keeps other quantities of the parameters' shape.
    """

    def move(before, after, squared):
        return _moved(before, squared, maps, old, new, trainable)

    return _mapped(state, fresh, move)


def carried(state: Any, fresh: Any, old: models.Model, new: models.Model, trainable: Any) -> Any:
    """The optimizer state of `old` for `new`, by name: what only `new` has starts afresh.

    Step counts stay, those of the bias correction too: the first updates of new parameters are
    about (1 - beta1) / sqrt(1 - beta2) times as long as others, 3.2 for Adam's usual numbers.

    Args:
      state, fresh, old, new, trainable: see `transfer`.

    Raises:
      ValueError: an optimizer that keeps other quantities of the parameters' shape.
    """
    _, trained, _ = state_lib.split(new, trainable)
    trained = state_lib.flatten(trained)

    def carry(before, after, squared):
        by_path = _by_logical_path(after, new)
        known = _by_logical_path(before, old)
        by_path |= {name: known[name] for name in by_path if name in known}
        return state_lib.nest(_stacked(by_path, new, trained))

    return _mapped(state, fresh, carry)


def _mapped(state: Any, fresh: Any, move: Callable) -> Any:
    """`state` with `move(old moment, fresh moment, is it a second one?)` for every moment."""
    kinds = tuple(_MOMENTS)

    def is_moments(node):
        return isinstance(node, kinds)

    old_nodes, structure = jax.tree.flatten(state, is_leaf=is_moments)
    new_nodes = jax.tree.leaves(fresh, is_leaf=is_moments)
    if _holds(state, optax.contrib.MuonState) or _holds(state, transforms.StartState):
        raise ValueError(_CANNOT_FOLLOW)
    moved = []
    for before, after in zip(old_nodes, new_nodes, strict=True):
        if is_moments(before):
            fields = {
                name: move(getattr(before, name), getattr(after, name), squared)
                for name, squared in _MOMENTS[type(before)].items()
            }
            moved.append(before._replace(**fields))
        elif before.shape == after.shape:
            moved.append(jnp.array(before, copy=True))
        else:
            raise ValueError(_CANNOT_FOLLOW)
    return jax.tree.unflatten(structure, moved)


def reset(state: Any, fresh: Any) -> Any:
    """Moments and their counts from `fresh`; the rest, such as the schedule's, from `state`.

    What decays towards its start starts anew.
    """
    kinds = (*_MOMENTS, optax.contrib.MuonState, transforms.StartState)

    def is_moments(node):
        return isinstance(node, kinds)

    old_nodes = jax.tree.leaves(state, is_leaf=is_moments)
    new_nodes, structure = jax.tree.flatten(fresh, is_leaf=is_moments)
    pairs = zip(old_nodes, new_nodes, strict=True)
    return jax.tree.unflatten(
        structure,
        [new if is_moments(new) else jnp.array(old, copy=True) for old, new in pairs],
    )


def _holds(state: Any, kind: type) -> bool:
    """Of Muon: its matrices and Adam's other parameters are two trees, neither of them whole."""
    nodes = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, kind))
    return any(isinstance(node, kind) for node in nodes)


def _moved(tree: Mapping, squared: bool, maps, old, new, trainable) -> dict:
    """One moment of all parameters, from the structure of `old` to that of `new`."""
    by_path = _by_logical_path(tree, old)
    for path, gauge in maps.items():
        names = [f"{path}/cores/{k}" for k in range(len(gauge) - 1)]
        cores = [by_path.get(name) for name in names]
        cores = mpo.transform_gradients(cores, gauge, squared=squared)
        for name, core, shape in zip(names, cores, new.shapes[path].core_shapes, strict=True):
            if core is not None:
                by_path[name] = core[: shape[0], :, :, : shape[3]]
    _, trained, _ = state_lib.split(new, trainable)
    return state_lib.nest(_stacked(by_path, new, state_lib.flatten(trained)))


def _by_logical_path(tree: Mapping, model: models.Model) -> dict[str, np.ndarray]:
    flat, found = state_lib.flatten(tree), {}
    for path, _, layers in models.variables(model):
        key = state_lib.join(path)
        if key in flat:
            value = np.asarray(flat[key])
            for name, index in models.logical_names(path, layers):
                found[name] = value if index is None else value[index]
    return found


def _stacked(by_path: Mapping, model: models.Model, trained: Mapping) -> dict[str, jax.Array]:
    flat = {}
    for path, _, layers in models.variables(model):
        key = state_lib.join(path)
        if key in trained:
            parts = [by_path[name] for name, _ in models.logical_names(path, layers)]
            value = parts[0] if layers is None else np.stack(parts)
            flat[key] = jnp.array(value, trained[key].dtype)
    return {key: flat[key] for key in trained}
