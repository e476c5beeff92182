"""Capture of the activations that enter and leave the matrices of a model, by a custom VJP.

Before and behind every dense matrix stands an identity whose backward pass returns x^T x as the
"gradient" of a probe instead of a derivative. So one pass of `jax.grad` collects the statistics of
all matrices of any model, through scans, shared layers and rematerialisation, without a word in the
layers.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax.compression import layers


@functools.partial(jax.jit, static_argnames=("locations", "call", "loss", "curvature"))
def collect(definition, state, batch, weights, *, locations, call, loss, curvature=False):
    """Sums over one batch for every dense matrix, by the location of its layer.

    Args:
      definition, state: of the model, from `nnx.split`.
      batch: arrays that `call` and `loss` read.
      weights: (B, S) or (B,) float32 of each kind of inputs, 1 at those that count, else 0; of the
        sources and the targets of an encoder-decoder, which differ in length.
      locations: of the dense layers.
      call: (model, batch) -> an output that depends on all of them.
      loss: (model, batch, None) -> mean loss or a pair that begins with it; None for no gradients.
      curvature: whether g^T g of the gradients g at the outputs of linear maps is collected; `loss`
        is then (model, batch) -> the sum over the inputs.

    Returns:
      {location: x^T x (in, in), of a table the counts of its rows}, {location: (2,): inputs
      that count, squared norm of the gradients of the summed loss at their outputs}, and
      {location: g^T g (out, out), or (0, 0)}; of stacked layers with a leading axis.
    """
    model = nnx.merge(definition, state)
    nodes = {tuple(path): node for path, node in nnx.iter_graph(model)}
    probes, output_probes, moments = {}, {}, {}
    for location in locations:
        *lead, size, columns = layers.matrix(nodes[location]).shape
        is_table = layers.is_table(nodes[location])
        probes[location] = jnp.zeros((*lead, size) if is_table else (*lead, size, size))
        output_probes[location] = jnp.zeros((*lead, 2))
        columns = columns if curvature and not is_table else 0
        moments[location] = jnp.zeros((*lead, columns, columns))

    def value(probes, output_probes, moments):
        def observed(location, node):
            location = tuple(location)
            if location not in probes:
                return node
            lead = output_probes[location].shape[:-1]
            own = [jnp.broadcast_to(each, (*lead, *each.shape)) for each in weights]
            outputs = output_probes[location], moments[location]
            return _Observed(node, probes[location], outputs, own, loss is not None)

        # Copied, so that counters and statistics of the module may change in here.
        model = nnx.recursive_map(observed, nnx.merge(definition, state, copy=True))
        if loss is None:
            return jnp.sum(call(model, batch).astype(jnp.float32))
        if curvature:
            return loss(model, batch)
        result = loss(model, batch, None)
        mean = result[0] if isinstance(result, tuple) else result
        # The sum over examples: batches of any size then weigh by their examples.
        return mean * max(len(array) for array in jax.tree.leaves(weights) or batch.values())

    # The probes are zeros that change no value: their "gradients" are what the rules of
    # _observe_* put there, sums over all calls of a layer and all steps of a scan.
    with jax.default_matmul_precision("highest"):
        return jax.grad(value, argnums=(0, 1, 2))(probes, output_probes, moments)


class _Observed(nnx.Module):
    """A dense layer whose input and output are observed in the backward pass."""

    def __init__(self, inner, probe, output_probes, weights, passing: bool):
        self.inner, self.passing = inner, passing
        self.probe = nnx.Variable(probe)
        self.output_probes = nnx.List([nnx.Variable(each) for each in output_probes])
        self.weights = nnx.List([nnx.Variable(each) for each in weights])

    def __call__(self, x, **options):
        probe, output_probes = self.probe[...], tuple(each[...] for each in self.output_probes)
        if layers.is_table(self.inner):
            weights = self._weights(x.shape, is_table=True)
            rows = _observe_ids(self.inner(x), probe, x, weights)
            return _observe_output(rows, *output_probes, weights, self.passing)
        lead = x.shape[: x.ndim - layers.num_input_axes(self.inner)]
        weights = self._weights(lead)
        # All axes but those that enter the matrix are tokens.
        rows = _observe_input(x.reshape(*lead, -1), probe, weights, self.passing)
        y = self.inner(rows.reshape(x.shape), **options)
        flat = _observe_output(y.reshape(*lead, -1), *output_probes, weights, self.passing)
        return flat.reshape(y.shape)

    def _weights(self, shape: tuple[int, ...], is_table: bool = False) -> jax.Array:
        """Those of inputs of this shape; ones where nothing is known about them."""
        weights = [each[...] for each in self.weights]
        for each in weights:
            if each.shape == shape:
                return each
        for each in weights:
            if is_table and math.prod(shape) == math.prod(each.shape[1:]):
                return each.sum(axis=0).reshape(shape)  # positions: one row for all examples
            if each.shape[:1] == shape[:1] and 1 in (each.ndim, len(shape)):
                of_examples = each.reshape(shape[0], -1).max(axis=1)  # behind the pooling
                return jnp.broadcast_to(of_examples.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        return jnp.ones(shape)

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
    # A zero here is known when the program is compiled: XLA drops the backward pass behind it.
    gradient = gradient if passing else jnp.zeros_like(gradient)
    return gradient, (rows * weights.reshape(-1, 1)).T @ rows, jnp.zeros_like(weights)


_observe_input.defvjp(lambda x, probe, weights, passing: (x, (x, weights)), _observe_input_backward)


@jax.custom_vjp
def _observe_ids(rows, probe, ids, weights):
    """`rows` itself; the gradient of `probe` (num,) counts the weights of each id."""
    return rows


def _observe_ids_backward(saved, gradient):
    probe, ids, weights = saved
    # x^T diag(w) x of one-hot rows x is diagonal: one count for each id.
    counts = jnp.zeros_like(probe).at[ids.reshape(-1)].add(weights.reshape(-1))
    return gradient, counts, None, jnp.zeros_like(weights)


_observe_ids.defvjp(
    lambda rows, probe, ids, weights: (rows, (probe, ids, weights)), _observe_ids_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _observe_output(y, output_probe, moments, weights, passing):
    """`y` itself; the gradient of `output_probe` (2,) is (sum of weights, weighted |dL/dy|^2), that
    of `moments` (out, out), where it has a size, the sum over inputs of dL/dy^T dL/dy.

    Without `passing` all but the first number is zero, the gradient of `y` as well.
    """
    return y


def _observe_output_forward(y, output_probe, moments, weights, passing):
    return y, (weights, moments)


def _observe_output_backward(passing, saved, gradient):
    weights, moments = saved
    count = jnp.sum(weights)
    if not passing:
        numbers = jnp.stack([count, 0.0])
        return jnp.zeros_like(gradient), numbers, moments, jnp.zeros_like(weights)
    rows = gradient.reshape(-1, gradient.shape[-1]).astype(jnp.float32)
    # Padding has gradients, too, where other tokens attend to it or the loss is a mean.
    rows = jnp.where(weights.reshape(-1, 1) > 0, rows, 0.0)
    if moments.size:
        moments = rows.T @ rows
    numbers = jnp.stack([count, jnp.sum(jnp.square(rows))])
    return gradient, numbers, moments, jnp.zeros_like(weights)


_observe_output.defvjp(_observe_output_forward, _observe_output_backward)
