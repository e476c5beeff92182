"""Learning-rate schedules with peak 1: over steps, or over a budget of seconds.

Over seconds, the position in the schedule is the spent fraction of the budget (0 at the start, 1
at the end). It comes from a clock outside of the compiled step, see `training.TimeBudget`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

NAMES = ("constant", "linear", "cosine")
UNITS = ("steps", "seconds")


def warmup_length(steps: float, total_steps: int) -> int:
    """Steps of the warm-up; a number below 1 is a fraction of all steps."""
    return round(steps * total_steps) if 0 < steps < 1 else int(steps)


def by_step(name: str, warmup_steps: float, end_factor: float, total_steps: int) -> optax.Schedule:
    """(finished steps) -> factor of the peak rate in the next one.

    Args:
      name: one of `NAMES`: what follows the warm-up.
      warmup_steps: of linear growth; below 1: a fraction of all steps.
      end_factor: factor at the end, of linear and cosine.
      total_steps: where the schedule ends.
    """
    warmup = warmup_length(warmup_steps, total_steps)
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


def by_share(name: str, warmup: float, end_factor: float) -> Callable[[Any], jax.Array]:
    """(spent fraction of the budget) -> factor of the peak rate; `warmup` is a share, too."""

    def factor(share):
        share = jnp.clip(jnp.asarray(share, jnp.float32), 0.0, 1.0)
        fall = jnp.clip((share - warmup) / (1.0 - warmup), 0.0, 1.0)
        if name == "constant":
            main = jnp.ones_like(share)
        elif name == "linear":
            main = 1.0 + (end_factor - 1.0) * fall
        else:
            main = end_factor + (1.0 - end_factor) * 0.5 * (1.0 + jnp.cos(jnp.pi * fall))
        return jnp.where(share < warmup, share / warmup, main) if warmup else main

    return factor


def scale_by_share(factor: Callable) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by -factor(share); `share` is an extra argument of `update`."""

    def update(updates, state, params=None, *, share, **unused):
        scale = -factor(share)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
