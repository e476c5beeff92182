"""A random mask on the gradients of central cores: experts share them, so they learn less often.

"Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (COLING 2022),
section 3.2, equation 4 and algorithm 1: in each iteration b ~ Bernoulli(rate) is drawn, and the
gradient of a central core is multiplied with 1 - b. The paper's algorithm is plain SGD, where
leaving an update out and giving a gradient of zero are the same; see `mode` for the others.

In the config of an optimizer: `central_mask = {"rate": 0.5, "mode": "skip", "draw": "step"}`.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mpojax.training import state as state_lib

MODES = ("skip", "zero_grad")
DRAWS = ("step", "tensor", "element")
# Of the masks among all that is drawn from a seed; the run's own key may come from the same one.
_STREAM = 0x6D61736B


@dataclasses.dataclass(frozen=True)
class GradientMask:
    """Settings of gradient masks: which gradients, how often, and what then happens.

    Attributes:
      rate: probability of masking: 0 masks nothing, 1 freezes the central cores ("skip").
      mode: "skip": where masked, the core, its moments, their step counts and its weight decay stay
        as they were; "zero_grad": the optimizer receives a gradient of zero, so that momentum and
        decay continue.
      draw: "step": one draw decides for all central cores; "tensor": one for each core, thus for
        each slice of stacked layers (and of experts, where each has its own); "element": one for
        each element.
      seed: of the draws.
      central: paths of the central cores, frozen ones included.
    """

    rate: float
    mode: str
    draw: str
    seed: int
    central: frozenset[str]

    def count_shape(self, path: str, parameter: Any) -> tuple[int, ...] | None:
        """Shape of the step count of one core: one for what is drawn together; None for others."""
        if path not in self.central:
            return None
        return () if self.draw == "step" else self._draw_shape(path, parameter)

    def draws(self, count: jax.Array, parameters: Any) -> dict[str, jax.Array]:
        """{path of a trained central core: bool, true where masked} of one update.

        A function of (seed, count) alone: the same on all devices, and after a restart. The masks
        can be broadcast to the cores.

        Args:
          count: updates before this one.
          parameters: what is trained.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), _STREAM)
        key = jax.random.fold_in(key, count)
        masks = {}
        for path, leaf in state_lib.flatten(parameters).items():
            if path in self.central:
                own = key
                if self.draw != "step":
                    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
                masks[path] = jax.random.bernoulli(own, self.rate, self._draw_shape(path, leaf))
        return masks

    def _draw_shape(self, path: str, leaf: Any) -> tuple[int, ...]:
        if self.draw == "element":
            return tuple(leaf.shape)
        kept = 0 if self.draw == "step" else state_lib.stack_axes(path)
        return (*leaf.shape[:kept], *(1,) * (len(leaf.shape) - kept))


class MaskState(NamedTuple):
    """State of the masked optimizer.

    Attributes:
      count: () int32, updates so far; numbers the draws.
      share: () float32, fraction of the central cores' parameters that the last update masked.
      total: () float32, sum of all shares.
      inner: state of what is masked.
    """

    count: jax.Array
    share: jax.Array
    total: jax.Array
    inner: Any


def default_settings() -> dict[str, Any]:
    """`central_mask` in the config of an optimizer: no mask."""
    return {
        "rate": ml_collections.config_dict.placeholder(float),
        "mode": "skip",
        "draw": "step",
    }


