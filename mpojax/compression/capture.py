"""Capture of the activations that enter and leave the matrices of a model, by a custom VJP.

A tap is put before and behind every dense matrix; its backward pass returns x^T x as the "gradient"
of a probe instead of a derivative. So one pass of `jax.grad` collects the statistics of all
matrices of any model, through scans, shared layers and rematerialisation, without a word in the
layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import models, nn
from mpojax.models import arrays as arrays_lib


def dense_modules(model) -> dict[tuple, list[tuple[str, int | None]]]:
    """{path of a dense matrix' module: [(matrix path, index on the leading axis or None)]}."""
    found = {}
    for path, _, layer_range in models.variables(model):
        if path[-1] in ("kernel", "table") and isinstance(
            _module_at(model, path[:-1]), nn.Dense | nn.Embed
        ):
            names = arrays_lib.logical_names(path[:-1], layer_range)
            found[path[:-1]] = names
    return found


@functools.partial(jax.jit, static_argnames="loss")
def collect(model, batch, weights, loss):
    """Sums over one batch for every dense matrix, by path of its module.

    Args:
      model: any model, dense in part at least.
      batch: token arrays (B, S), and what `loss` reads.
      weights: (B, S) float32, 1 at tokens that count, else 0: of the sources and the targets (B, T)
        of an encoder-decoder, which must differ in length, else one alone.
      loss: (model, batch, None) -> mean loss or a pair that begins with it; None for no gradients.

    Returns:
      {path: x^T x (in, in), of a table the counts of its rows}, and {path: (2,): inputs that count,
      squared norm of the gradients of the summed loss at their outputs}; of stacked modules with a
      leading axis.
    """
    probes, sinks = {}, {}
    for path in dense_modules(model):
        module = _module_at(model, path)
        matrix = (module.kernel if isinstance(module, nn.Dense) else module.table)[...]
        stacked, size = matrix.shape[:-2], matrix.shape[-2]
        is_map = isinstance(module, nn.Dense)
        probes[path] = jnp.zeros((*stacked, size, size) if is_map else (*stacked, size))
        sinks[path] = jnp.zeros((*stacked, 2))

    def value(probes, sinks):
        observed = jax.tree.map(lambda leaf: leaf, model)  # a copy, for its modules are exchanged
        for path in probes:
            stacked = sinks[path].shape[:-1]
            lead = [jnp.broadcast_to(each, (*stacked, *each.shape)) for each in weights]
            inner, passing = _module_at(observed, path), loss is not None
            tapped = _Tapped(inner, probes[path], sinks[path], lead, passing)
            setattr(_module_at(observed, path[:-1]), path[-1], tapped)
        if loss is None:
            inputs = (batch.get(name) for name in model.batch_inputs)
            return jnp.sum(observed(*inputs).astype(jnp.float32))
        result = loss(observed, batch, None)
        mean = result[0] if isinstance(result, tuple) else result
        # The sum over examples: batches of any size then weigh by their examples.
        return mean * weights[0].shape[0]

    with jax.default_matmul_precision("highest"):
        return jax.grad(value, argnums=(0, 1))(probes, sinks)


class _Tapped(nnx.Module):
    """A dense map or table whose input and output are observed in the backward pass."""

    def __init__(self, inner, probe, sink, weights, passing: bool):
        self.inner, self.passing = inner, passing
        self.probe, self.sink = nnx.Variable(probe), nnx.Variable(sink)
        self.weights = nnx.List([nnx.Variable(each) for each in weights])

    def __call__(self, x):
        probe, sink = self.probe[...], self.sink[...]
        if isinstance(self.inner, nn.Embed):
            weights = self._weights(x.shape[-1])
            if x.shape != weights.shape:
                # Positions come as (S,) or (1, S), one row for all examples.
                weights = weights.sum(axis=0).reshape(x.shape)
            rows = _observe_ids(self.inner(x), probe, x, weights)
            return _observe_output(rows, sink, weights, self.passing)
        # Behind the pooling there is one vector for each example.
        is_pooled = x.ndim == 2
        weights = self.weights[0][...].max(axis=1) if is_pooled else self._weights(x.shape[1])
        y = self.inner(_observe_input(x, probe, weights, self.passing))
        return _observe_output(y, sink, weights, self.passing)

    def _weights(self, length: int):
        """Those of the texts that are so long: sources or targets, which differ in length."""
        return next(w[...] for w in self.weights if w.shape[1] == length)

    def __getattr__(self, name):
        # Such as the `attend` of a tied table.
        return getattr(object.__getattribute__(self, "inner"), name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _observe_input(x, probe, weights, passing):
    """`x` itself; the gradient of `probe` (in, in) is x^T diag(weights) x.

    Without `passing` the gradient of `x` is zero: then nothing else is computed backwards.
    """
    return x


def _observe_input_backward(passing, saved, gradient):
    x, weights = saved
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    gradient = gradient if passing else jnp.zeros_like(gradient)
    return gradient, (rows * weights.reshape(-1, 1)).T @ rows, jnp.zeros_like(weights)


_observe_input.defvjp(lambda x, probe, weights, passing: (x, (x, weights)), _observe_input_backward)


@jax.custom_vjp
def _observe_ids(rows, probe, ids, weights):
    """`rows` itself; the gradient of `probe` (num,) counts the weights of each id."""
    return rows


def _observe_ids_backward(saved, gradient):
    probe, ids, weights = saved
    counts = jnp.zeros_like(probe).at[ids.reshape(-1)].add(weights.reshape(-1))
    return gradient, counts, None, jnp.zeros_like(weights)


_observe_ids.defvjp(
    lambda rows, probe, ids, weights: (rows, (probe, ids, weights)), _observe_ids_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _observe_output(y, sink, weights, passing):
    """`y` itself; the gradient of `sink` (2,) is (sum of weights, weighted |dL/dy|^2).

    Without `passing` the second number and the gradient of `y` are zero.
    """
    return y


def _observe_output_backward(passing, weights, gradient):
    count = jnp.sum(weights)
    if not passing:
        return jnp.zeros_like(gradient), jnp.stack([count, 0.0]), jnp.zeros_like(weights)
    squares = jnp.sum(gradient.astype(jnp.float32) ** 2, axis=-1)
    squares = jnp.where(weights > 0, squares, 0.0)
    return gradient, jnp.stack([count, jnp.sum(squares)]), jnp.zeros_like(weights)


_observe_output.defvjp(lambda y, sink, weights, passing: (y, weights), _observe_output_backward)


def _module_at(model, path: tuple):
    for part in path:
        model = model[part] if isinstance(part, int) else getattr(model, part)
    return model
