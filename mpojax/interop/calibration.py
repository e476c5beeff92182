"""What enters every matrix of a model on a calibration set, and how much its output matters.

The weights alone do not say what an error costs: an error in a direction that no input has is free.
For y = x W the squared error over inputs x is tr((W - W_hat)^T S (W - W_hat)) with the covariance
S = mean x^T x of the inputs; for a table S is diagonal, the frequency of each row.

How it is captured: a tap is put before every dense matrix, whose backward pass returns x^T x as
the "gradient" of a probe instead of a derivative. So one pass of `jax.grad` collects all matrices
of any model, through scans, shared layers and rematerialisation, without a word in the layers.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import layers, models
from mpojax.models import arrays as arrays_lib

TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """What entered one matrix.

    Attributes:
      covariance: mean over the inputs of x^T x, float64: (in_features, in_features) of a linear
        map, (rows,) of a table: the frequencies of its rows, which is the diagonal.
      count: inputs (tokens, or sentences behind the pooling) that entered.
      gradient: mean over the inputs of the squared norm of the gradient of the summed loss with
        respect to the output of the matrix; None where no loss was given.
      fingerprint: of the weights that were calibrated.
    """

    covariance: np.ndarray
    count: int
    gradient: float | None
    fingerprint: str


class Calibration:
    """Statistics of the inputs of every dense matrix of one model; made by `calibrate`.

    Attributes:
      statistics: {matrix path: `InputStatistics`}.
      num_examples: rows of the batches that were read.
    """

    def __init__(self, statistics: Mapping[str, InputStatistics], num_examples: int):
        self.statistics = dict(statistics)
        self.num_examples = num_examples

    @property
    def has_gradients(self) -> bool:
        """Whether a loss was given, so that `allocation="first_order"` is possible."""
        return all(s.gradient is not None for s in self.statistics.values())

    def covariance(self, path: str) -> np.ndarray:
        """Covariance of the inputs of one matrix, see `InputStatistics`."""
        return self.statistics[path].covariance

    def check(self, weights: Mapping[str, np.ndarray]):
        """Raises ValueError unless the calibration was made with these weights, by matrix path."""
        for path, w in weights.items():
            known = self.statistics.get(path)
            if known is None or len(known.covariance) != w.shape[0]:
                found = "nothing" if known is None else f"{len(known.covariance)} inputs"
                raise ValueError(
                    f"calibration is of another model: for {path} ({w.shape[0]} inputs) it holds "
                    f"{found}. Call interop.calibrate with the model that is compressed."
                )
            if known.fingerprint != fingerprint(w):
                raise ValueError(
                    f"calibration is of another model: the weights of {path} were others. Call "
                    "interop.calibrate again with the model that is compressed."
                )


def calibrate(
    model: models.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    loss: Callable | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Collects the covariance of the inputs of every dense matrix, in one pass over batches.

    Products are float32 within a batch and are added up in float64 on the host. Padding does not
    count. Compiles once for each shape of batch.

    Args:
      model: the dense model (matrices in MPO form already are left out).
      batches: mappings with "input_ids" (B, S) integers; "attention_mask" (B, S), nonzero at real
        tokens, default all; "token_type_ids" (B, S); "example_mask" (B,), False in rows that do not
        count; and what `loss` reads.
      loss: for first-order sensitivities: (model, batch, None) -> mean loss over the rows, or a
        pair that begins with it, such as `training.objective("classification")`. Without it no
        gradients are kept.
      progress: called with the number of batches done after each one.

    Raises:
      ValueError: no batches, a batch without input_ids or without any real token, or activations
        that are not finite; names the batch.
    """
    paths = _dense_modules(model)
    totals: dict | None = None
    examples, number = 0, 0
    for number, batch in enumerate(batches, 1):
        arrays, weights = _checked_batch(batch, number)
        found = jax.device_get(_collect(model, arrays, weights, loss))
        if not all(np.all(np.isfinite(value)) for value in jax.tree.leaves(found)):
            raise ValueError(
                f"calibration batch {number} gives activations or gradients that are not finite; "
                "check its ids against the vocabulary, its labels, and the weights."
            )
        found = jax.tree.map(lambda value: np.asarray(value, np.float64), found)
        totals = found if totals is None else jax.tree.map(np.add, totals, found)
        examples += int(weights.any(axis=1).sum())
        if progress is not None:
            progress(number)
    if totals is None:
        raise ValueError("calibration needs at least one batch; batches was empty.")
    weights = models.to_arrays(model)
    statistics = {}
    for module_path, logical in paths.items():
        for path, index in logical:
            at = (lambda value, i=index: value if i is None else value[i])
            covariance, (count, squares) = (at(totals[kind][module_path]) for kind in (0, 1))
            statistics[path] = InputStatistics(
                covariance=covariance / max(count, 1.0),
                count=round(float(count)),
                gradient=None if loss is None else float(squares / max(count, 1.0)),
                fingerprint=fingerprint(weights[models.dense_name(path)]),
            )
    _share_equal(statistics)
    return Calibration(statistics, examples)


def fingerprint(w) -> str:
    """Short hash of a matrix."""
    return hashlib.blake2b(np.ascontiguousarray(w, np.float32), digest_size=8).hexdigest()


