"""Optimizers from a config.

The keys, all optional but `name` and `learning_rate`, are those of `default_config()`. A learning
rate per role (`role_learning_rates`), such as one for auxiliary cores, follows the same schedule as
the base rate. LAMB for large batches, for example:

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

from mpojax import checks, mpo, nn
from mpojax.training import state as state_lib
from mpojax.training import transforms

NO_DECAY = (r"(.*/)?(bias|scale)", r".*norm.*")
# Looked up by row, or of the output: their gradients are no matrices that Muon is made for.
NO_MUON = (r"(.*/)?table", r"(.*/)?(head|classifier)/.*")

_RATE, _DECAY_RATE = checks.number(0), checks.number(0, below=1)
_PATTERNS = checks.sequence(checks.expression())
_FIELDS = {
    "name": checks.one_of("adafactor", "adam", "adamw", "lamb", "muon", "sgd"),
    "schedule": checks.one_of("constant", "linear", "cosine"),
    **dict.fromkeys(("learning_rate", "warmup_steps", "end_factor", "muon_rms"), _RATE),
    **dict.fromkeys(("epsilon", "weight_decay", "clip_norm"), _RATE),
    **dict.fromkeys(("beta1", "beta2", "muon_momentum"), _DECAY_RATE),
    **dict.fromkeys(("no_decay", "decay_to_start", "no_trust_ratio", "muon_excluded"), _PATTERNS),
    "role_learning_rates": checks.mapping(_RATE),
    "muon_roles": checks.sequence(checks.one_of(*nn.ROLES)),
    "trust_bounds": checks.Allowed(
        "(least, largest) with 0 <= least <= largest, such as (0.01, 0.3), or () for none",
        lambda bounds: not len(bounds) or (len(bounds) == 2 and 0 <= bounds[0] <= bounds[1]),
    ),
}


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default value."""
    return ml_collections.ConfigDict(
        {
            "name": "adamw",  # or adam, adafactor, lamb, muon, sgd
            "learning_rate": 1e-4,  # peak
            "role_learning_rates": {},  # {role: peak}, e.g. {"auxiliary": 1e-3}
            "schedule": "linear",  # after the warm-up: constant, or falling to end_factor * peak
            "warmup_steps": 0.0,  # below 1: a fraction of all steps
            "end_factor": 0.0,  # of the peak, reached when the run ends
            "beta1": 0.9,  # decay of the first moment; sgd: momentum
            "beta2": 0.999,  # decay of the second moment
            "epsilon": 1e-8,  # added to the root of the second moment
            "bias_correction": True,  # of the moments of adam, adamw, lamb, and of muon's adam
            "trust_bounds": (),  # lamb: (least, largest) trust ratio; () = unbounded
            "no_trust_ratio": (),  # lamb: patterns of paths that keep a ratio of 1
            "muon_roles": ("other",),  # whose matrices are orthogonalised; the rest goes to adam
            "muon_excluded": NO_MUON,  # patterns of paths that go to adam all the same
            "muon_momentum": 0.95,  # Nesterov momentum, which is orthogonalised
            "muon_rms": 0.2,  # of the update's entries; 0.2 fits adam's learning rates
            "weight_decay": 0.0,  # decoupled
            "no_decay": NO_DECAY,  # patterns of paths without decay (re.fullmatch)
            "decay_to_start": (),  # patterns of paths that decay to their start instead of zero
            "clip_norm": 1.0,  # of the whole gradient; 0 = off
        }
    )


class Optimizer(NamedTuple):
    """An optax transformation that also knows its learning rate.

    Attributes:
      schedule: finished updates -> learning rate of the next one.
      learning_rate: optimizer state -> the same, by the state's own count.
      metrics: optimizer state -> {name: scalar} of the last update.
    """

    init: Callable
    update: Callable
    schedule: Callable[[Any], Any]
    learning_rate: Callable[[Any], Any]
    metrics: Callable[[Any], dict] = lambda state: {}