def complete(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of `central_mask`; raises a ValueError for unknown ones."""
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ValueError(f"unknown keys {unknown} of central_mask; allowed are {sorted(defaults)}")
    return dict(defaults) | dict(settings)


def read(
    settings: Mapping[str, Any], roles: Mapping[str, str], seed: int, under_muon: bool = False
) -> GradientMask | None:
    """The mask of `central_mask` in an optimizer's config; None without a rate.

    Args:
      settings: {"rate", "mode", "draw"}, see `GradientMask`.
      roles: {parameter path: role}.
      seed: of the draws.
      under_muon: central cores are orthogonalised by Muon.

    Raises:
      ValueError: a value that is not allowed, or a rate for a model without central cores.
    """
    for name, allowed in (("mode", MODES), ("draw", DRAWS)):
        if settings[name] not in allowed:
            raise ValueError(
                f"central_mask.{name}={settings[name]!r} must be one of {', '.join(allowed)}"
            )
    rate = settings["rate"]
    if rate is None:
        return None
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0 <= rate <= 1:
        raise ValueError(
            f"central_mask.rate={rate!r} must lie in [0, 1], the probability that central cores "
            "are masked; None for no mask"
        )
    if under_muon:
        raise ValueError(
            "central_mask has no meaning for central cores that muon orthogonalises; take "
            '"central" out of muon_roles, or leave central_mask.rate at None'
        )
    central = frozenset(path for path, role in roles.items() if role == "central")
    if not central:
        raise ValueError(_nothing(rate, "the model has no central cores"))
    return GradientMask(float(rate), settings["mode"], settings["draw"], seed, central)


def apply(mask: GradientMask, optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with masked gradients of central cores.

    Gradients are masked before anything else, thus before norms are clipped. What counts updates
    (the schedule) counts masked ones, too.
    """

    def init(params):
        if not mask.central & set(state_lib.flatten(params)):
            raise ValueError(_nothing(mask.rate, "none of the central cores is trained"))
        zero = jnp.zeros((), jnp.float32)
        return MaskState(jnp.zeros((), jnp.int32), zero, zero, optimizer.init(params))

    def update(updates, state, params=None, **more):
        masks = mask.draws(state.count, updates)
        updates = _cleared(masks, updates)
        changes, inner = optimizer.update(updates, state.inner, params, **more)
        if mask.mode == "skip":
            changes = _cleared(masks, changes)
            inner = _put_back(masks, state.inner, inner, state_lib.flatten(updates))
        share = _share(masks, updates)
        count = optax.safe_increment(state.count)
        return changes, MaskState(count, share, state.total + share, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(state: MaskState) -> dict[str, jax.Array]:
    """Of the last update: `central_masked`, the share that it masked; `mask_rate`, the mean of all
    such shares so far.
    """
    updates = jnp.maximum(state.count, 1).astype(jnp.float32)
    return {"central_masked": state.share, "mask_rate": state.total / updates}


def _cleared(masks: Mapping[str, jax.Array], tree: Any) -> Any:
    """The tree of gradients or changes with zeros where masked."""
    return state_lib.map_with_path(
        lambda path, x: jnp.where(masks[path], jnp.zeros_like(x), x) if path in masks else x, tree
    )


def _put_back(masks: Mapping[str, jax.Array], before: Any, after: Any, trained: Mapping) -> Any:
    """`after`, but where masked, what belongs to a core is as `before`."""

    def one(path, old, new):
        owner = state_lib.owner(path, trained)
        if owner not in masks:
            return new
        # One count may stand for a whole core.
        mask = masks[owner] if new.ndim else masks[owner].reshape(())
        return jnp.where(mask, old, new)

    return state_lib.map_with_path(one, before, after)


def _share(masks: Mapping[str, jax.Array], parameters: Any) -> jax.Array:
    sizes = {path: np.float32(leaf.size) for path, leaf in state_lib.flatten(parameters).items()}
    # Both sums are rounded alike, so that a whole mask has the share 1.
    masked, whole = jnp.zeros((), jnp.float32), np.float32(0)
    for path, mask in masks.items():
        masked = masked + jnp.mean(mask.astype(jnp.float32)) * sizes[path]
        whole = whole + sizes[path]
    return masked / whole


def _nothing(rate: float, why: str) -> str:
    return (
        f"central_mask.rate={rate} masks gradients of central cores, but {why}; set it to None, or "
        "train central cores of matrices in MPO form"
    )
