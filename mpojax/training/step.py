"""The whole training step as one compiled program."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import nnx

from mpojax import checks
from mpojax.training import progress
from mpojax.training import state as state_lib

# (model, batch, key) -> (scalar loss, {name: scalar})
LossFunction = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


class TrainStep:
    """`step(state, batch) -> (state, metrics)`, compiled once per set of shapes.

    The state's buffers are donated: use only the returned state. Gradients are taken over
    `state.trainable` alone, so that the compiler drops the gradients of everything frozen. The
    metric `gradient_norm` is of all of them as computed, before clipping and masks.

    Args:
      loss_fn: (model, batch, key) -> (loss, metrics): the mean loss over the batch.
      optimizer: optax transformation.
      grad_accum_steps: number of micro-batches whose gradients are averaged in one step. Where the
        positions of a batch count by arrays `<name>_weights`, micro-batches may differ in how many
        count: the loss then gets `<name>_weights_total` too, the sum over an average micro-batch.
        Divided by that, micro-batches add up to the loss of the whole batch.
      precompute: optional differentiable (model) -> anything, done once per step however many
        micro-batches there are, e.g. the rebuilding of dense weights from cores; `loss_fn` then
        gets its result as `model`. What it returns must be a pytree whose floating leaves may all
        be differentiated.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        optimizer: optax.GradientTransformation,
        *,
        grad_accum_steps: int = 1,
        precompute: Callable[[nnx.Module], Any] | None = None,
    ):
        checks.check_value("grad_accum_steps", grad_accum_steps, checks.integer(1))
        self.loss_fn, self.optimizer = loss_fn, optimizer
        self.grad_accum_steps, self.precompute = grad_accum_steps, precompute
        self.traces = 0  # how often the step was traced, thus compiled
        self.compile_seconds = 0.0  # time of calls that traced, first execution included
        self._compiled = None
        self._waiting = contextlib.ExitStack()  # tracing enters what tells that it is compiled

    def __call__(self, state: state_lib.TrainState, batch: dict) -> tuple:
        """One step."""
        if self._compiled is None:
            self._compiled = self._jitted(state)
        before, start = self.traces, time.perf_counter()
        with self._waiting:
            result = self._compiled(state, batch)
            if self.traces == before:
                return result
            jax.block_until_ready(result)
        seconds = time.perf_counter() - start
        self.compile_seconds += seconds
        logging.info("compiled the training step in %.1f s, its first execution included", seconds)
        return result

    def trace(self, state: state_lib.TrainState, batch: dict) -> jax.stages.Traced:
        """The step for abstract arguments with shardings; `.lower().compile()` compiles it."""
        with self._waiting:
            return self._jitted(state).trace(state, batch)

    def _jitted(self, state: state_lib.TrainState) -> Callable:
        # Output shardings equal the input's, else the second step would compile again.
        shardings = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(self._step, donate_argnums=0, out_shardings=(shardings, None))

    def reset(self) -> None:
        """Forgets the compiled program: needed when the state's shapes or shardings change."""
        self._compiled = None

    def _step(self, state: state_lib.TrainState, batch: dict) -> tuple:
        self.traces += 1
        # While it is traced: once a compilation.
        logging.info("compiling the training step ...")
        self._waiting.enter_context(progress.waiting("compiling the training step"))
        gradients, loss, metrics = self._gradients(state, batch)
        updates, optimizer_state = self.optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        metrics = dict(metrics) | {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        if hasattr(self.optimizer, "learning_rate"):
            metrics["learning_rate"] = jnp.asarray(
                self.optimizer.learning_rate(state.optimizer), jnp.float32
            )
        if hasattr(self.optimizer, "metrics"):
            metrics |= self.optimizer.metrics(optimizer_state)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            optimizer=optimizer_state,
        )
        return new_state, metrics

    def _gradients(self, state: state_lib.TrainState, batch: dict) -> tuple:
        """(gradients of trainable, mean loss, mean metrics)."""
        key = state.step_key()
        build = state.definition.merge if self.precompute is None else self._precomputed(state)
        if self.grad_accum_steps == 1 and self.precompute is None:

            def loss_of(trainable):
                return self.loss_fn(build(trainable, state.frozen), batch, key)

            (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
            return gradients, loss, metrics
        if self.precompute is None:
            variables, pull_back = state.trainable, lambda cotangents: (cotangents,)
        else:
            # dL/dcores = (dW/dcores)^T sum of dL/dW over micro-batches: each pulled back once.
            variables, pull_back = jax.vjp(lambda t: build(t, state.frozen), state.trainable)
        gradients, loss, metrics = self._accumulated(state, variables, batch, key)
        return pull_back(gradients)[0], loss, metrics

    def _precomputed(self, state: state_lib.TrainState) -> Callable:
        return lambda trainable, frozen: self.precompute(state.definition.merge(trainable, frozen))

    def _accumulated(self, state, variables, batch: dict, key: jax.Array) -> tuple:
        """Averages over micro-batches; rows are dealt out so that each device keeps its own."""
        count = self.grad_accum_steps
        for name, array in batch.items():
            if array.shape[0] % count:
                raise ValueError(
                    f"{name}: {array.shape[0]} rows cannot be split into "
                    f"grad_accum_steps={count} parts"
                )
        # Row r goes to part r mod count: each part has rows of every device, and none moves.
        parts = {n: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1) for n, a in batch.items()}
        # A mean over weighted positions needs the weight of the whole batch, not of its part.
        totals = {
            f"{name}_total": jnp.sum(array) / jnp.asarray(count, array.dtype)
            for name, array in batch.items()
            if name.endswith("_weights")
        }

        def loss_of(variables, part, part_key):
            model = variables
            if self.precompute is None:
                model = state.definition.merge(variables, state.frozen)
            return self.loss_fn(model, part | totals, part_key)

        def one(total, inputs):
            index, part = inputs
            value, gradients = jax.value_and_grad(loss_of, has_aux=True)(
                variables, part, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, total, (gradients, value)), None

        first = jax.tree.map(lambda a: a[0], parts)
        # The shapes of loss and metrics, for the zeros that the scan starts from.
        value = jax.eval_shape(loss_of, variables, first, key)
        zeros = jax.tree.map(_zeros, (variables, value))
        total, _ = jax.lax.scan(one, zeros, (jnp.arange(count), parts))
        gradients, (loss, metrics) = jax.tree.map(lambda x: x / jnp.asarray(count, x.dtype), total)
        return gradients, loss, metrics


def _zeros(x: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"a metric, or a leaf that precompute returned, has dtype {x.dtype}; averaging over "
            "micro-batches allows floating ones only"
        )
    return jnp.zeros(x.shape, x.dtype)