def make_optimizer(
    config: Mapping[str, Any],
    roles: Mapping[str, str],
    total_steps: int,
    chains: Mapping[str, mpo.MPOShape] | None = None,
    *,
    adam: Callable[..., optax.GradientTransformation] = transforms.scale_by_adam,
) -> Optimizer:
    """Builds the optimizer of a config.

    Args:
      config: see `default_config`; missing keys take their defaults.
      roles: {parameter path: role}, from `training.roles(model)`.
      total_steps: where the schedule ends; 0 for a state that is only evaluated.
      chains: {path of a central core: shape of its chain}, from `models.central_cores(model)`: lets
        Muon see a central core as a matrix.
      adam: (beta1, beta2, epsilon, bias_correction) -> Adam's direction.

    Raises:
      ValueError: an unknown key, name, schedule or role, or a value out of range; lists what is
        allowed.

    >>> optimizer = make_optimizer({"learning_rate": 0.1, "warmup_steps": 2}, {"w": "other"}, 10)
    >>> [round(float(optimizer.schedule(step)), 4) for step in (0, 1, 9)]
    [0.05, 0.1, 0.0125]
    """
    config = _complete(config)
    _check(config, roles, total_steps)
    # The order counts: the gradient is clipped before the moments, decay is a part of what LAMB's
    # ratio is taken of, rates come last and so apply to the decay, too.
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += _directions(config, roles, chains, adam)
    if config.weight_decay:
        patterns = (tuple(config.no_decay), tuple(config.decay_to_start))
        parts += transforms.decays(config.weight_decay, *patterns)
    if config.name == "lamb":
        bounds = tuple(config.trust_bounds) or None
        parts += [transforms.scale_by_trust_ratio(bounds, config.no_trust_ratio)]
    parts += [_scale_by_role(config, roles)]
    factor = _schedule(config.schedule, config.warmup_steps, config.end_factor, total_steps)
    chain = optax.chain(*parts, optax.scale_by_schedule(lambda step: -factor(step)))
    schedule = _standard_promotion(lambda step: config.learning_rate * factor(step))
    return Optimizer(
        _standard_promotion(chain.init),
        _standard_promotion(chain.update),
        schedule,
        lambda held: schedule(held[-1].count),  # of scale_by_schedule, which counts the updates
    )


def _directions(config: ml_collections.ConfigDict, roles: Mapping[str, str], chains, adam) -> list:
    """Transformations of gradients into directions."""
    if config.name == "sgd":
        return [optax.trace(config.beta1)] if config.beta1 else []
    if config.name == "adafactor":
        return transforms.scale_by_adafactor()
    adam = adam(config.beta1, config.beta2, config.epsilon, config.bias_correction)
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


def _schedule(name: str, warmup: float, end_factor: float, total_steps: int) -> optax.Schedule:
    """Finished steps -> factor of the peak rate in the next one."""
    warmup = _warmup_length(warmup, total_steps)
    rest = max(1, total_steps - warmup)
    if name == "constant":
        main = optax.constant_schedule(1.0)
    elif name == "linear":
        main = optax.linear_schedule(1.0, end_factor, rest)
    else:
        main = optax.cosine_decay_schedule(1.0, rest, alpha=end_factor)
    if not warmup:
        return main
    # The first step already moves: rate 1 / warmup, not 0.
    ramp = optax.linear_schedule(1.0 / warmup, 1.0, warmup - 1) if warmup > 1 else lambda step: 1.0
    return optax.join_schedules([ramp, main], [warmup])


def _warmup_length(steps: float, total_steps: int) -> int:
    """Steps of the warm-up; a number below 1 is a fraction of all steps."""
    return round(steps * total_steps) if 0 < steps < 1 else int(steps)


def _complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    full = default_config()
    checks.check_names(config, full, "optimizer")
    given = dict(config)
    if "role_learning_rates" in given:
        given["role_learning_rates"] = dict(given["role_learning_rates"])
    checks.check(given, _FIELDS, "optimizer")
    with full.ignore_type():
        for name, value in given.items():
            full[name] = float(value) if isinstance(full[name], float) else value
    return full


def _check(config: ml_collections.ConfigDict, roles: Mapping[str, str], total_steps: int) -> None:
    if config.name == "adam" and config.weight_decay:
        raise ValueError(f"weight_decay={config.weight_decay} has no place in adam; use adamw")
    checks.check({"total_steps": total_steps}, {"total_steps": checks.integer(0)})
    if 0 < total_steps < _warmup_length(config.warmup_steps, total_steps):
        raise ValueError(
            f"warmup_steps={config.warmup_steps} is more than the run's {total_steps} steps"
        )
    checks.check_names(config.role_learning_rates, set(roles.values()), "role_learning_rates")
    for key, default in default_config().items():
        if _FIELDS.get(key) is _PATTERNS and tuple(config[key]) != default:
            for pattern in config[key]:
                if not any(re.fullmatch(pattern, path) for path in roles):
                    raise ValueError(f"the {key} pattern {pattern!r} matches no parameter path")


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
