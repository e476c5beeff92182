"""The best of several ways to compress, by what a model then does on text that no statistics saw.

Predicted losses are sums over matrices taken one at a time; errors of many matrices add up to more,
and a text says little about some of them. So the knobs of a recipe are chosen by what counts, the
perplexity on held-out texts:

    spectra, once  ──►  ranks of every candidate  ──►  perplexity of each, one pass forward
                                                            │ the best
                                 layer by layer, with its ranks  ──►  kept if it is better still

One factorisation of a matrix serves all candidates: the leading columns and rows of a chain are the
chain of a smaller rank. They are measured as dense matrices in the model's own program, which is
compiled once.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mpojax import models, mpo
from mpojax.compression import layerwise, low_rank, sharing
from mpojax.compression.layerwise import Approximations
from mpojax.compression.low_rank import METHODS, Method, Ranks, Task
from mpojax.compression.matrices import Matrices
from mpojax.compression.report import Choice, MatrixRow
from mpojax.models import evaluation

# One of so many rows of the calibration texts is held out.
HELD_OUT = 8

# Measured for every budget: they differ in ranks alone.
CANDIDATES: dict[str, Method] = {
    f"ranks by loss{note}": dataclasses.replace(METHODS["pivoted"], exponent=exponent)
    for exponent, note in ((1.0, ""), (0.8, "^0.8"), (0.6, "^0.6"))
}
LAYERWISE = "layer by layer"
SHARED = "first cores shared"  # tried where a few pairs of layers promise to gain


def split(batches: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """(batches to learn from, batches that are held out): every eighth row of all batches.

    Of fewer than eight rows the last one; of a single row nothing is held out.
    """
    counts = [max(len(leaf) for leaf in jax.tree.leaves(batch)) for batch in batches]
    held = np.arange(sum(counts)) % HELD_OUT == min(sum(counts), HELD_OUT) - 1
    if len(held) < 2:
        return list(batches), []
    parts = [
        (batch, own)
        for batch, own in zip(batches, np.split(held, np.cumsum(counts)[:-1]), strict=True)
    ]
    return tuple(
        [
            jax.tree.map(lambda leaf, rows=own == wanted: leaf[rows], batch)
            for batch, own in parts
            if (own == wanted).any()
        ]
        for wanted in (False, True)
    )


class Measure:
    """How well a model with other matrices does on held-out texts; less is better.

    The perplexity of a decoder; of any other model the relative error of its output.
    """

    def __init__(self, matrices: Matrices, batches: Sequence[Mapping]):
        self.matrices = matrices
        self.batches = [matrices.inputs(b, "a held-out batch") for b in batches]
        self.tokens = int(sum(weights[0].sum() for _, weights in self.batches))
        self.predicts = isinstance(matrices.model, models.LanguageModel)
        self.unit = "perplexity" if self.predicts else "relative error of the output"

    def __call__(self, dense: Mapping[str, np.ndarray]) -> float:
        """Of the model with these matrices, by path, in place of its own."""
        model = self.matrices.with_chains({}, dense) if dense else self.matrices.model
        sums = [self._sums(model, batch, weights[0]) for batch, weights in self.batches]
        total, norm = np.sum(sums, axis=0)
        return evaluation.per_unit(total, norm) if self.predicts else float(np.sqrt(total / norm))

    def _sums(self, model, batch: Mapping, weights: np.ndarray) -> tuple[float, float]:
        """(nats, tokens) of a decoder, else (squared error, squared norm) of the output."""
        if self.predicts:
            mask = batch.get("attention_mask")
            scores = evaluation.token_scores(model, jnp.asarray(batch["input_ids"]), mask)
            counted = weights[:, 1:] != 0
            return float(np.sum(np.asarray(scores.nats, np.float64)[counted])), counted.sum()
        found, original = (
            np.asarray(self.matrices.call(m, batch)) for m in (model, self.matrices.model)
        )
        real = weights.reshape(*weights.shape, *(1,) * (found.ndim - weights.ndim))
        if found.shape[: weights.ndim] != weights.shape:  # one output for a whole text
            real = np.ones_like(found)
        return tuple(float(np.sum(np.square(y * real))) for y in (found - original, original))


def best(
    task: Task, held_out: Sequence[Mapping]
) -> tuple[Approximations, list[MatrixRow], Choice | None]:
    """As `low_rank.approximations` with the candidate that is best on held-out batches.

    Without any the recipe of most promise is taken, and nothing is measured.
    """
    method = METHODS["best"]
    if not held_out:
        logging.warning(
            "method='best' has no text to choose by: give more than one text, or held_out= beside "
            "a calibration. Layer by layer is taken, unmeasured."
        )
        return *low_rank.approximations(task, method), None
    task.steps = 3 * len(task.paths) + len(CANDIDATES) + 2
    losses = low_rank.predicted_losses(task, method)
    ranks = {name: low_rank.ranks_of(task, m, losses) for name, m in CANDIDATES.items()}
    measure = Measure(task.matrices, held_out)
    factors = _factors(task, method, ranks.values())
    found = {"dense": measure({})}
    task.advance("the dense model")
    for name, own in ranks.items():
        found[name] = measure(_matrices(factors, own))
        task.advance(name)
    chosen = min(ranks, key=found.get)
    own = ranks[chosen]
    made = {chosen: _chains(factors, own)}
    name = f"{chosen}, {LAYERWISE}"
    made[name] = low_rank.layer_by_layer(task, method, own)
    found[name] = measure(_all(made[name]))
    task.advance(LAYERWISE)
    rows = {name: low_rank.rows_of(task, method, each, own, losses) for name, each in made.items()}
    if sharing.refusal(task) is None and sharing.promising(task, method, losses):
        made[SHARED], _, rows[SHARED] = sharing.approximations(task, method, losses)
        found[SHARED] = measure(_all(made[SHARED]))
    chosen = min(made, key=found.get)
    return made[chosen], rows[chosen], Choice(measure.unit, measure.tokens, found, chosen)


def _all(made: Approximations) -> dict[str, np.ndarray]:
    return {path: made.matrix(path) for path in (*made.chains, *made.dense)}


def _factors(task: Task, method: Method, ranks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """float32 (A, B) of each matrix with the largest rank that a candidate gives it."""
    factorised, factors = task.factorised(method), {}
    for path in task.paths:
        if most := max(own[path] or 0 for own in ranks):
            factors[path] = tuple(np.float32(core) for core in factorised(path).cores(most))
        task.advance(path)
    return factors


def _cut(factors, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The chain of a smaller rank: the leading columns of A and rows of B."""
    first, second = factors
    return first[..., :rank], second[:rank]


def _matrices(factors: Mapping, ranks: Ranks) -> dict[str, np.ndarray]:
    return {p: mpo.to_matrix(_cut(factors[p], r)) for p, r in ranks.items() if r is not None}


def _chains(factors: Mapping, ranks: Ranks) -> Approximations:
    cut = {p: _cut(factors[p], r) for p, r in ranks.items() if r is not None}
    return Approximations({p: layerwise.chain(c, pivoted=True) for p, c in cut.items()}, {}, [])
