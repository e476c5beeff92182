"""Optimizers from a config.

The keys, all optional but `name` and `learning_rate`, are those of `default_config()`. A learning
rate per role (`role_learning_rates`) follows the same schedule as the base rate; with it, the
auxiliary cores of an MPO model get the paper's `mpo_lr`.

The recipe of MPOBERT's released code (12 layers, batch 4096):

    dict(name="lamb", learning_rate=1.76e-6, warmup_steps=0.025, bias_correction=False,
         trust_bounds=(0.01, 0.3), weight_decay=0.01, clip_norm=0.0)
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mpojax import checks, mpo
from mpojax.nn import roles as role_lib
from mpojax.training import gradient_mask, schedules, transforms
from mpojax.training import state as state_lib

NO_DECAY = (r"(.*/)?(bias|scale)", r".*norm.*")
# Looked up by row, or of the output: their gradients are no matrices that Muon is made for.
NO_MUON = (r"(.*/)?table", r"(.*/)?(head|classifier)/.*")
NAMES = ("adam", "adamw", "lamb", "muon", "sgd")


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default value."""
    return ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-4,  # peak
            "role_learning_rates": {},  # {role: peak}, e.g. {"auxiliary": 1e-3}
            "schedule": "linear",  # after the warm-up: constant, or falling to end_factor * peak
            "warmup_steps": 0.0,  # below 1: a fraction of all steps, or of the budget
            "end_factor": 0.0,
            # "seconds": the schedule follows the spent fraction of budget_seconds, all time of the
            # training loop included; the run ends with the budget, or with its steps.
            "schedule_unit": "steps",
            "budget_seconds": 0.0,
            "beta1": 0.9,  # momentum of sgd
            "beta2": 0.999,
            "epsilon": 1e-8,
            "bias_correction": True,  # of the moments of adam, adamw, lamb, and of muon's adam
            "trust_bounds": (),  # lamb: (least, largest) trust ratio; () = unbounded
            "no_trust_ratio": (),  # lamb: patterns of paths that keep a ratio of 1
            "muon_roles": ("other",),  # whose matrices are orthogonalised; the rest goes to adam
            "muon_excluded": NO_MUON,  # patterns of paths that go to adam all the same
            "muon_momentum": 0.95,
            "muon_rms": 0.2,  # of the update's entries; 0.2 fits adam's learning rates
            "weight_decay": 0.0,  # decoupled
            "no_decay": NO_DECAY,  # patterns of paths without decay (re.fullmatch)
            "decay_to_start": (),  # patterns of paths that decay to their start instead of zero
            "clip_norm": 1.0,  # of the whole gradient; 0 = off
            # Of the gradients of central cores, see `gradient_mask`; rate None: no mask.
            "central_mask": gradient_mask.default_settings(),
        }
    )


class Optimizer(NamedTuple):
    """An optax transformation that also knows its learning rate.

    Attributes:
      schedule: (finished updates, or spent fraction of the budget) -> learning rate of the next.
      learning_rate: (optimizer state, share=None) -> the same, by the state's own count.
      budget_seconds: what the schedule follows instead of steps; `update` then needs the extra
        argument `share`. 0: it follows steps.
      metrics: optimizer state -> {name: scalar} of the last update.
    """

    init: Callable
    update: Callable
    schedule: Callable[[Any], Any]
    learning_rate: Callable[..., Any]
    budget_seconds: float = 0.0
    metrics: Callable[[Any], dict] = lambda state: {}


