"""Optimizers from a config.

The keys, all optional but `name` and `learning_rate`, are those of `default_config()`. A learning
rate per role (`role_learning_rates`) follows the same schedule as the base rate; with it, the
auxiliary cores of an MPO model get the paper's `mpo_lr`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mpojax.training import state as state_lib

NO_DECAY = (r"(.*/)?(bias|scale)", r".*norm.*")
NAMES = ("adam", "adamw", "lamb", "sgd")
SCHEDULES = ("constant", "linear", "cosine")


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default value."""
    return ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-4,  # peak
            "role_learning_rates": {},  # {role: peak}, e.g. {"auxiliary": 1e-3}
            "schedule": "linear",  # after the warm-up: constant, or falling to end_factor * peak
            "warmup_steps": 0,  # below 1: a share of all steps
            "end_factor": 0.0,
            "beta1": 0.9,  # momentum of sgd
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.0,  # decoupled
            "no_decay": NO_DECAY,  # patterns of paths without decay (re.fullmatch)
            "clip_norm": 1.0,  # of the whole gradient; 0 = off
        }
    )


class Optimizer(NamedTuple):
    """An optax transformation that also knows its learning rate.

    Attributes:
      schedule: (finished updates) -> learning rate of the next one.
      learning_rate: (optimizer state) -> the same, by the state's own count.
    """

    init: Callable
    update: Callable
    schedule: Callable[[Any], Any]
    learning_rate: Callable[[Any], Any]


def make_optimizer(
    config: Mapping[str, Any], roles: Mapping[str, str], total_steps: int
) -> Optimizer:
    """Builds the optimizer of a config.

    Args:
      config: see `default_config`; missing keys take their defaults.
      roles: {parameter path: role}, from `training.roles(model)`.
      total_steps: where the schedule ends.

    Raises:
      ValueError: an unknown key, name, schedule or role, or a value out of range; lists what is
        allowed.
    """
    config = _complete(config)
    _check(config, roles, total_steps)
    shape = _schedule(config, total_steps)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "sgd":
        parts += [optax.trace(config.beta1)] if config.beta1 else []
    else:
        parts += [optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)]
    if config.weight_decay:
        parts += [optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(config.no_decay))]
    if config.name == "lamb":
        parts += [optax.scale_by_trust_ratio()]
    parts += [_scale_by_role(config, roles), optax.scale_by_schedule(lambda step: -shape(step))]
    chain = optax.chain(*parts)
    schedule = _standard_promotion(lambda step: config.learning_rate * shape(step))
    return Optimizer(
        _standard_promotion(chain.init),
        _standard_promotion(chain.update),
        schedule,
        lambda held: schedule(held[-1].count),  # of scale_by_schedule, the last of the parts
    )


def _complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    full = default_config()
    unknown = sorted(set(config) - set(full))
    if unknown:
        raise ValueError(f"unknown optimizer keys {unknown}; allowed are {sorted(full)}")
    for name, value in config.items():
        if name == "role_learning_rates":
            value = dict(value)
        if isinstance(full[name], float):
            value = float(value)
        with full.ignore_type():
            full[name] = value
    return full


def _check(config: ml_collections.ConfigDict, roles: Mapping[str, str], total_steps: int) -> None:
    if config.name not in NAMES:
        raise ValueError(f"unknown optimizer name {config.name!r}; allowed are {list(NAMES)}")
    if config.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {config.schedule!r}; allowed are {list(SCHEDULES)}")
    if config.name == "adam" and config.weight_decay:
        raise ValueError(f"weight_decay={config.weight_decay} has no place in adam; use adamw")
    for key in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "end_factor"):
        if config[key] < 0:
            raise ValueError(f"optimizer.{key}={config[key]} must not be negative")
    for role, rate in config.role_learning_rates.items():
        if rate < 0:
            raise ValueError(f"role_learning_rates[{role!r}]={rate} must not be negative")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps} must be at least 1")
    if _warmup(config, total_steps) > total_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} is more than the run's {total_steps} steps"
        )
    unknown = sorted(set(config.role_learning_rates) - set(roles.values()))
    if unknown:
        raise ValueError(
            f"role_learning_rates for {unknown}, but the model has only the roles "
            f"{sorted(set(roles.values()))}"
        )
    if tuple(config.no_decay) != NO_DECAY:
        for pattern in config.no_decay:
            if not any(re.fullmatch(pattern, path) for path in roles):
                raise ValueError(f"the no_decay pattern {pattern!r} matches no parameter path")


def _warmup(config: ml_collections.ConfigDict, total_steps: int) -> int:
    steps = config.warmup_steps
    return round(steps * total_steps) if 0 < steps < 1 else int(steps)


def _schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """The course of the rate with peak 1, as a function of the step."""
    warmup = _warmup(config, total_steps)
    rest = max(1, total_steps - warmup)
    if config.schedule == "constant":
        main = optax.constant_schedule(1.0)
    elif config.schedule == "linear":
        main = optax.linear_schedule(1.0, config.end_factor, rest)
    else:
        main = optax.cosine_decay_schedule(1.0, rest, alpha=config.end_factor)
    if not warmup:
        return main
    # The first step already moves: rate 1 / warmup, not 0.
    ramp = optax.linear_schedule(1.0 / warmup, 1.0, warmup - 1) if warmup > 1 else lambda step: 1.0
    return optax.join_schedules([ramp, main], [warmup])


def _standard_promotion(function: Callable) -> Callable:
    """optax mixes dtypes (integer counts, float rates), which jax's strict promotion forbids."""

    @functools.wraps(function)
    def wrapped(*args):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return wrapped


def _decay_mask(patterns: tuple[str, ...]) -> Callable:
    def mask(params):
        return _map_with_path(
            lambda path, _: not any(re.fullmatch(pattern, path) for pattern in patterns), params
        )

    return mask


def _scale_by_role(config: ml_collections.ConfigDict, roles: Mapping[str, str]):
    rates = config.role_learning_rates

    def scale(path, update):
        if path not in roles:
            raise ValueError(f"no role is known for {path}; make the optimizer for this model")
        rate = rates.get(roles[path], config.learning_rate)
        return update * jnp.asarray(rate, update.dtype)

    return optax.stateless(lambda updates, params: _map_with_path(scale, updates))


def _map_with_path(function: Callable, tree: Any) -> Any:
    leaves = [function(path, leaf) for path, leaf in state_lib.flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
