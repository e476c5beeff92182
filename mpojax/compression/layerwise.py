"""Compression of a transformer layer by layer, each matrix for what really reaches it.

Two streams of hidden states run through the model side by side: the original's, X, and that of the
model whose earlier matrices are approximations already, X'. For each matrix W in turn the target

    T = argmin ||X W + D - X' T||^2        D: what the stream lacks, X_stream - X'_stream

takes up the errors made so far: D is zero but for the maps that write to the residual stream, which
add what is missing to it. T is then cut to a rank, by the changed inputs and by the curvature of
the loss at the outputs (see `mpojax.mpo.weighted`). A layer is run once for both streams: what
matrices gave is kept and not computed again.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from mpojax import files, models, mpo, nn
from mpojax.compression.calibration import fingerprint

# A ridge for targets, relative to the mean square of an input: few tokens, or none in a direction,
# then leave the weights there as they are.
TARGET_RIDGE = 1e-3


@dataclasses.dataclass
class Approximations:
    """What came out, by matrix path.

    Attributes:
      chains: (shape, float32 cores).
      dense: float32 matrices that keep all of their rank, changed for the changed inputs.
      stream_error: ||X - X'|| / ||X|| behind each layer.
      groups: neighbouring layers that share the first cores of their chains, by their number; None
        where nothing is shared.
    """

    chains: dict[str, tuple[mpo.MPOShape, tuple[np.ndarray, ...]]]
    dense: dict[str, np.ndarray]
    stream_error: list[float]
    groups: tuple[int, ...] | None = None

    def matrix(self, path: str) -> np.ndarray | None:
        """What stands for a matrix, as a dense one; None where nothing has been made yet."""
        if path in self.chains:
            shape, cores = self.chains[path]
            return mpo.to_matrix(cores, shape)
        return self.dense.get(path)


def refusal(model: nnx.Module) -> str | None:
    """Why a model cannot be compressed layer by layer; None where it can."""
    if not isinstance(_inner(model), (models.LanguageModel, models.Encoder)):
        return f"a {type(model).__name__} is no single stack of layers"
    config = model.config
    if config.shares_parts or config.experts or getattr(config, "bottleneck_size", None):
        return "its layers share parts, have experts or a bottleneck"
    return None


def _inner(model: nnx.Module) -> nnx.Module:
    """The encoder of a model with a head; else the model itself."""
    return getattr(model, "encoder", model) if isinstance(model, models.ModelWithHead) else model


def compress(
    model: models.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    ranks: Mapping[str, int | None],
    curvatures: Mapping[str, np.ndarray],
    *,
    pivoted: bool = True,
    resume: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Approximations:
    """Approximates matrices of the layers, one after the other.

    Args:
      model: dense where a matrix has a rank, see `refusal`.
      batches: of tokens, as for `compression.calibrate`; held in memory with two streams.
      ranks: of each matrix path; None for one that stays dense.
      curvatures: positive definite matrices or metrics, see `mpojax.mpo.ridged`; of every path
        with a rank.
      pivoted: cut to pivoted chains where the rank allows.
      resume: folder that keeps finished layers, so that an interrupted call resumes from them.
      progress: called with each path when it is done.
    """
    run = _Run(model, batches, pivoted)
    kept = None if resume is None else _Kept(resume, _fingerprint(model, ranks, pivoted, run.count))
    for index in range(run.num_layers):
        known = kept is not None and kept.load(run.result, index)
        run.layer(index, ranks, curvatures, progress)
        if kept is not None and not known:
            kept.save(run.result, index)
    return run.result


class _Kept:
    """Finished layers in a folder, a safetensors file each; of other arguments nothing is taken."""

    def __init__(self, folder: str | os.PathLike, fingerprint: str):
        self.folder, self.fingerprint = files.at(folder), fingerprint

    def save(self, result: Approximations, layer: int) -> None:
        """Writes the matrices of a layer, in one step."""
        start, tensors, shapes = f"layers/{layer}/", {}, {}
        for path, (shape, cores) in result.chains.items():
            if path.startswith(start):
                shapes[path] = shape.to_dict()
                tensors |= {f"{path}//{k}": core for k, core in enumerate(cores)}
        tensors |= {f"{p}//dense": w for p, w in result.dense.items() if p.startswith(start)}
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        metadata = {"fingerprint": self.fingerprint, "shapes": json.dumps(shapes)}
        files.write_atomic(self._file(layer), safetensors.numpy.save(tensors, metadata))

    def load(self, result: Approximations, layer: int) -> bool:
        """Puts the matrices of a layer into `result`; False where there are none."""
        if not self._file(layer).is_file():
            return False
        with safetensors.safe_open(files.local(self._file(layer)), "numpy") as file:
            metadata = file.metadata()
            if metadata["fingerprint"] != self.fingerprint:
                return False
            for path, fields in json.loads(metadata["shapes"]).items():
                shape = mpo.MPOShape.from_dict(fields)
                cores = (file.get_tensor(f"{path}//{k}") for k in range(shape.num_arrays))
                result.chains[path] = shape, tuple(cores)
            for name in file.keys():  # noqa: SIM118
                if name.endswith("//dense"):
                    result.dense[name.removesuffix("//dense")] = file.get_tensor(name)
        return True

    def _file(self, layer: int) -> pathlib.Path:
        return self.folder / f"{layer}.safetensors"


def _fingerprint(model: models.Model, ranks: Mapping, pivoted: bool, count: float) -> str:
    """Digest of what decides the result."""
    weights = {path: fingerprint(array) for path, array in models.to_arrays(model).items()}
    known = sorted(ranks.items()), pivoted, count, weights
    return hashlib.blake2b(repr(known).encode()).hexdigest()


class _Run:
    """The two streams, batch by batch, and what has been made so far."""

    def __init__(self, model: models.Model, batches, pivoted: bool):
        model = _inner(model)
        self.stack = getattr(model, "tower", model)
        self.num_layers = self.stack.num_layers
        self.pivoted = pivoted
        self.result = Approximations({}, {}, [])
        starts = [_start(model, batch) for batch in batches]
        self.contexts = [context for _, context, _ in starts]
        self.weights = [weights for *_, weights in starts]
        self.count = sum(float(weights.sum()) for weights in self.weights)
        self.original = [x for x, *_ in starts]
        self.changed = list(self.original)

    def layer(self, index: int, ranks, curvatures, progress):
        """Makes the matrices of one layer, and moves both streams behind it."""
        before, after = self.stack.layer(index), self.stack.layer(index)
        contexts = [context.of_layer(index) for context in self.contexts]
        pairs = zip(self.original, contexts, strict=True)
        # Of the original all that enters its parts, of the changed layer step by step.
        entered, outputs = zip(*(_inputs(before, x, context) for x, context in pairs), strict=True)
        given: list[dict] = [{} for _ in self.changed]
        for names, stream in _steps(before, self.original[0], contexts[0]):
            wanted = names[0], stream
            inputs = [
                _step(after, *each, wanted=wanted)
                for each in zip(self.changed, contexts, given, entered, self.weights, strict=True)
            ]
            sums = [jax.device_get(sums) for _, sums in inputs]
            moments = jax.tree.map(lambda *parts: sum(map(np.float64, parts)) / self.count, *sums)
            if not all(np.isfinite(part).all() for part in moments):
                raise ValueError(
                    f"layers/{index}/{names[0]}: inputs are NaN or infinite on the calibration "
                    "texts; check the weights before it, and the texts."
                )
            for name in names:
                path = f"layers/{index}/{name}"
                if path in ranks:
                    w = self.result.matrix(path)
                    if w is None:
                        w = self._approximated(path, before, name, moments, ranks, curvatures)
                    _place(after, name).kernel = nnx.Param(jnp.asarray(w, jnp.float32))
                    if progress is not None:
                        progress(path)
            for kept, (x, _) in zip(given, inputs, strict=True):
                kept.update({name: _apply(_place(after, name), x) for name in names})
        self.original = list(outputs)
        rest = zip(self.changed, contexts, given, strict=True)
        self.changed = [_output(after, *each) for each in rest]
        self.result.stream_error.append(self._stream_error())

    def _approximated(self, path, before, name, moments, ranks, curvatures) -> np.ndarray:
        """Stores the approximation of a matrix, and gives it as a dense one."""
        w = np.asarray(_place(before, name).kernel[...])
        covariance, cross, residual = moments
        residual = residual if residual.size else None
        target = mpo.corrected(w, covariance, cross, residual, TARGET_RIDGE)
        if ranks[path] is None:
            self.result.dense[path] = np.float32(target)
            return target
        low_rank = mpo.LowRank(target, covariance, curvatures[path])
        self.result.chains[path] = chain(low_rank.cores(ranks[path]), self.pivoted)
        return self.result.matrix(path)

    def _stream_error(self) -> float:
        squares = [
            jax.device_get(_squares(*each))
            for each in zip(self.original, self.changed, self.weights, strict=True)
        ]
        error, norm = np.sum(squares, axis=0)
        return float(np.sqrt(error / norm)) if norm else 0.0


def chain(cores, pivoted: bool) -> tuple[mpo.MPOShape, tuple[np.ndarray, ...]]:
    """(shape, float32 cores) of a two-core chain, pivoted where that is asked for and possible."""
    shape = mpo.MPOShape.low_rank(cores[0].shape[1], cores[1].shape[2], cores[0].shape[-1])
    if pivoted and shape.bonds[0] < shape.out_features:
        cores, shape = mpo.pivot(cores)
    kinds = ("float32", "float32", "int32")  # the last one is the order of a pivoted chain
    return shape, tuple(np.asarray(c, kind) for c, kind in zip(cores, kinds, strict=False))


def _start(model: models.Model, batch: Mapping):
    """(hidden states before the first layer, context, weights of the tokens (B, S))."""
    ids = jnp.asarray(batch["input_ids"])
    arrays = [batch.get(name) for name in model.batch_inputs]
    arrays = [None if array is None else jnp.asarray(array) for array in arrays]
    x, context = _begin(model, *arrays)
    mask = batch.get("attention_mask")
    weights = np.ones(ids.shape) if mask is None else np.asarray(mask) != 0
    return x, context, weights.astype(np.float32)


@jax.jit
def _begin(model, *arrays):
    return model.begin(*arrays)


class _Tap(nnx.Module):
    """A part of a layer that notes what enters it, and may give what it gave before."""

    def __init__(self, inner, name: str, given, seen: dict):
        self.inner, self.name = inner, name
        self.given, self.seen = nnx.data(given), nnx.static(seen)

    def __call__(self, x, *args, **options):
        self.seen[self.name] = x
        return self.inner(x, *args, **options) if self.given is None else self.given

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "inner"), name)


def _tapped(layer, x, context, given: Mapping[str, jax.Array]) -> tuple[dict, jax.Array]:
    """({part: its input}, output) of a layer; where given, parts are not run."""
    seen: dict[str, jax.Array] = {}

    def tap(path, node):
        if not isinstance(node, (nn.Dense, nn.LayerNorm, nn.RMSNorm)):
            return node
        name = "/".join(map(str, path))
        return _Tap(node, name, given.get(name), seen)

    graph, state = nnx.split(layer)
    output, *_ = nnx.recursive_map(tap, nnx.merge(graph, state))(x, context)
    return seen, output


@jax.jit
def _inputs(layer, x, context):
    with jax.default_matmul_precision("highest"):
        return _tapped(layer, x, context, {})


def _steps(layer, x, context) -> list[tuple[tuple[str, ...], str | None]]:
    """Matrices that read one input, in the order of a call, and the part whose input is the stream
    that they write to.
    """
    groups: dict[int, list[str]] = {}
    keep = []

    def trace(layer, x, context):
        seen, output = _tapped(layer, x, context, {})
        for name, entering in seen.items():
            if isinstance(_place(layer, name), nn.Dense):
                groups.setdefault(id(entering), []).append(name)
                keep.append(entering)  # so that no other tracer gets its id
        return output

    jax.eval_shape(trace, layer, x, context)
    return [(tuple(names), layer.stream_of(names[0])) for names in groups.values()]


@functools.partial(jax.jit, static_argnames="wanted")
def _step(layer, x, context, given, entered, weights, *, wanted):
    """The changed input of a matrix, and (X'^T X', X'^T X, X'^T D or empty) over the tokens."""
    name, stream = wanted
    with jax.default_matmul_precision("highest"):
        seen, _ = _tapped(layer, x, context, given)
        changed = seen[name]
        rows = changed.reshape(-1, changed.shape[-1]).astype(jnp.float32)
        left = (rows * weights.reshape(-1, 1)).T
        original = entered[name].reshape(rows.shape).astype(jnp.float32)
        residual = jnp.zeros((0,))
        if stream is not None:
            missing = entered[stream].astype(jnp.float32) - seen[stream].astype(jnp.float32)
            residual = left @ missing.reshape(len(rows), -1)
        return changed, (left @ rows, left @ original, residual)


@jax.jit
def _apply(part, x):
    with jax.default_matmul_precision("highest"):
        return part(x)


@jax.jit
def _output(layer, x, context, given):
    with jax.default_matmul_precision("highest"):
        return _tapped(layer, x, context, given)[1]


@jax.jit
def _squares(original, changed, weights):
    """(squared error, squared norm) over the tokens that count."""
    error = jnp.sum(jnp.square(original - changed), axis=-1)
    norm = jnp.sum(jnp.square(original), axis=-1)
    return jnp.stack([jnp.sum(error * weights), jnp.sum(norm * weights)])


def _place(layer: nnx.Module, name: str) -> nnx.Module:
    return nn.submodule(layer, name.split("/"))