def make_optimizer(
    config: Mapping[str, Any],
    roles: Mapping[str, str],
    total_steps: int,
    chains: Mapping[str, mpo.MPOShape] | None = None,
    *,
    seed: int = 0,
) -> Optimizer:
    """Builds the optimizer of a config.

    Args:
      config: see `default_config`; missing keys take their defaults.
      roles: {parameter path: role}, from `training.roles(model)`.
      total_steps: where the schedule ends; 0 for a state that is only evaluated.
      chains: {path of a central core: shape of its chain}, from `models.central_cores(model)`: lets
        Muon see a central core as a matrix.
      seed: of what `central_mask` draws.

    Raises:
      ValueError: an unknown key, name, schedule or role, or a value out of range; lists what is
        allowed.
    """
    config = _complete(config)
    _check(config, roles, total_steps)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    under_muon = config.name == "muon" and "central" in config.muon_roles
    mask = gradient_mask.read(config.central_mask, roles, seed, under_muon)
    parts += _directions(config, roles, chains, mask)
    if config.weight_decay:
        patterns = (tuple(config.no_decay), tuple(config.decay_to_start))
        parts += transforms.decays(config.weight_decay, *patterns)
    if config.name == "lamb":
        bounds = tuple(config.trust_bounds) or None
        parts += [transforms.scale_by_trust_ratio(bounds, config.no_trust_ratio)]
    parts += [_scale_by_role(config, roles)]
    course = (config.schedule, config.warmup_steps, config.end_factor)
    if config.schedule_unit == "seconds":
        shape = schedules.by_share(*course)
        parts += [schedules.scale_by_share(shape)]
        budget = config.budget_seconds
    else:
        shape = schedules.by_step(*course, total_steps)
        parts += [optax.scale_by_schedule(lambda step: -shape(step))]
        budget = 0.0
    chain = optax.chain(*parts)
    if mask is not None:
        chain = gradient_mask.apply(mask, chain)
    schedule = _standard_promotion(lambda place: config.learning_rate * shape(place))

    def learning_rate(held, share=None):
        # The last of the parts is scale_by_schedule, which counts the updates.
        held = held if mask is None else held.inner
        return schedule(share if budget else held[-1].count)

    return Optimizer(
        _standard_promotion(chain.init),
        _standard_promotion(chain.update),
        schedule,
        learning_rate,
        budget,
        *(() if mask is None else (gradient_mask.metrics,)),
    )


def _directions(config: ml_collections.ConfigDict, roles: Mapping[str, str], chains, mask) -> list:
    """What makes directions of gradients."""
    if config.name == "sgd":
        return [optax.trace(config.beta1)] if config.beta1 else []
    numbers = (config.beta1, config.beta2, config.epsilon)
    adam = transforms.scale_by_adam(*numbers, config.bias_correction)
    if mask is not None and mask.mode == "skip" and config.bias_correction:
        adam = transforms.scale_by_counted_adam(*numbers, mask.count_shape)
    if config.name != "muon":
        return [adam]
    return [
        transforms.scale_by_muon(
            roles,
            muon_roles=config.muon_roles,
            excluded=config.muon_excluded,
            momentum=config.muon_momentum,
            rms=config.muon_rms,
            adam=adam,
            chains=chains,
        )
    ]


def _complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    full = default_config()
    unknown = sorted(set(config) - set(full))
    if unknown:
        raise ValueError(f"unknown optimizer keys {unknown}; allowed are {sorted(full)}")
    for name, value in config.items():
        if name == "role_learning_rates":
            value = dict(value)
        if name == "central_mask":
            value = gradient_mask.complete(value, full[name])
        if isinstance(full[name], float):
            value = float(value)
        with full.ignore_type():
            full[name] = value
    return full


