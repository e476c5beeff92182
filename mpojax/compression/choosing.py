"""The best of several ways to compress, by what a model then does on text that no statistics saw.

Predicted losses are sums over matrices taken one at a time; errors of many matrices add up to more,
and a text says little about some of them. So the knobs of a recipe are chosen by what counts, the
perplexity on held-out texts:

    spectra, once  ──►  ranks of every candidate  ──►  perplexity of each, one pass forward
                                                            │ the best
                                 layer by layer, with its ranks  ──►  kept if it is better still

Layer by layer takes most of the time. It gains where errors add up, and needs many tokens, for it
fits weights to what reaches them. It is not tried where the best of the others is within a fifth of
a nat of the original (of SmolLM2 at 80 %, 0.09 to 0.13 nats, worse in each of four runs; at 60 %,
0.5 to 0.7 nats, better in each of five), nor with fewer than six tokens for each of the most inputs
that a matrix has (of SmolLM2 with 4 and 5 worse by a tenth, of MiniLM with 7 better).

One factorisation of a matrix serves all candidates: the leading columns and rows of a chain are the
chain of a smaller rank. They are measured as dense matrices in the model's own program, which is
compiled once.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mpojax import files, models, mpo
from mpojax.compression import layerwise, low_rank, sharing
from mpojax.compression.layerwise import Approximations
from mpojax.compression.low_rank import METHODS, Method, Ranks, Task
from mpojax.compression.matrices import MASKS, Matrices, stored_type
from mpojax.compression.report import Choice, MatrixRow
from mpojax.models import evaluation

# One of so many rows of the calibration texts is held out.
HELD_OUT = 8

# Factors are kept from the first pass to the candidates up to this size, else made again.
_KEPT_BYTES = 2**30

# Measured for every budget: they differ in ranks alone.
CANDIDATES: dict[str, Method] = {
    f"ranks by loss{note}": dataclasses.replace(METHODS["pivoted"], exponent=exponent)
    for exponent, note in ((1.0, ""), (1.2, "^1.2"), (0.8, "^0.8"))
}
LAYERWISE = "layer by layer"
_CLOSE = 0.2  # nats a token above the original
_FEWEST = 6  # tokens for each input
SHARED = "first cores shared"  # tried where a few pairs of layers promise to gain


def split(batches: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """(batches to learn from, batches that are held out): every eighth row of all batches.

    Of fewer than eight rows the last one; of a single row nothing is held out. Rows of padding
    alone are left out of both.
    """
    real = [_real_rows(batch) for batch in batches]
    counted = np.concatenate(real)
    number = int(counted.sum())
    if number < 2:
        return list(batches), []
    held = counted & (np.cumsum(counted) % HELD_OUT == min(number, HELD_OUT) % HELD_OUT)
    parts = np.split(held, np.cumsum([len(rows) for rows in real])[:-1])
    kept = [rows & ~part for rows, part in zip(real, parts, strict=True)]
    return _rows(batches, kept), _rows(batches, parts)


def _real_rows(batch) -> np.ndarray:
    """Booleans: the rows of a batch that count."""
    real = np.ones(max(len(leaf) for leaf in jax.tree.leaves(batch)), bool)
    for name in MASKS if isinstance(batch, Mapping) else ():
        if batch.get(name) is not None:
            real &= np.reshape(batch[name], (len(real), -1)).any(axis=1)
    return real


def _rows(batches: Sequence[Mapping], chosen: Sequence[np.ndarray]) -> list[Mapping]:
    """Some rows of each batch; batches without any are left out."""
    pairs = zip(batches, chosen, strict=True)
    return [jax.tree.map(lambda leaf, o=own: leaf[o], batch) for batch, own in pairs if own.any()]


class Measure:
    """How well a model with other matrices does on held-out texts; less is better.

    The perplexity of a decoder; of any other model the relative error of its output.
    """

    def __init__(self, matrices: Matrices, batches: Sequence[Mapping]):
        self.matrices = matrices
        self.batches = [matrices.inputs(b, "a held-out batch") for b in batches]
        self.tokens = int(sum(weights[0].sum() for _, weights in self.batches))
        self.predicts = models.predicts_next(matrices.model)
        self.unit = "perplexity" if self.predicts else "relative error of the output"

    def __call__(self, dense: Mapping[str, np.ndarray]) -> float:
        """Of the model with these matrices, by path, in place of its own."""
        original = self.matrices.whole() if not dense or not self.predicts else None
        model = self.matrices.with_chains({}, dense) if dense else original
        sums = [self._sums(model, original, batch, weights[0]) for batch, weights in self.batches]
        total, norm = np.sum(sums, axis=0)
        return evaluation.per_unit(total, norm) if self.predicts else float(np.sqrt(total / norm))

    def _sums(self, model, original, batch: Mapping, weights: np.ndarray) -> tuple[float, float]:
        """(nats, tokens) of a decoder, else (squared error, squared norm) of the output."""
        if self.predicts:
            mask = batch.get("attention_mask")
            scores = evaluation.token_scores(model, jnp.asarray(batch["input_ids"]), mask)
            counted = weights[:, 1:] != 0
            return float(np.sum(np.asarray(scores.nats, np.float64)[counted])), counted.sum()
        found, wanted = (np.asarray(self.matrices.call(m, batch)) for m in (model, original))
        real = weights.reshape(*weights.shape, *(1,) * (found.ndim - weights.ndim))
        if found.shape[: weights.ndim] != weights.shape:  # one output for a whole text
            real = np.ones_like(found)
        return tuple(float(np.sum(np.square(y * real))) for y in (found - wanted, wanted))


def best(
    task: Task, held_out: Sequence[Mapping]
) -> tuple[Approximations, list[MatrixRow], Choice | None]:
    """As `low_rank.approximations` with the candidate that is best on held-out batches.

    Without any the recipe of most promise is taken, and nothing is measured.
    """
    method = METHODS["best"]
    if not held_out:
        logging.warning(
            "method='best' has no text to choose by: give more than one text, or held_out= next to "
            "a calibration. Layer by layer is taken, unmeasured."
        )
        return *low_rank.approximations(task, method), None
    factors, why_not = _Factors(task), _too_few(task)
    shareable = not sharing.refusal(task)
    # Spectra and rows of the report; layer by layer; of large models factors by themselves.
    passes = 2 + (not why_not) + (not factors.keeps_all)
    task.steps = passes * len(task.paths) + len(CANDIDATES) + 2
    task.steps += sharing.num_probes(task) if shareable else 0
    losses = low_rank.predicted_losses(task, method, factors.keep)
    ranks = {name: low_rank.ranks_of(task, m, losses) for name, m in CANDIDATES.items()}
    measure = Measure(task.matrices, held_out)
    found = _compared(task, measure, factors, ranks)
    chosen = min(ranks, key=found.get)
    is_close = measure.predicts and found[chosen] < found["dense"] * math.exp(_CLOSE)
    search = sharing.Search(task, method, losses) if shareable else None
    shares = search is not None and search.promising()
    if shares:
        task.steps += len(task.paths)
    if is_close and not why_not:  # layer by layer was counted
        task.steps -= len(task.paths)
        why_not = f"{chosen} is close to the original"
    made = {chosen: factors.chains(ranks[chosen])}
    if not why_not:
        name = f"{chosen}, {LAYERWISE}"
        made[name] = low_rank.layer_by_layer(task, method, ranks[chosen])
        found[name] = measure(_all(made[name]))
    task.advance(f"not {LAYERWISE}: {why_not}" if why_not else LAYERWISE)
    if shares:
        made[SHARED] = search.approximations()
        found[SHARED] = measure(_all(made[SHARED]))
    chosen = min(made, key=found.get)
    if chosen == SHARED:
        rows = search.rows(made[chosen])
    else:
        rows = low_rank.rows_of(task, method, made[chosen], losses)
    not_tried = {} if shares else {SHARED: sharing.refusal(task) or "no pair of layers gains"}
    not_tried |= {LAYERWISE: why_not} if why_not else {}
    return made[chosen], rows, Choice(measure.unit, measure.tokens, found, chosen, not_tried)


def _too_few(task: Task) -> str | None:
    """Why the texts are too short for layer by layer; None where they are not."""
    texts = (task.matrices.inputs(batch, "a calibration batch")[1] for batch in task.batches)
    tokens = sum(np.count_nonzero(weights[0]) for weights in texts)
    inputs = max(task.matrices.sizes[path][0] for path in task.paths)
    if not are_enough(tokens, inputs):
        return f"{tokens:,} tokens are few for {inputs:,} inputs"
    return None


def are_enough(tokens: int, inputs: int) -> bool:
    """True if so many tokens are worth going layer by layer, with up to so many inputs a matrix."""
    return tokens >= _FEWEST * inputs


def _compared(task: Task, measure: Measure, factors: "_Factors", ranks) -> dict[str, float]:
    """What is measured of the dense model, and of each candidate."""
    factors.complete(METHODS["best"], ranks.values())
    found = {"dense": measure({})}
    task.advance("dense")
    for name, own in ranks.items():
        found[name] = measure(factors.matrices(own))
        task.advance(name)
    return found


def _all(made: Approximations) -> dict[str, files.StoredArray]:
    """Every matrix of an approximation, multiplied out when it is put into a model."""
    sizes = {
        path: (shape.in_features, shape.out_features) for path, (shape, _) in made.chains.items()
    }
    sizes |= {path: w.shape for path, w in made.dense.items()}
    return {
        path: files.StoredArray(size, np.float32, lambda path=path: made.matrix(path))
        for path, size in sizes.items()
    }


def kept_bytes(sizes: Iterable[tuple[int, int]]) -> int:
    """Of the factors of every rank of matrices (in, out); 0 where they are too large to be kept."""
    # (in, r) and (r, out) in float32, with the largest rank r = min(in, out)
    total = 4 * sum(min(size) * sum(size) for size in sizes)
    return total if total <= _KEPT_BYTES else 0


class _Factors:
    """float32 (A, B) of each matrix, from which chains of any smaller rank are cut."""

    def __init__(self, task: Task):
        self.task = task
        self.found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.keeps_all = kept_bytes(task.matrices.sizes[path] for path in task.paths) > 0

    def keep(self, path: str, low_rank: mpo.LowRank) -> None:
        """Those of every rank, where all of them fit into memory."""
        if self.keeps_all:
            self._add(path, low_rank, min(low_rank.w.shape))

    def complete(self, method: Method, ranks) -> None:
        """Else, by factorising again, those of the largest rank that a candidate has."""
        if self.keeps_all:
            return

        def keep(path: str, low_rank: mpo.LowRank) -> None:
            if most := max(own[path] or 0 for own in ranks):
                self._add(path, low_rank, most)

        for _ in self.task.of_each(method, keep):
            pass

    def _add(self, path: str, low_rank: mpo.LowRank, rank: int) -> None:
        self.found[path] = tuple(np.float32(core) for core in low_rank.cores(rank))

    def _cut(self, ranks: Ranks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The chains of smaller ranks: the leading columns of A and rows of B."""
        chosen = {path: rank for path, rank in ranks.items() if rank is not None}
        return {p: (self.found[p][0][..., :r], self.found[p][1][:r]) for p, r in chosen.items()}

    def matrices(self, ranks: Ranks) -> dict[str, files.StoredArray]:
        """The matrix of each chain, multiplied out when it is put into a model."""
        return {path: _product(cores) for path, cores in self._cut(ranks).items()}

    def chains(self, ranks: Ranks) -> Approximations:
        kinds = {path: stored_type(self.task.matrices.weights(path)) for path in ranks}
        cut = self._cut(ranks).items()
        chains = {p: layerwise.chain(c, pivoted=True, dtype=kinds[p]) for p, c in cut}
        return Approximations(chains, {}, [])


def _product(cores) -> files.StoredArray:
    shape = cores[0].shape[1], cores[1].shape[2]
    return files.StoredArray(shape, np.float32, lambda: mpo.to_matrix(cores))
