"""Optimizers whose updates leave out entries of parameters: what a search has dropped."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mpojax.training.optimizer import Optimizer

# Optimizer states whose fields have the structure of the trained parameters.
_MOMENTS = {optax.ScaleByAdamState: ("mu", "nu"), optax.TraceState: ("trace",)}


class MaskedState(NamedTuple):
    """State of a masked optimizer.

    Attributes:
      mask: like the parameters: 1 where an entry is trained, 0 where it stays as it is.
      inner: of the optimizer.
    """

    mask: Any
    inner: Any


def masked(optimizer: Optimizer, masks: Mapping | None = None) -> Optimizer:
    """The optimizer, with gradients and updates multiplied by a mask that its state holds.

    The mask is part of the state, so that it is saved with it and may change without compiling
    again. Gradients are masked before norms are clipped, updates after decay is added: a dropped
    entry neither moves nor counts.

    Args:
      optimizer: from `make_optimizer`.
      masks: nested like the parameters; None for all ones.
    """

    def init(params):
        mask = jax.tree.map(jnp.ones_like, params) if masks is None else masks
        return MaskedState(jax.tree.map(jnp.array, mask), optimizer.init(params))

    def update(updates, state, params=None, **more):
        updates = jax.tree.map(jnp.multiply, updates, state.mask)
        updates, inner = optimizer.update(updates, state.inner, params, **more)
        return jax.tree.map(jnp.multiply, updates, state.mask), MaskedState(state.mask, inner)

    return optimizer._replace(
        init=init,
        update=update,
        learning_rate=lambda held, *args, **more: optimizer.learning_rate(
            held.inner, *args, **more
        ),
        metrics=lambda state: optimizer.metrics(state.inner),
    )


def map_moments(function, state: Any) -> Any:
    """The optimizer state with `function(field name, tree)` for each moment of the parameters.

    Raises:
      ValueError: an optimizer whose state has no moments that are known.
    """
    kinds, found = tuple(_MOMENTS), []

    def one(node):
        if not isinstance(node, kinds):
            return node
        found.append(node)
        fields = {name: function(name, getattr(node, name)) for name in _MOMENTS[type(node)]}
        return node._replace(**fields)

    mapped = jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, kinds))
    if not found:
        raise ValueError("this optimizer keeps no moments that can be masked; use adam or adamw.")
    return mapped