def _checked_batch(batch, number: int):
    """(arrays on the device, float32 weights (B, S): 1 at tokens that count)."""
    if "input_ids" not in batch:
        raise ValueError(
            f"calibration batch {number} has no 'input_ids', only {sorted(batch)}; batches are "
            "mappings of token arrays (B, S)."
        )
    shape = np.shape(batch["input_ids"])
    weights = np.asarray(batch.get("attention_mask", np.ones(shape))) != 0
    if "example_mask" in batch:
        weights = weights & np.asarray(batch["example_mask"], bool)[:, None]
    if len(shape) != 2 or weights.shape != shape or not weights.any():
        raise ValueError(
            f"calibration batch {number} has input_ids {shape} and a mask {weights.shape} with "
            f"{weights.sum()} real tokens; both must be (B, S) with at least one real token."
        )
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    return arrays, weights.astype(np.float32)


def _dense_modules(model) -> dict[tuple, list[tuple[str, int | None]]]:
    """{path of a dense matrix' module: [(matrix path, index on the leading axis or None)]}."""
    found = {}
    for path, _, layer_range in models.variables(model):
        if path[-1] in ("kernel", "table") and isinstance(
            _module_at(model, path[:-1]), layers.Dense | layers.Embed
        ):
            names = arrays_lib.logical_names(path[:-1], layer_range)
            found[path[:-1]] = names
    return found


@functools.partial(jax.jit, static_argnames="loss")
def _collect(model, batch, weights, loss):
    """({module path: sum of x^T x}, {module path: (count, sum of squared output gradients)})."""
    probes, sinks = {}, {}
    for path in _dense_modules(model):
        module = _module_at(model, path)
        matrix = (module.kernel if isinstance(module, layers.Dense) else module.table)[...]
        stacked, size = matrix.shape[:-2], matrix.shape[-2]
        is_map = isinstance(module, layers.Dense)
        probes[path] = jnp.zeros((*stacked, size, size) if is_map else (*stacked, size))
        sinks[path] = jnp.zeros((*stacked, 2))

    def value(probes, sinks):
        observed = jax.tree.map(lambda leaf: leaf, model)  # a copy, for its modules are exchanged
        for path in probes:
            stacked = sinks[path].shape[:-1]
            lead = jnp.broadcast_to(weights, (*stacked, *weights.shape))
            tapped = _Tapped(_module_at(observed, path), probes[path], sinks[path], lead)
            setattr(_module_at(observed, path[:-1]), path[-1], tapped)
        if loss is None:
            tokens = {name: batch[name] for name in TOKEN_ARRAYS if name in batch}
            return jnp.sum(observed(**tokens).astype(jnp.float32))
        result = loss(observed, batch, None)
        mean = result[0] if isinstance(result, tuple) else result
        # The sum over examples: batches of any size then weigh by their examples.
        return mean * weights.shape[0]

    with jax.default_matmul_precision("highest"):
        return jax.grad(value, argnums=(0, 1))(probes, sinks)


class _Tapped(nnx.Module):
    """A dense map or table whose input and output are observed in the backward pass."""

    def __init__(self, inner, probe, sink, weights):
        self.inner = inner
        self.probe, self.sink = nnx.Variable(probe), nnx.Variable(sink)
        self.weights = nnx.Variable(weights)

    def __call__(self, x):
        probe, sink, weights = self.probe[...], self.sink[...], self.weights[...]
        if isinstance(self.inner, layers.Embed):
            # Positions come as (S,), one row for all examples.
            weights = weights if x.ndim == 2 else weights.sum(axis=0)
            return _observe_output(_observe_ids(self.inner(x), probe, x, weights), sink, weights)
        # Behind the pooling there is one vector for each example.
        weights = weights if x.ndim == 3 else weights.max(axis=1)
        return _observe_output(self.inner(_observe_input(x, probe, weights)), sink, weights)

    def __getattr__(self, name):
        # Such as the `attend` of a tied table.
        return getattr(object.__getattribute__(self, "inner"), name)


@jax.custom_vjp
def _observe_input(x, probe, weights):
    """`x` itself; the gradient of `probe` (in, in) is x^T diag(weights) x."""
    return x


def _observe_input_backward(saved, gradient):
    x, weights = saved
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return gradient, (rows * weights.reshape(-1, 1)).T @ rows, jnp.zeros_like(weights)


_observe_input.defvjp(lambda x, probe, weights: (x, (x, weights)), _observe_input_backward)


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


@jax.custom_vjp
def _observe_output(y, sink, weights):
    """`y` itself; the gradient of `sink` (2,) is (sum of weights, weighted |dL/dy|^2)."""
    return y


def _observe_output_backward(weights, gradient):
    squares = jnp.sum(gradient.astype(jnp.float32) ** 2, axis=-1)
    squares = jnp.where(weights > 0, squares, 0.0)
    sums = jnp.stack([jnp.sum(weights), jnp.sum(squares)])
    return gradient, sums, jnp.zeros_like(weights)


_observe_output.defvjp(lambda y, sink, weights: (y, weights), _observe_output_backward)


def _module_at(model, path: tuple):
    for part in path:
        model = model[part] if isinstance(part, int) else getattr(model, part)
    return model


def _share_equal(statistics: dict[str, InputStatistics]):
    """Lets matrices that read the same input (query, key, value) hold one covariance."""
    seen: dict[bytes, np.ndarray] = {}
    for path, entry in statistics.items():
        key = hashlib.blake2b(entry.covariance, digest_size=16).digest()
        shared = seen.setdefault(key, entry.covariance)
        statistics[path] = dataclasses.replace(entry, covariance=shared)
