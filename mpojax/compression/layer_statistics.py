"""Statistics of a decoder's matrices layer by layer: in memory is one layer, not the model's all.

Forward, hidden states of all texts move through one layer after the other, and x^T x of what enters
its matrices is added up. Backward, the gradient of the loss moves the other way; each layer is run
again from its stored input, and g^T g of the gradients at its outputs is added up.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import files, models, nn
from mpojax.compression import capture, tapping
from mpojax.models.decoder import logits_of

# {map of experts: map that reads the same input}; and where the loads of experts are.
_OF_EXPERTS = {
    f"feed_forward/{name}": f"feed_forward/{first}"
    for name, first in (("up", "up"), ("gate", "up"), ("down", "down"))
}
_LOADS = "router"
# A head of more words has no curvature here: of 32,000 it would fill 4 GB.
_WIDEST_OUTPUT = 16_384


class Arrays:
    """Arrays by name: in memory, or in files of a folder, where another call finds them again."""

    def __init__(self, folder: str | os.PathLike | None, fingerprint: str):
        """Files in the folder are kept if they are of the same fingerprint, else removed."""
        self.folder = None if folder is None else files.at(folder)
        self.held: dict[str, np.ndarray] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "fingerprint"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            # The mark goes first and is written last: a kill in between clears the folder again.
            for old in (mark, self._notes, *self.folder.glob("*.npy")):
                old.unlink(missing_ok=True)
            files.write_atomic(mark, fingerprint)

    @property
    def _notes(self) -> pathlib.Path:
        return self.folder / "finished.json"

    def finish(self, notes: dict[str, str]) -> None:
        """Notes that everything is there."""
        if self.folder is not None:
            files.write_atomic(self._notes, json.dumps(notes))

    def finished(self) -> dict[str, str] | None:
        """The notes of `finish`; None before it."""
        if self.folder is None or not self._notes.is_file():
            return None
        return json.loads(self._notes.read_text(encoding="utf-8"))

    def __contains__(self, name: str) -> bool:
        return name in self.held if self.folder is None else self._file(name).is_file()

    def __getitem__(self, name: str) -> "np.ndarray | files.StoredArray":
        if self.folder is None:
            return self.held[name]
        file = files.local(self._file(name))
        # Shape and dtype come from the header alone; the array is read when it is used.
        header = np.load(file, mmap_mode="r")
        return files.StoredArray(header.shape, header.dtype, lambda: np.load(file))

    def get(self, name: str) -> "np.ndarray | files.StoredArray | None":
        """The array, None where there is none."""
        if name not in self:
            return None
        return self[name]

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if self.folder is None:
            self.held[name] = array
        else:
            files.write_atomic(self._file(name), lambda path: _write(path, array))

    def pop(self, name: str) -> np.ndarray:
        """The array, which is then forgotten."""
        if self.folder is None:
            return self.held.pop(name)
        array = np.load(files.local(self._file(name)))
        self._file(name).unlink()
        return array

    def _file(self, name: str) -> pathlib.Path:
        return self.folder / f"{name.replace('/', '.')}.npy"


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


class Collected(NamedTuple):
    """What is known of one matrix: its inputs, and where asked for the curvature of its outputs.

    Attributes:
      reads: the first matrix that reads the same input.
      covariance: mean of x^T x, of a table its diagonal; of experts (experts, in, in): of each the
        sum over its tokens, over the number of all tokens.
      curvature: mean of g^T g, or None.
      loads: of experts: tokens that each of them gets, over all tokens.
    """

    reads: str
    covariance: "np.ndarray | files.StoredArray"
    curvature: "np.ndarray | files.StoredArray | None"
    loads: np.ndarray | None = None


def collect(
    model: models.StoredModel,
    paths: Collection[str],
    inputs: Sequence[tuple[Mapping, np.ndarray]],
    curved: Sequence[int],
    folder: str | os.PathLike | None,
    advance: Callable[[], None],
) -> dict[str, Collected]:
    """Statistics by matrix path.

    Args:
      model: a decoder, see `layerwise.refusal_to_run`.
      paths: of its dense matrices.
      inputs: (arrays, weights of the tokens (B, S)) of every batch.
      curved: indices of those batches that curvatures are measured on.
      folder: keeps what is finished; None keeps all in memory.
      advance: called once for each batch and layer, and once more for each of those in `curved`.
    """
    kept = Arrays(folder, _fingerprint(model, paths, inputs, curved) if folder else "")
    if (reads := kept.finished()) is None:
        run = _Run(model, paths, inputs, curved, kept, advance)
        reads = run.forward()
        if curved:
            run.backward()
        kept.finish(reads)
    found = {}
    for path, first in reads.items():
        curvature = kept.get(f"{path}/curvature")
        found[path] = Collected(first, kept[f"{first}/inputs"], curvature)
        if (loads := kept.get(f"{path.rpartition('/')[0]}/{_LOADS}/inputs")) is not None:
            found[path] = found[path]._replace(loads=np.asarray(loads))
    return found


def _fingerprint(model: models.StoredModel, paths, inputs, curved) -> str:
    """Digest of what decides the result."""
    digest = hashlib.blake2b(repr((sorted(paths), list(curved))).encode(), digest_size=16)
    for name in sorted(model.arrays):
        digest.update(np.ascontiguousarray(model.arrays[name]).view(np.uint8))
    for arrays, weights in inputs:
        digest.update(np.ascontiguousarray(arrays["input_ids"], np.int64))
        digest.update(np.ascontiguousarray(weights, np.float32))
    return digest.hexdigest()


class _Run:
    """Hidden states of all batches on their way through the layers, and back."""

    def __init__(self, model, paths, inputs, curved, kept: Arrays, advance):
        self.model, self.paths, self.curved, self.kept = model, set(paths), curved, kept
        self.advance, self.outside = advance, model.outside()
        self.inputs = inputs
        starts = [tapping.start(self.outside, arrays) for arrays, _ in inputs]
        self.x, self.contexts = [x for x, *_ in starts], [context for _, context, _ in starts]
        self.weights = [jnp.asarray(weights, jnp.float32) for _, weights in inputs]
        self.count = float(sum(weights.sum() for _, weights in inputs))
        self.head = "head" if "head" in self.paths else None

    def forward(self) -> dict[str, str]:
        """Stores covariances; gives {path: first path that reads the same input}."""
        reads = self._tables()
        for index in range(self.model.num_layers):
            layer = self.model.layer(index)
            start, first_of = f"layers/{index}/", {}
            for names in self._groups(layer, index):
                if names := [name for name in names if start + name in self.paths]:
                    first_of |= dict.fromkeys(names, names[0])
            first_of |= {n: first for n, first in _OF_EXPERTS.items() if self._is_experts(layer, n)}
            first_of = {n: first for n, first in first_of.items() if start + n in self.paths}
            reads |= {start + name: start + first for name, first in first_of.items()}
            wanted = tuple(sorted({n for n in first_of.values() if not self._has(start + n)}))
            for batch in self.curved:
                # Files of numpy know no bfloat16.
                # The input of the layer, from which `backward` runs it once more.
                self.kept[_of_input(index, batch)] = np.asarray(self.x[batch], np.float32)
            self._store(start, "inputs", self._through(layer, index, wanted), self.count)
        if self.head is not None:
            reads[self.head] = self.head
            if not self._has(self.head):
                sums = (
                    {self.head: _end_inputs(self.outside, *each)}
                    for each in zip(self.x, self.weights, strict=True)
                )
                self._store("", "inputs", sums, self.count)
        return reads

    def _has(self, path: str) -> bool:
        return f"{path}/inputs" in self.kept

    def _through(self, layer, index: int, wanted) -> Iterator[dict]:
        """Moves all hidden states behind a layer; gives the sums of each batch."""
        for batch, (x, weights) in enumerate(zip(self.x, self.weights, strict=True)):
            context = self.contexts[batch].of_layer(index)
            names = tuple(name for name in wanted if not self._is_experts(layer, name))
            self.x[batch], sums, block = _forward(layer, x, context, weights, names=names)
            if len(names) < len(wanted):
                *moments, loads = tapping.of_experts(layer.feed_forward, block, weights)
                sums |= dict(zip(dict.fromkeys(_OF_EXPERTS.values()), moments, strict=True))
                sums[f"feed_forward/{_LOADS}"] = loads
            yield sums
            self.advance()

    def _is_experts(self, layer, name: str) -> bool:
        """True for a map of experts."""
        return name in _OF_EXPERTS and isinstance(layer.feed_forward, nn.ExpertFeedForward)

    def backward(self) -> None:
        """Stores curvatures, from the last layer to the first."""
        count = float(sum(self.weights[batch].sum() for batch in self.curved))
        gradients: list[jax.Array] = []
        self._store("", "curvature", self._of_end(gradients), count)
        for index in reversed(range(self.model.num_layers)):
            layer, start = self.model.layer(index), f"layers/{index}/"
            names = [n for group in self._groups(layer, index) for n in group]
            names = [name for name in names if start + name in self.paths]
            wanted = tuple(n for n in names if f"{start}{n}/curvature" not in self.kept)
            self._store(start, "curvature", self._back(layer, index, gradients, wanted), count)

    def _groups(self, layer, index: int) -> list[tuple[str, ...]]:
        return tapping.groups(layer, self.x[0], self.contexts[0].of_layer(index))

    def _of_end(self, gradients: list) -> Iterator[dict]:
        """Fills the gradients of the loss behind the last layer."""
        wide = self.head is None or self.model.config.vocab_size > _WIDEST_OUTPUT
        for seed, batch in enumerate(self.curved, 1):
            key = jax.random.key(jnp.uint32(seed))
            given = (self.outside, self.x[batch], self.weights[batch], key)
            gradient, moments = _end_backward(*given, moments=not wide)
            gradients.append(gradient)
            yield {} if moments is None else {self.head: moments}

    def _back(self, layer, index: int, gradients: list, wanted) -> Iterator[dict]:
        for place, batch in enumerate(self.curved):
            x = jnp.asarray(self.kept.pop(_of_input(index, batch)), self.x[batch].dtype)
            given = (self.contexts[batch].of_layer(index), gradients[place], self.weights[batch])
            gradients[place], sums = _backward(layer, x, *given, names=wanted)
            yield sums
            self.advance()

    def _store(self, start: str, kind: str, sums: Iterable[dict], count: float) -> None:
        """Stores means over the tokens; covariances are added up in float64."""
        totals: dict[str, np.ndarray] = {}
        for number, found in enumerate(sums, 1):
            for name, value in found.items():
                value = np.asarray(value)
                # A sum is finite only if every entry is; no mask as large as the array is made.
                if not np.isfinite(value.sum()):
                    number = number if kind == "inputs" else self.curved[number - 1] + 1
                    raise ValueError(_not_finite(number, start + name, kind))
                if name in totals:
                    totals[name] += value
                else:
                    # Curvatures, large and noisy, stay in 32 bits.
                    totals[name] = value.astype(np.float64 if kind == "inputs" else np.float32)
        for name, total in totals.items():
            total /= max(count, 1.0)
            # On disk 32 bits are enough: the sum is done, and half the size is read again.
            total = total if self.kept.folder is None else total.astype(np.float32)
            self.kept[f"{start}{name}/{kind}"] = total

    def _tables(self) -> dict[str, str]:
        """Stores how often rows of the embeddings are read."""
        paths = [path for path in self.paths if path.startswith("embeddings/")]
        definition, state = nnx.split(self.outside)
        options = {"locations": tuple(tuple(path.split("/")) for path in sorted(paths))}
        options |= {"call": _embedded, "loss": None}

        def sums():
            for arrays, weights in self.inputs:
                arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
                given = (arrays, (jnp.asarray(weights, jnp.float32),))
                found, *_ = capture.collect(definition, state, *given, **options)
                yield {"/".join(location): total for location, total in found.items()}

        if not all(self._has(path) for path in paths):
            self._store("", "inputs", sums(), self.count)
        return {path: path for path in paths}


def _not_finite(number: int, path: str, kind: str) -> str:
    if kind == "inputs":
        return (
            f"calibration batch {number}: the inputs of {path} are NaN or infinite; check the "
            "weights before it, and the batch."
        )
    return (
        f"calibration batch {number}: the inputs of all matrices are finite, but the gradients at "
        f"{path} are NaN or infinite; check the weights behind it."
    )


def _of_input(layer: int, batch: int) -> str:
    return f"input of layer {layer}, batch {batch}"


def _embedded(model, batch):
    return model.begin(*(batch.get(name) for name in model.batch_inputs))[0]


@functools.partial(jax.jit, static_argnames="names")
def _forward(layer, x, context, weights, *, names):
    """(output, {matrix: x^T x of its input}, what enters a mixture of experts or None)."""
    with jax.default_matmul_precision("highest"):
        seen, y = tapping.tapped(layer, x, context)
        sums = {name: tapping.gram(seen[name], weights) for name in names}
        return y, sums, seen.get("feed_forward")


@functools.partial(jax.jit, static_argnames="names")
def _backward(layer, x, context, gradient, weights, *, names):
    """(gradient of x, {matrix: g^T g of the gradients at its output})."""
    parts = {name: tapping.part(layer, name) for name in names}
    # Gradients of zeros that are added to an output are those of the output.
    zeros = {n: jnp.zeros((*x.shape[:-1], p.out_features), p.dtype) for n, p in parts.items()}
    with jax.default_matmul_precision("highest"):
        run = lambda x, added: tapping.tapped(layer, x, context, added=added)[1]  # noqa: E731
        gradient_x, gradients = jax.vjp(run, x, zeros)[1](gradient)
        return gradient_x, {name: tapping.gram(g, weights) for name, g in gradients.items()}


@jax.jit
def _end_inputs(model, x, weights):
    """x^T x of what the head reads."""
    with jax.default_matmul_precision("highest"):
        return tapping.gram(_normed(model, x), weights)


@functools.partial(jax.jit, static_argnames="moments")
def _end_backward(model, x, weights, key, *, moments: bool):
    """(gradient of x, behind the last layer; g^T g at the logits or None).

    Of the loss -log p of targets sampled from the model's own p, summed over the tokens that count.
    Row by row, so that the logits of one text exist at a time.
    """

    def loss(x, added, weights, key):
        with jax.default_matmul_precision("highest"):
            # A copy, since its head is exchanged within this trace.
            copy = nnx.merge(*nnx.split(model))
            if moments:
                copy.head = tapping.Tap(copy.head, "head", None, added, {})
            logits = logits_of(copy, _normed(copy, x)).astype(jnp.float32)
        return jnp.sum(sampled_losses(logits, key) * weights)

    size = model.config.vocab_size if moments else 0

    def of_row(total, row):
        x, weights, key = row
        # (S, words), or (S, 0): the gradient of what is added to logits is that of the logits.
        added = jnp.zeros((x.shape[0], size))
        gradient, g = jax.grad(loss, argnums=(0, 1))(x, added, weights, key)
        return total + tapping.gram(g, weights), gradient

    rows = (x, weights, jax.random.split(key, len(x)))
    total, gradient = jax.lax.scan(of_row, jnp.zeros((size, size)), rows)
    return gradient, total if moments else None


def sampled_losses(logits, key) -> jax.Array:
    """-log p of targets sampled from p = softmax(logits) (..., words); of shape (...)."""
    targets = jax.random.categorical(key, jax.lax.stop_gradient(logits))
    found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # -log p[t] = logsumexp(z) - z[t]
    return jax.nn.logsumexp(logits, axis=-1) - found


def _normed(model, x):
    norm = getattr(model.tower, "final_norm", None)
    return x if norm is None else norm(x)
