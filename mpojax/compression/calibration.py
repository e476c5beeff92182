"""Statistics of the inputs of every matrix on a calibration set, and the weight of its output.

The weights alone do not say what an error costs: an error in a direction that no input has is free.
For y = x W the squared error over inputs x is tr((W - W_hat)^T S (W - W_hat)) with the covariance
S = mean x^T x of the inputs; for a table S is diagonal, the frequency of each row.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import files, models, mpo
from mpojax.compression import capture, layer_statistics, layerwise
from mpojax.compression.matrices import Matrices, fingerprint, matrices_of

_NO_BATCHES = "calibration needs at least one batch; batches was empty."
# Adds the mean frequency to every row of a table, as add-one smoothing does with counts.
TABLE_RIDGE = 1.0


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """Statistics of the inputs of one matrix.

    Attributes:
      covariance: mean over the inputs of x^T x, float64: (in_features, in_features) of a linear
        map, (rows,) of a table: the frequencies of its rows, which is the diagonal. In a folder
        float32, and read each time that it is asked for.
      count: inputs (tokens, or sentences behind the pooling) that entered.
      gradient: mean over the inputs of the squared norm of the gradient of the summed loss with
        respect to the output of the matrix; None where no loss was given.
      fingerprint: of the weights that were calibrated.
      curvature: mean over the inputs of g^T g (out_features, out_features), float32, with g the
        gradient of the summed loss at the output of the matrix: E of the weights then raises the
        loss of each token by about tr(G E^T S E) / 2 nats. None where it was not collected.
      reads: path of the first matrix that reads the same input, and so has the same covariance.
      loads: of the map of experts, whose covariance is (experts, in, in), sums over the tokens of
        each over `count`: how many of all tokens each gets, as a share.
    """

    covariance: "np.ndarray | files.StoredArray"
    count: int
    gradient: float | None
    fingerprint: str
    curvature: "np.ndarray | files.StoredArray | None" = None
    reads: str = ""
    loads: np.ndarray | None = None


class Calibration:
    """Statistics of the inputs of every dense matrix of one model; made by `calibrate`.

    Attributes:
      statistics: {matrix path: `InputStatistics`}.
      num_examples: rows of the batches that were read.
    """

    def __init__(self, statistics: Mapping[str, InputStatistics], num_examples: int):
        self.statistics = dict(statistics)
        self.num_examples = num_examples
        self._metrics: dict[tuple[str, float], mpo.Metric] = {}

    @property
    def has_gradients(self) -> bool:
        """True if a loss was given, so that `allocation="first_order"` is possible."""
        return all(s.gradient is not None for s in self.statistics.values())

    def covariance(self, path: str) -> np.ndarray:
        """Covariance of the inputs of one matrix, see `InputStatistics`."""
        return np.asarray(self.statistics[path].covariance)

    def default_ridge(self, path: str) -> float:
        """0.001, and 1 for a table, whose unseen rows else would count nothing."""
        is_table = self.statistics[path].covariance.ndim == 1
        return TABLE_RIDGE if is_table else mpo.DEFAULT_RIDGE

    def metric(self, path: str, ridge: float | None = None) -> mpo.Metric:
        """Norm of the outputs, with a ridge as fits use it: see `mpojax.mpo.regularized`.

        Matrices that read the same input share one, and with it one factorisation.

        Raises:
          ValueError: no input has entered the matrix; fewer inputs than features, unless a ridge is
          given; or the covariance is not usable, see there.
        """
        stored, count = self.statistics[path].covariance, self.statistics[path].count
        if ridge is None and stored.ndim == 2 and 0 < count < len(stored):
            raise ValueError(
                f"{path}: {count} calibration inputs are too few for a covariance of "
                f"{len(stored)} features. Calibrate on more text, or accept it by giving the "
                f"rule a ridge of its own, such as ridge={mpo.DEFAULT_RIDGE}."
            )
        ridge = self.default_ridge(path) if ridge is None else ridge
        if not count:
            raise ValueError(
                f"{path}: no input has entered this matrix on the calibration set; the model does "
                "not run it there. Leave it out of data_aware rules."
            )
        key = self.statistics[path].reads, ridge
        try:
            if key not in self._metrics:
                covariance = self.covariance(path)
                matrix = mpo.regularized(covariance, len(covariance), ridge)
                self._metrics[key] = mpo.Metric(covariance, matrix)
            return self._metrics[key]
        except ValueError as error:
            raise ValueError(f"{path}, calibrated with {count} inputs: {error}") from error

    def check_gradients(self, paths: Iterable[str]):
        """Raises ValueError unless the loss depends on at least one of these matrices."""
        if not self.has_gradients:
            raise ValueError(
                "allocation='first_order' needs gradients: call compression.calibrate with loss=."
            )
        if not any(self.statistics[path].gradient for path in paths):
            raise ValueError(
                "allocation='first_order': the loss of the calibration depends on none of the "
                "matrices that the rules match; its gradients are all zero."
            )

    def sensitivity(self, path: str, w, data_aware: bool) -> float:
        """First-order squared change of the loss for a relative squared error of 1 of this matrix.

        With output gradients d of mean square g for each of T inputs and an error spread evenly
        over its directions, sum_t (d_t . e_t)^2 = T g ||e||^2 / out. A relative output error of 1
        has ||e||^2 = tr(W^T S W); a relative error of the weights tr(S) ||W||^2 / in.

        The calibration must have gradients.
        """
        entry = self.statistics[path]
        s = np.asarray(entry.covariance)
        # T g ||e||^2 / out with ||e||^2 = tr(W^T S W), or tr(S) ||W||^2 / in
        if data_aware:
            square = mpo.weighted_square(w, s)
        else:
            trace = s.sum() if s.ndim == 1 else np.trace(s)
            square = float(trace) / w.shape[0] * mpo.weighted_square(w)
        return entry.count * entry.gradient * square / w.shape[1]

    def check(self, weights: Mapping[str, np.ndarray]):
        """Raises ValueError unless the calibration was made with these weights, by matrix path."""
        for path, w in weights.items():
            known = self.statistics.get(path)
            if known is None or len(known.covariance) != w.shape[0]:
                found = "nothing" if known is None else f"{len(known.covariance)} inputs"
                raise ValueError(
                    f"calibration is of another model: for {path} ({w.shape[0]} inputs) it holds "
                    f"{found}. Call compression.calibrate with the model that is compressed."
                )
            if known.fingerprint != fingerprint(w):
                raise ValueError(
                    f"calibration is of another model: the weights of {path} were others. Call "
                    "compression.calibrate again with the model that is compressed."
                )


def calibrate(
    model: nnx.Module | models.StoredModel,
    batches: Iterable[Mapping[str, np.ndarray] | Sequence | np.ndarray],
    *,
    loss: Callable | None = None,
    curvature: bool = False,
    curvature_tokens: int | None = None,
    folder: str | os.PathLike | None = None,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """Collects the covariance of the inputs of every dense matrix, in one pass over batches.

    Products are float32 within a batch and are added up in float64 on the host. Padding does not
    count. Compiles once for each shape of batch. A decoder is run layer by layer: all batches, and
    hidden states of them, are in memory, but no more of the model than a layer; anything else, and
    with a `loss`, batch by batch.

    Args:
      model: the dense model (matrices in MPO form already are left out), or any Flax NNX module.
      batches: mappings of arrays, of which each model takes what it knows: "input_ids" (B, S)
        integers; "attention_mask" (B, S), nonzero at real tokens, default all; "token_type_ids"
        (B, S); for an encoder-decoder "decoder_input_ids" (B, T) with "decoder_attention_mask", or
        else "target_weights", nonzero at real tokens; "example_mask" (B,), False in rows that do
        not count; and what `loss` reads. Of a module of your own: the array that it is called
        with, a tuple of them, or a mapping by its arguments' names; the two masks count there, too.
      loss: for first-order sensitivities: (model, batch, None) -> mean loss over the rows, or a
        pair that begins with it, such as `training.objective("classification")`. Without it no
        gradients are kept.
      curvature: whether to collect the second moments of the gradients at the outputs, too, for
        approximations that predict the loss; about three times the time. The loss is the model's
        own: the negative log-likelihood of targets sampled from what it predicts (the true Fisher
        information, no labels needed), of a model without predictions the product of its output
        with normal noise (Gauss-Newton for the squared error of the output).
      curvature_tokens: of a decoder, evenly spaced batches with at least so many tokens are enough
        for curvatures; None: all. Between the two passes the inputs of all layers are kept:
        layers * tokens * hidden size * 4 bytes.
      folder: of a decoder, keeps statistics in files of this folder and reads them when they are
        used: of large models they are larger than the model. An interrupted call resumes there.
      progress: called with the number of batches done after each one, or after each layer of one,
        where layers are run one by one: a part of a batch then counts as a fraction.

    Raises:
      ValueError: no batches, a batch without the inputs that the model reads or without any real
        token, or activations that are not finite; names the batch.

    Example:

        >>> import mpojax as mj
        >>> import numpy as np
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        >>> config = models.EncoderConfig(vocab_size=99, max_positions=16, **sizes)
        >>> model = models.build(config, rngs=nnx.Rngs(0))
        >>> ids = np.random.default_rng(0).integers(1, 99, (8, 16))
        >>> calibration = mj.calibrate(model, [{"input_ids": ids}])
        >>> calibration.covariance("layers/0/attention/query").shape
        (16, 16)
        >>> small, report = mj.compress(model, budget=0.8, calibration=calibration)

    Layer-wise least squares on calibration data, as Frantar et al., "GPTQ" (ICLR 2023,
    arXiv:2210.17323), and data-aware low rank, Chen et al., "DRONE" (NeurIPS 2021).
    """
    matrices = matrices_of(model)
    if curvature and loss is not None:
        raise ValueError("curvature=True takes the model's own loss; leave out loss=.")
    kinds = {"loss": loss, "curvature": curvature, "curvature_tokens": curvature_tokens}
    return calibrated(matrices, batches, **kinds, folder=folder, progress=progress)


def calibrated(
    matrices: Matrices,
    batches: Iterable,
    *,
    loss: Callable | None = None,
    curvature: bool = False,
    curvature_tokens: int | None = None,
    folder: str | os.PathLike | None = None,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """As `calibrate`, of a model that is taken apart already."""
    if loss is None and runs_by_layers(matrices.model):
        tokens = (curvature_tokens or sys.maxsize) if curvature else 0
        return _by_layers(matrices, batches, tokens, folder, progress)
    return _at_once(matrices, batches, loss, curvature, progress)


def runs_by_layers(model: nnx.Module) -> bool:
    """True for a decoder that `calibrate` runs layer by layer."""
    return models.predicts_next(model) and layerwise.refusal_to_run(model) is None


def some_batches(batches: Sequence, tokens: int) -> list[int]:
    """Indices of evenly spaced batches that hold about so many tokens at least: all if fewer."""
    if not tokens:
        return []
    sizes = [max(np.size(leaf) for leaf in jax.tree.leaves(batch)) for batch in batches]
    number = min(-(-tokens // max(max(sizes), 1)), len(batches))
    return [int(index) for index in np.linspace(0, len(batches) - 1, number)]


def _by_layers(matrices: Matrices, batches, tokens: int, folder, progress) -> Calibration:
    """Of a decoder; curvatures on so many tokens."""
    inputs = [matrices.inputs(b, f"calibration batch {i}") for i, b in enumerate(batches, 1)]
    if not inputs:
        raise ValueError(_NO_BATCHES)
    inputs = [(arrays, np.float32(weights[0])) for arrays, weights in inputs]
    curved = some_batches([arrays for arrays, _ in inputs], tokens)
    observed = [path for found in matrices.observed().values() for path, _ in found]
    observed += matrices.expert_sizes
    # Each batch moves through each layer once forward, those in `curved` once more backward.
    total = (len(inputs) + len(curved)) * matrices.stored.num_layers
    done = 0

    def advance():
        nonlocal done
        done += 1
        if progress is not None:
            progress(len(inputs) * done / total)

    found = layer_statistics.collect(matrices.stored, observed, inputs, curved, folder, advance)
    count = round(float(sum(weights.sum() for _, weights in inputs)))
    statistics = {
        path: InputStatistics(
            covariance=found[path].covariance,
            count=count,
            gradient=_trace(found[path].curvature),  # mean |g|^2 = tr(mean g^T g)
            fingerprint=fingerprint(matrices.weights(path)),
            curvature=found[path].curvature,
            reads=found[path].reads,
            loads=found[path].loads,
        )
        for path in observed
    }
    return Calibration(statistics, sum(_num_examples(arrays, [w]) for arrays, w in inputs))


def _trace(moments) -> float | None:
    return None if moments is None else float(np.trace(np.asarray(moments)))


def _at_once(matrices: Matrices, batches, loss, curvature: bool, progress) -> Calibration:
    """Of any model, through which each batch goes as a whole."""
    model = matrices.whole()
    observed = matrices.observed()
    definition, state = nnx.split(model)
    if curvature:
        loss = _Sampled(matrices.call, models.predicts_next(model))
    options = {"locations": tuple(observed), "call": matrices.call, "loss": loss}
    options["curvature"] = curvature
    totals: tuple | None = None
    examples = 0
    for number, batch in enumerate(batches, 1):
        arrays, weights = matrices.inputs(batch, f"calibration batch {number}")
        weights = tuple(np.asarray(each, np.float32) for each in weights)
        arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
        if curvature:
            arrays[_SEED] = jnp.uint32(number)
        found = jax.device_get(capture.collect(definition, state, arrays, weights, **options))
        arrays.pop(_SEED, None)
        _check_finite(found, observed, list(matrices.sizes), f"calibration batch {number}")
        if totals is None:
            # Curvatures, large and noisy, stay in 32 bits.
            sums = (jax.tree.map(np.float64, part) for part in found[:2])
            totals = (*sums, jax.tree.map(np.array, found[2]))
        else:
            # In place: no second copy of all covariances, and sums keep the dtype of the totals.
            jax.tree.map(lambda total, more: np.add(total, more, out=total), totals, found)
        examples += _num_examples(arrays, weights)
        if progress is not None:
            progress(number)
    if totals is None:
        raise ValueError(_NO_BATCHES)
    statistics = {}
    for location, paths in observed.items():
        for path, index in paths:
            at = ... if index is None else index
            covariance, (count, squares), moments = (total[location][at] for total in totals)
            statistics[path] = InputStatistics(
                covariance=covariance / max(count, 1.0),
                count=round(float(count)),
                gradient=None if loss is None else float(squares / max(count, 1.0)),
                fingerprint=fingerprint(matrices.weights(path)),
                curvature=moments / np.float32(max(count, 1.0)) if moments.size else None,
            )
    _share_equal(statistics)
    return Calibration(statistics, examples)


def _check_finite(found: tuple, observed: Mapping, order: Sequence[str], where: str) -> None:
    """Raises ValueError for sums with NaN or infinity; names the first matrix they enter."""
    bad = [
        path
        for location, paths in observed.items()
        for path, index in paths
        if not np.isfinite(found[0][location][... if index is None else index]).all()
    ]
    if bad:
        raise ValueError(
            f"{where}: the inputs of {min(bad, key=order.index)} are NaN or infinite, the first of "
            f"{len(bad)} matrices; check the weights before it, and the batch."
        )
    if not all(np.isfinite(value).all() for value in jax.tree.leaves(found)):
        raise ValueError(
            f"{where}: the inputs of all matrices are finite, but the model's output or its loss "
            "is NaN or infinite; check the weights of the last layer, and the labels."
        )


# Entry of a batch that targets are sampled by.
_SEED = "seed of sampled targets"


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """The loss whose gradients have the curvature as second moments, see `calibrate`."""

    call: Callable
    predicts: bool

    def __call__(self, model: nnx.Module, batch: Mapping) -> jax.Array:
        batch = dict(batch)
        key = jax.random.key(batch.pop(_SEED))
        output = self.call(model, batch).astype(jnp.float32)
        if not self.predicts:
            # g = J^T n with E[n n^T] = 1: E[g g^T] = J^T J, the Gauss-Newton matrix.
            noise = jax.random.normal(key, output.shape)
            return jnp.sum(output * noise)
        losses = layer_statistics.sampled_losses(output, key)
        real = batch.get("attention_mask")  # predictions at padding count nothing
        return jnp.sum(losses if real is None else jnp.where(real != 0, losses, 0.0))


def _num_examples(arrays: Mapping, weights: Sequence[np.ndarray]) -> int:
    if weights:
        return int(weights[0].reshape(len(weights[0]), -1).any(axis=1).sum())
    return max(len(array) if array.ndim else 1 for array in arrays.values())


def _share_equal(statistics: dict[str, InputStatistics]):
    """Lets matrices that read the same input (query, key, value) hold one covariance."""
    seen: dict[tuple, tuple[str, np.ndarray]] = {}
    for path, entry in statistics.items():
        # With the shape: where nothing has entered, all are zero.
        key = entry.covariance.shape, hashlib.blake2b(entry.covariance, digest_size=16).digest()
        reads, shared = seen.setdefault(key, (path, entry.covariance))
        statistics[path] = dataclasses.replace(entry, covariance=shared, reads=reads)