def _check(config: ml_collections.ConfigDict, roles: Mapping[str, str], total_steps: int) -> None:
    if config.name not in NAMES:
        raise ValueError(f"unknown optimizer name {config.name!r}; allowed are {list(NAMES)}")
    if config.name == "adam" and config.weight_decay:
        raise ValueError(f"weight_decay={config.weight_decay} has no place in adam; use adamw")
    for key in (
        *("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "end_factor"),
        *("budget_seconds", "muon_rms"),
    ):
        if config[key] < 0:
            raise ValueError(f"optimizer.{key}={config[key]} must not be negative")
    for key in ("beta1", "beta2", "muon_momentum"):
        if not 0 <= config[key] < 1:
            raise ValueError(f"optimizer.{key}={config[key]} must lie in [0, 1)")
    _check_schedule(config, total_steps)
    _check_roles(config, roles)
    bounds = tuple(config.trust_bounds)
    if bounds and not (len(bounds) == 2 and 0 <= bounds[0] <= bounds[1]):
        raise ValueError(
            f"trust_bounds={bounds} must be (least, largest) with 0 <= least <= largest, such as "
            "(0.01, 0.3), or () for none"
        )
    for key, default in (
        ("no_decay", NO_DECAY),
        ("decay_to_start", ()),
        ("no_trust_ratio", ()),
        ("muon_excluded", NO_MUON),
    ):
        for pattern in () if tuple(config[key]) == default else config[key]:
            if not any(re.fullmatch(pattern, path) for path in roles):
                raise ValueError(f"the {key} pattern {pattern!r} matches no parameter path")


def _check_schedule(config: ml_collections.ConfigDict, total_steps: int) -> None:
    if config.schedule not in schedules.NAMES:
        raise ValueError(
            f"unknown schedule {config.schedule!r}; allowed are {list(schedules.NAMES)}"
        )
    if config.schedule_unit not in schedules.UNITS:
        raise ValueError(
            f"unknown schedule_unit {config.schedule_unit!r}; allowed are {list(schedules.UNITS)}"
        )
    checks.check({"total_steps": total_steps}, {"total_steps": checks.integer(0)})
    if config.schedule_unit == "seconds":
        if not config.budget_seconds:
            raise ValueError(
                "schedule_unit='seconds' needs budget_seconds, the length of the run, such as "
                "budget_seconds=86400.0"
            )
        if config.warmup_steps >= 1:
            raise ValueError(
                f"warmup_steps={config.warmup_steps} must be below 1, a fraction of the budget, "
                "with schedule_unit='seconds'"
            )
        return
    if config.budget_seconds:
        raise ValueError(
            f"budget_seconds={config.budget_seconds} has no meaning with schedule_unit='steps'; "
            "set schedule_unit='seconds', or leave it at 0"
        )
    if 0 < total_steps < schedules.warmup_length(config.warmup_steps, total_steps):
        raise ValueError(
            f"warmup_steps={config.warmup_steps} is more than the run's {total_steps} steps"
        )


def _check_roles(config: ml_collections.ConfigDict, roles: Mapping[str, str]) -> None:
    for role, rate in config.role_learning_rates.items():
        if rate < 0:
            raise ValueError(f"role_learning_rates[{role!r}]={rate} must not be negative")
    unknown = sorted(set(config.role_learning_rates) - set(roles.values()))
    if unknown:
        raise ValueError(
            f"role_learning_rates for {unknown}, but the model has only the roles "
            f"{sorted(set(roles.values()))}"
        )
    unknown = sorted(set(config.muon_roles) - set(role_lib.ROLES))
    if unknown:
        raise ValueError(f"muon_roles has unknown roles {unknown}; allowed are {role_lib.ROLES}")


def _standard_promotion(function: Callable) -> Callable:
    """optax mixes dtypes (integer counts, float rates), which jax's strict promotion forbids."""

    @functools.wraps(function)
    def wrapped(*args, **more):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **more)

    return wrapped


def _scale_by_role(config: ml_collections.ConfigDict, roles: Mapping[str, str]):
    rates = config.role_learning_rates

    def scale(path, update):
        if path not in roles:
            raise ValueError(f"no role is known for {path}; make the optimizer for this model")
        rate = rates.get(roles[path], config.learning_rate)
        return update * jnp.asarray(rate, update.dtype)

    return optax.stateless(lambda updates, params: state_lib.map_with_path(scale, updates))
