"""Training steps of a benchmark: forward, backward, AdamW, buffers donated."""

import functools
from collections.abc import Callable

import jax
import optax


def make(parameters, loss: Callable, x) -> Callable:
    """A function without arguments that takes the next step; its state stays where it is.

    Args:
      parameters: pytree of float arrays; donated.
      loss: (parameters, x) -> scalar.
      x: the batch of every step.
    """
    optimizer = optax.adamw(1e-5)

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
