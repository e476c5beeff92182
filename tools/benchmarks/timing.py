"""Interleaved timing: every candidate once per round in shuffled order, medians over the rounds.

Also the training step that several benchmarks measure.
"""

import datetime
import functools
import platform
import random
import statistics
import time
from collections.abc import Callable

import jax
import optax
from absl import logging

from mpojax import devices


def interleaved(
    candidates, rounds: int = 7, seconds_each: float = 0.05, prune: float | None = None
) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    Args:
      candidates: name -> function without arguments; its result is waited for.
      rounds: how often each candidate is measured; noise hits all of them alike.
      seconds_each: calls are repeated within a measurement to take about this long.
      prune: candidates whose best of four first runs took this many times that of the
        fastest keep that time.
    """
    first = {}
    for name, function in candidates.items():
        jax.block_until_ready(function())  # compiles
        first[name] = min(_once(function, 1) for _ in range(4))
    limit = prune * min(first.values()) if prune else float("inf")
    repeats = {
        name: max(1, min(500, int(seconds_each / max(t, 1e-6)))) for name, t in first.items()
    }
    samples = {name: [] if first[name] <= limit else [first[name]] for name in candidates}
    order = [name for name in candidates if not samples[name]]
    # A fixed order of shuffles: runs differ by their noise alone.
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            samples[name].append(_once(candidates[name], repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _once(function, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def training_steps(parameters, loss: Callable, x) -> Callable:
    """A function without arguments that takes the next training step; its state stays in it.

    Forward, backward, AdamW, buffers donated.

    Args:
      parameters: pytree of float arrays; donated.
      loss: (parameters, x) -> scalar.
      x: the batch of every step.
    """
    optimizer = optax.adamw(1e-5)

    # Parameters and optimizer state are updated in place, as in `mpojax.training`.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, state, x):
        value, gradients = jax.value_and_grad(loss)(parameters, x)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    current = [parameters, optimizer.init(parameters)]

    def advance():
        *current[:], value = step(*current, x)
        return value

    return advance


def machine() -> str:
    """One line that says where and when a figure was measured."""
    logging.set_verbosity(logging.WARNING)  # of the devices that jax looks for in vain
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    cores = devices.num_cores()
    return (
        f"{datetime.date.today()}, {platform.machine()} {_processor()}, {cores} cores, "
        f"{jax.default_backend()} ({kinds}), jax {jax.__version__}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = (line for line in lines if line.startswith("model name"))
            return next(names).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor()
