"""A random mask on the gradients of central cores: experts share them, so they learn less often.

"Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (COLING 2022),
section 3.2, equation 4 and algorithm 1: in each iteration b ~ Bernoulli(rate) is sampled, and the
gradient of a central core is multiplied with 1 - b. The paper's algorithm is plain SGD, where
leaving an update out and giving a gradient of zero are the same; see `mode` for the others.

In the config of an optimizer, as `make_optimizer` takes it:

    central_mask = {"rate": 0.5, "mode": "skip", "granularity": "step"}
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mpojax import checks, mpo, training
from mpojax.training import state as state_lib
from mpojax.training import transforms
from mpojax.training.optimizer import Optimizer

MODES = ("skip", "zero_grad")
GRANULARITIES = ("step", "tensor", "element")
_FIELDS = {
    "rate": (checks.number(0, 1) | checks.null()).noted("how often; null: no mask"),
    "mode": checks.one_of(*MODES),
    "granularity": checks.one_of(*GRANULARITIES),
}
_DEFAULTS = {"rate": None, "mode": "skip", "granularity": "step"}
# Of the masks among all that is sampled from a seed; the run's own key may come from the same one.
_STREAM = 0x6D61736B  # "mask" in ASCII


@dataclasses.dataclass(frozen=True)
class GradientMask:
    """Settings of gradient masks: which gradients, how often, and what then happens.

    Attributes:
      rate: probability of masking: 0 masks nothing, 1 freezes the central cores ("skip").
      mode: "skip": where masked, the core, its moments, their step counts and its weight decay stay
        as they were; "zero_grad": the optimizer receives a gradient of zero, so that momentum and
        decay continue.
      granularity: "step": one random number decides for all central cores; "tensor": one for each
        core, thus for each slice of stacked layers (and of experts, where each has its own);
        "element": one for each element.
      seed: of the masks.
      central: paths of the central cores, frozen ones included.
    """

    rate: float
    mode: str
    granularity: str
    seed: int
    central: frozenset[str]

    def count_shape(self, path: str, parameter: Any) -> tuple[int, ...] | None:
        """Shape of the step count of one core: one for what is masked together; None for others."""
        if path not in self.central:
            return None
        return () if self.granularity == "step" else self._mask_shape(path, parameter)

    def masks(self, count: jax.Array, parameters: Any) -> dict[str, jax.Array]:
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
                if self.granularity != "step":
                    # By path, not position: a core keeps its masks when others are frozen.
                    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
                masks[path] = jax.random.bernoulli(own, self.rate, self._mask_shape(path, leaf))
        return masks

    def _mask_shape(self, path: str, leaf: Any) -> tuple[int, ...]:
        if self.granularity == "element":
            return tuple(leaf.shape)
        # One draw for each slice of the stacked axes (layers), whatever the size of the core.
        kept = 0 if self.granularity == "step" else state_lib.stack_axes(path)
        return (*leaf.shape[:kept], *(1,) * (len(leaf.shape) - kept))


class MaskState(NamedTuple):
    """State of the masked optimizer.

    Attributes:
      count: () int32, updates so far; numbers the masks.
      share: () float32, fraction of the central cores' parameters that the last update masked.
      total: () float32, sum of all shares.
      inner: state of what is masked.
    """

    count: jax.Array
    share: jax.Array
    total: jax.Array
    inner: Any


def default_config() -> ml_collections.ConfigDict:
    """`training.default_config` with `central_mask`: no mask."""
    rate = ml_collections.config_dict.placeholder(float)
    return ml_collections.ConfigDict(
        {**training.default_config(), "central_mask": {**_DEFAULTS, "rate": rate}}
    )


def make_optimizer(
    config: Mapping[str, Any],
    roles: Mapping[str, str],
    total_steps: int,
    chains: Mapping[str, mpo.MPOShape] | None = None,
    *,
    seed: int = 0,
) -> Optimizer:
    """`training.make_optimizer` of a config that may hold `central_mask`.

    Args:
      seed: of the masks.
    """
    config = dict(config)
    settings = dict(config.pop("central_mask", None) or {})
    mask = read(settings, roles, seed, under_muon=_is_under_muon(config))
    if mask is None:
        return training.make_optimizer(config, roles, total_steps, chains)
    adam = transforms.scale_by_adam
    if mask.mode == "skip":
        adam = functools.partial(scale_by_counted_adam, count_shape=mask.count_shape)
    made = training.make_optimizer(config, roles, total_steps, chains, adam=adam)
    return masked(mask, made)


def _is_under_muon(config: Mapping[str, Any]) -> bool:
    return config.get("name") == "muon" and "central" in config.get("muon_roles", ())


def read(
    settings: Mapping[str, Any], roles: Mapping[str, str], seed: int, under_muon: bool = False
) -> GradientMask | None:
    """The mask of `central_mask` in an optimizer's config; None without a rate.

    Args:
      settings: see `GradientMask`; absent ones take their defaults.
      roles: {parameter path: role}.
      seed: of the masks.
      under_muon: central cores are orthogonalised by Muon.

    Raises:
      ValueError: a value that is not allowed, or a rate for a model without central cores.
    """
    checks.check_names(settings, _FIELDS, "central_mask")
    settings = {**_DEFAULTS, **settings}
    checks.check(settings, _FIELDS, "central_mask")
    rate = settings["rate"]
    if rate is None:
        return None
    if under_muon:
        raise ValueError(
            "central_mask has no meaning for central cores that muon orthogonalises; take "
            '"central" out of muon_roles, or leave central_mask.rate at None'
        )
    central = frozenset(path for path, role in roles.items() if role == "central")
    if not central:
        raise ValueError(_nothing(rate, "the model has no central cores"))
    return GradientMask(float(rate), settings["mode"], settings["granularity"], seed, central)


def masked(mask: GradientMask, optimizer: Optimizer) -> Optimizer:
    """The optimizer, with masked gradients of central cores.

    Gradients are masked before anything else, thus before norms are clipped. What counts updates
    (the schedule) counts masked ones, too. Metrics, of the last update: `central_masked`, the
    share of parameters that it masked, and `mask_rate`, the mean of all such shares so far.
    """

    def init(params):
        if not mask.central & set(state_lib.flatten(params)):
            raise ValueError(_nothing(mask.rate, "none of the central cores is trained"))
        zero = jnp.zeros((), jnp.float32)
        return MaskState(jnp.zeros((), jnp.int32), zero, zero, optimizer.init(params))

    def update(updates, state, params=None):
        masks = mask.masks(state.count, updates)
        updates = _cleared(masks, updates)
        changes, inner = optimizer.update(updates, state.inner, params)
        if mask.mode == "skip":
            changes = _cleared(masks, changes)
            # As if the step had not been: neither moments nor counts of a masked core move.
            inner = _put_back(masks, state.inner, inner, state_lib.flatten(updates))
        share = _share(masks, updates)
        count = optax.safe_increment(state.count)
        return changes, MaskState(count, share, state.total + share, inner)

    def metrics(state):
        updates = jnp.maximum(state.count, 1).astype(jnp.float32)
        return {"central_masked": state.share, "mask_rate": state.total / updates}

    return optimizer._replace(
        init=init,
        update=update,
        learning_rate=lambda state: optimizer.learning_rate(state.inner),
        metrics=metrics,
    )


def scale_by_counted_adam(
    beta1: float, beta2: float, epsilon: float, bias_correction: bool, *, count_shape: Callable
) -> optax.GradientTransformation:
    """Adam whose bias correction goes by counts that some parameters have of their own.

    For updates that are skipped in part: whoever puts moments back puts their count back, too. As
    long as nothing is put back, updates are those of `optax.scale_by_adam` to the bit.

    The state is `optax.ScaleByAdamState`; its count is {"all": (), "own": {path: own count}}.

    Args:
      count_shape: (path, parameter) -> shape of its own count, broadcastable to the parameter; or
        None: it goes by the count of all updates.
    """
    adam = transforms.scale_by_adam(beta1, beta2, epsilon, bias_correction)
    if not bias_correction:
        return adam

    def init(params):
        made = adam.init(params)
        own = {
            path: jnp.zeros(shape, jnp.int32)
            for path, leaf in state_lib.flatten(params).items()
            if (shape := count_shape(path, leaf)) is not None
        }
        return made._replace(count={"all": made.count, "own": state_lib.nest(own)})

    def update(updates, state, params=None):
        count = jax.tree.map(optax.safe_increment, state.count)
        own = state_lib.flatten(count["own"])
        _check_counts(own, updates, count_shape)
        updates, made = adam.update(updates, state._replace(count=state.count["all"]), params)

        def corrected(moment, decay, count):
            # m_t / (1 - beta^t), t the updates that this entry took part in.
            return moment / (1 - decay**count).astype(moment.dtype)

        def direction(path, usual, m, v):
            if path not in own:
                return usual
            root = jnp.sqrt(corrected(v, beta2, own[path]))
            # Where nothing was skipped the usual update, which is then equal to the bit.
            late = own[path] != count["all"]
            return jnp.where(late, corrected(m, beta1, own[path]) / (root + epsilon), usual)

        directions = state_lib.map_with_path(direction, updates, made.mu, made.nu)
        return directions, made._replace(count=count)

    return optax.GradientTransformation(init, update)


def _check_counts(own: Mapping[str, jax.Array], parameters: Any, count_shape: Callable) -> None:
    for path, leaf in state_lib.flatten(parameters).items():
        wanted = count_shape(path, leaf)
        if wanted is not None and own[path].shape != wanted:
            raise ValueError(
                f"{path}: the optimizer state counts updates with shape {own[path].shape}, its "
                f"parameter now needs {wanted}; start the optimizer state anew where shapes change"
            )


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
        # A mask is broadcast over its core: its mean is the masked fraction of the core.
        masked = masked + jnp.mean(mask.astype(jnp.float32)) * sizes[path]
        whole = whole + sizes[path]
    return masked / whole


def _nothing(rate: float, why: str) -> str:
    return (
        f"central_mask.rate={rate} masks gradients of central cores, but {why}; set it to None, or "
        "train central cores of matrices in MPO form"
    )
