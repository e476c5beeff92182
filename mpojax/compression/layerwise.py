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
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from mpojax import files, models, mpo
from mpojax.compression import tapping
from mpojax.compression.matrices import side_by_side, stored_type
from mpojax.nn.functional import matmul

# A ridge for targets, relative to the mean square of an input: few tokens, or none in a direction,
# then leave the weights there as they are.
TARGET_RIDGE = 1e-3


@dataclasses.dataclass
class Approximations:
    """What came out, by matrix path.

    Attributes:
      chains: (shape, cores): bfloat16 where the matrix is in 16 bits, else float32.
      dense: matrices that keep all of their rank, changed for the changed inputs; likewise.
      stream_error: ||X - X'|| / ||X|| behind each layer.
      groups: neighbouring layers that share the first cores of their chains, by their number; None
        where nothing is shared.
    """

    chains: dict[str, tuple[mpo.MPOShape, tuple[np.ndarray, ...]]]
    dense: dict[str, np.ndarray]
    stream_error: list[float]
    groups: tuple[int, ...] | None = None

    def matrix(self, path: str) -> np.ndarray | None:
        """What stands for a matrix, as a dense float32 one; None where nothing is made yet."""
        if path in self.chains:
            shape, cores = self.chains[path]
            return mpo.to_matrix([_lifted(core) for core in cores], shape)
        return _lifted(self.dense[path]) if path in self.dense else None


def _lifted(array: np.ndarray) -> np.ndarray:
    is_short = array.dtype == jnp.bfloat16
    return array.astype(np.float32) if is_short else array


def refusal(model: nnx.Module) -> str | None:
    """Why a model cannot be compressed layer by layer; None where it can."""
    if model_refusal := refusal_to_run(model):
        return model_refusal
    return "its layers have experts" if model.config.experts else None


def refusal_to_run(model: nnx.Module) -> str | None:
    """Why the layers of a model cannot be run one by one; None where they can."""
    body = getattr(model, "body", None)
    if not isinstance(body, (models.LanguageModel, models.Encoder)):
        return f"a {type(model).__name__} is neither a language model nor an encoder"
    if model.config.shares_parts or getattr(model.config, "bottleneck_size", None):
        return "its layers share parts or have a bottleneck"
    return None


