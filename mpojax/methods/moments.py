"""An optimizer's moments where a method changes the parameters of a model in the middle of a run.

Between two models, moments go by logical path (`layers/3/attention/query/cores/1`), as the arrays
of a model do: how layers are stacked may change.
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
# What holds other quantities of the parameters' shape.
_OTHERS = (optax.contrib.MuonState, transforms.StartState)

_CANNOT_FOLLOW = (
    "this optimizer keeps state of the parameters' shape that cannot follow a cut; use adam, "
    "adamw, lamb or sgd, or optimizer_state='reset'."
)


def trees(state: Any) -> list[tuple[Any, bool]]:
    """(tree like the parameters, is it a second moment?) of each moment in an optimizer state.

    Raises:
      ValueError: an optimizer whose state has no moments that are known.
    """
    found = [
        (getattr(node, name), squared)
        for node in _nodes(state, _is_moments)
        if _is_moments(node)
        for name, squared in _MOMENTS[type(node)].items()
    ]
    if not found:
        raise ValueError("this optimizer keeps no moments that can be masked; use adam or adamw.")
    return found


def with_trees(state: Any, moments: list[Any]) -> Any:
    """The optimizer state with other moments, in the order of `trees`."""
    left = iter(moments)

    def replaced(node):
        if not _is_moments(node):
            return node
        return node._replace(**{name: next(left) for name in _MOMENTS[type(node)]})

    return jax.tree.map(replaced, state, is_leaf=_is_moments)


def regauge_and_slice(
    state: Any,
    fresh: Any,
    maps: Mapping[str, list[np.ndarray]],
    old: models.Model,
    new: models.Model,
) -> Any:
    """The optimizer state of `old`, re-gauged and sliced to the parameters of `new`.

    First moments follow the gauge exactly (`mpo.transform_gradients`), second moments by the
    squared maps, then both are sliced like the cores. Step counts stay.

    Args:
      state: optax state of the old model's trained parameters.
      fresh: the same optimizer's state for the new ones, freshly made: gives structure and shapes.
      maps: {matrix path: `mpo.gauge_maps` from its old cores to the new, uncut ones}.
      old, new: the models before and after, of which the same is trained.

    Raises:
      ValueError: an optimizer that keeps other quantities of the parameters' shape.
    """

    def move(before, after, squared):
        by_path = _logical(old, before)
        for path, gauge in maps.items():
            names = [f"{path}/cores/{k}" for k in range(len(gauge) - 1)]
            cores = [by_path.get(name) for name in names]
            cores = mpo.transform_gradients(cores, gauge, squared=squared)
            for name, core, shape in zip(names, cores, new.shapes[path].core_shapes, strict=True):
                if core is not None:
                    # Re-gauged first: the leading indices are those of the largest singular values.
                    by_path[name] = core[: shape[0], :, :, : shape[3]]
        return _like(after, new, by_path)

    return _mapped(state, fresh, move)


def copy_by_name(state: Any, fresh: Any, old: models.Model, new: models.Model) -> Any:
    """The optimizer state of `old` for `new`, by name: what only `new` has starts afresh.

    Step counts stay, those of the bias correction too: the first updates of new parameters are
    about (1 - beta1) / sqrt(1 - beta2) times as long as others, 3.2 for Adam's usual numbers.

    Args, Raises: see `regauge_and_slice`.
    """

    def move(before, after, squared):
        by_path, known = _logical(new, after), _logical(old, before)
        # What is new keeps its zeros.
        by_path |= {name: known[name] for name in by_path if name in known}
        return _like(after, new, by_path)

    return _mapped(state, fresh, move)


def reset(state: Any, fresh: Any) -> Any:
    """Moments and their counts from `fresh`; the rest, such as the schedule's, from `state`.

    What decays towards its start starts anew.
    """

    def is_reset(node):
        return _is_moments(node) or isinstance(node, _OTHERS)

    new_nodes, structure = jax.tree.flatten(fresh, is_leaf=is_reset)
    pairs = zip(_nodes(state, is_reset), new_nodes, strict=True)
    kept = [new if is_reset(new) else jnp.array(old, copy=True) for old, new in pairs]
    return jax.tree.unflatten(structure, kept)


def _is_moments(node: Any) -> bool:
    return isinstance(node, tuple(_MOMENTS))


def _nodes(state: Any, is_leaf: Callable) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=is_leaf)


def _mapped(state: Any, fresh: Any, move: Callable) -> Any:
    """`state` with `move(old moment, fresh moment, is it a second one?)` for every moment."""
    # Of Muon: its matrices and Adam's other parameters are two trees, neither of them whole.
    if any(isinstance(n, _OTHERS) for n in _nodes(state, lambda n: isinstance(n, _OTHERS))):
        raise ValueError(_CANNOT_FOLLOW)
    old_nodes, structure = jax.tree.flatten(state, is_leaf=_is_moments)
    moved = []
    for before, after in zip(old_nodes, _nodes(fresh, _is_moments), strict=True):
        if _is_moments(before):
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


def _logical(model: models.Model, tree: Mapping) -> dict[str, np.ndarray]:
    flat = {path: np.asarray(value) for path, value in state_lib.flatten(tree).items()}
    return models.logical_arrays(model, flat)


def _like(tree: Mapping, model: models.Model, by_path: Mapping[str, np.ndarray]) -> dict:
    """A tree like that of the model's trained parameters, from logical arrays."""
    stacked = models.stacked_arrays(model, by_path)
    return state_lib.nest(
        {
            path: jnp.array(stacked[path], leaf.dtype)
            for path, leaf in state_lib.flatten(tree).items()
        }
    )