def compress(
    model: models.Model | models.StoredModel,
    batches: Iterable[Mapping[str, np.ndarray]],
    ranks: Mapping[str, int | None],
    curvatures: Mapping[str, np.ndarray],
    *,
    pivoted: bool = True,
    resume: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Approximations:
    """Approximates matrices of the layers, one after the other.

    In memory are one layer, the hidden states of all tokens in two streams, and what enters the
    matrices of a layer: tokens * (about 6 hidden sizes) * 4 bytes.

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
    run = _Run(models.StoredModel.of(model), batches, pivoted)
    kept = None
    if resume is not None:
        kept = _Kept(resume, _fingerprint(run, ranks, curvatures))
    for index in range(run.model.num_layers):
        # A finished layer is run all the same: both streams must come out behind it.
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


def _fingerprint(run: "_Run", ranks: Mapping, curvatures: Mapping) -> str:
    """Digest of what decides the result: settings, weights, texts and curvatures."""
    digest = hashlib.blake2b(repr((sorted(ranks.items()), run.pivoted)).encode())
    weights = (run.model.arrays[name] for name in sorted(run.model.arrays))
    cut = (path for path in sorted(ranks) if ranks[path] is not None)
    metrics = (mpo.Metric.of(curvatures[path]).matrix for path in cut)
    # One at a time: together they are large.
    for array in itertools.chain(weights, run.original, run.weights, metrics):
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


class Step(NamedTuple):
    """Matrices of a layer that read one input.

    Attributes:
      names: in the layer.
      stream: the part whose input is the residual stream that they write to, or None.
      by_outputs: targets are fitted to outputs, X W + D; else to inputs X, where these are fewer.
    """

    names: tuple[str, ...]
    stream: str | None
    by_outputs: bool


def _steps(layer, x, context) -> tuple[Step, ...]:
    steps = []
    for names in tapping.groups(layer, x, context):
        parts = [tapping.part(layer, name) for name in names]
        stream = layer.stream_of(names[0])
        # X W is kept where it has no more numbers a token than X.
        narrow = sum(part.out_features for part in parts) <= parts[0].in_features
        steps.append(Step(names, stream, stream is not None or narrow))
    return tuple(steps)


class _Run:
    """The two streams, batch by batch, and what has been made so far."""

    def __init__(self, model: models.StoredModel, batches, pivoted: bool):
        self.model, self.pivoted = model, pivoted
        self.result = Approximations({}, {}, [])
        outside = model.outside()
        starts = [tapping.start(outside, batch) for batch in batches]
        self.contexts = [context for _, context, _ in starts]
        self.weights = [weights for *_, weights in starts]
        self.count = sum(float(weights.sum()) for weights in self.weights)
        self.original = [x for x, *_ in starts]
        self.changed = list(self.original)

    def layer(self, index: int, ranks, curvatures, progress):
        """Makes the matrices of one layer, and moves both streams behind it."""
        before = self.model.layer(index)
        after = nnx.clone(before)
        contexts = [context.of_layer(index) for context in self.contexts]
        steps = _steps(before, self.original[0], contexts[0])
        # Of the original what its parts need, of the changed layer step by step.
        entered = []
        for batch, context in enumerate(contexts):
            more, self.original[batch] = _entered(
                before, self.original[batch], context, steps=steps
            )
            entered.append(more)
        # By batch, what parts of the changed layer gave so far: later steps do not run them again.
        given: list[dict] = [{} for _ in self.changed]
        for step in steps:
            paths = {name: f"layers/{index}/{name}" for name in step.names}
            made = {n: self.result.matrix(path) for n, path in paths.items() if path in ranks}
            is_new = any(w is None for w in made.values())
            inputs, moments = self._moments(after, contexts, given, entered, step, is_new)
            new = [name for name, w in made.items() if w is None]
            about = (before, step, moments, ranks, curvatures)
            approximated = functools.partial(self._approximated, *about)
            made |= zip(new, side_by_side(approximated, [paths[n] for n in new]), strict=True)
            for name, w in made.items():
                tapping.part(after, name).kernel = nnx.Param(jnp.asarray(w, jnp.float32))
                if progress is not None:
                    progress(paths[name])
            for kept, x in zip(given, inputs, strict=True):
                kept.update({name: _apply(tapping.part(after, name), x) for name in step.names})
        for batch, (context, kept) in enumerate(zip(contexts, given, strict=True)):
            self.changed[batch] = _output(after, self.changed[batch], context, kept)
        self.result.stream_error.append(self._stream_error())

    def _moments(self, after, contexts, given, entered, step: Step, is_new: bool):
        """(inputs of a step by batch, mean products over all tokens; None where not asked for)."""
        inputs, totals = [], None
        for each in zip(self.changed, contexts, given, entered, self.weights, strict=True):
            x, sums = _step(after, *each, step=step, moments=is_new)
            inputs.append(x)
            if totals is None:
                totals = [np.array(part, np.float64) for part in sums]
            else:
                for total, part in zip(totals, sums, strict=True):
                    total += np.asarray(part)
        # Sums over all batches, then means: both terms of a target have the same 1 / tokens.
        for total in totals:
            total /= self.count
        return inputs, totals

    def _approximated(self, before, step, moments, ranks, curvatures, path: str) -> np.ndarray:
        """Stores the approximation of a matrix, and gives it as a dense one."""
        name = path.split("/", 2)[2]
        w = np.asarray(tapping.part(before, name).kernel[...])
        covariance, product = moments
        if step.by_outputs:
            sizes = [tapping.part(before, each).out_features for each in step.names]
            place = step.names.index(name)
            # X'^T (X W + D) of all matrices of the step side by side, (in, sum of out).
            product = np.split(product, np.cumsum(sizes)[:-1], axis=1)[place]
            target = mpo.corrected(w, covariance, None, product, TARGET_RIDGE)
        else:
            target = mpo.corrected(w, covariance, product, None, TARGET_RIDGE)
        if ranks[path] is None:
            self.result.dense[path] = target.astype(stored_type(w))
        else:
            low_rank = mpo.LowRank(target, covariance, curvatures[path])
            cores = low_rank.cores(ranks[path])
            self.result.chains[path] = chain(cores, self.pivoted, stored_type(w))
        return self.result.matrix(path)

    def _stream_error(self) -> float:
        squares = [
            jax.device_get(_squares(*each))
            for each in zip(self.original, self.changed, self.weights, strict=True)
        ]
        error, norm = np.sum(squares, axis=0)
        return float(np.sqrt(error / norm)) if norm else 0.0


def chain(cores, pivoted: bool, dtype=np.float32) -> tuple[mpo.MPOShape, tuple[np.ndarray, ...]]:
    """(shape, cores) of a two-core chain, pivoted where that is asked for and possible."""
    shape = mpo.MPOShape.low_rank(cores[0].shape[1], cores[1].shape[2], cores[0].shape[-1])
    if pivoted and shape.bonds[0] < shape.out_features:
        cores, shape = mpo.pivot(cores)
    kinds = (dtype, dtype, np.int32)  # the last one is the order of a pivoted chain
    return shape, tuple(np.asarray(c, kind) for c, kind in zip(cores, kinds, strict=False))


@functools.partial(jax.jit, static_argnames="steps")
def _entered(layer, x, context, *, steps: tuple[Step, ...]):
    """({part: what its targets are fitted to}, output) of an original layer."""
    with jax.default_matmul_precision("highest"):
        seen, output = tapping.tapped(layer, x, context)
        found = {}
        for names, stream, by_outputs in steps:
            entering = seen[names[0]]
            if by_outputs:
                parts = [tapping.part(layer, name) for name in names]
                outputs = [matmul(entering, p.kernel[...].astype(entering.dtype)) for p in parts]
                found[names[0]] = jnp.concatenate(outputs, axis=-1)
            else:
                found[names[0]] = entering
            if stream is not None:
                found[stream] = seen[stream]
        return found, output


@functools.partial(jax.jit, static_argnames=("step", "moments"))
def _step(layer, x, context, given, entered, weights, *, step: Step, moments: bool):
    """The changed input of a step, and (X'^T X', X'^T X or X'^T (X W + D)) over the tokens."""
    names, stream, _ = step
    with jax.default_matmul_precision("highest"):
        seen, _ = tapping.tapped(layer, x, context, given=given)
        changed, goal = seen[names[0]], entered[names[0]].astype(jnp.float32)
        if not moments:
            return changed, ()
        if stream is not None:
            # D, what the changed stream lacks before this layer's map writes to it.
            goal += entered[stream].astype(jnp.float32) - seen[stream].astype(jnp.float32)
        rows = changed.reshape(-1, changed.shape[-1]).astype(jnp.float32)
        # diag(weights): tokens of padding have no part in the products.
        left = (rows * weights.reshape(-1, 1)).T
        return changed, (tapping.gram(changed, weights), left @ goal.reshape(len(rows), -1))


@jax.jit
def _apply(part, x):
    with jax.default_matmul_precision("highest"):
        return part(x)


@jax.jit
def _output(layer, x, context, given):
    with jax.default_matmul_precision("highest"):
        return tapping.tapped(layer, x, context, given=given)[1]


@jax.jit
def _squares(original, changed, weights):
    """(squared error, squared norm) over the tokens that count."""
    error = jnp.sum(jnp.square(original - changed), axis=-1)
    norm = jnp.sum(jnp.square(original), axis=-1)
    return jnp.stack([jnp.sum(error * weights), jnp.sum(norm * weights)])
