"""Cost of a cut in the loss: scores of bond indices for dimension squeezing.

The counterpart of singular values: in the central gauge index a of a bond stands for one part of
the matrix, and its score is the change of the loss if that part went, to first order and with a
second-order term, since it is not small (`pet.scores`, criterion "hybrid").
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from flax import nnx

from mpojax import models, mpo
from mpojax.methods.pet import groups, scores
from mpojax.training import objectives
from mpojax.training import state as state_lib

Gradients = Callable[[models.Model], Iterable[Mapping[str, np.ndarray]]]


def gradients(
    model: models.Model, loss: objectives.LossFunction, batches: Iterable[dict]
) -> Iterator[dict[str, np.ndarray]]:
    """{array path: dL/dW} of every parameter, one dict for each batch; without dropout."""
    definition, params, frozen = state_lib.split(model, nnx.Param)

    @jax.jit
    def slopes(params, frozen, batch):
        def value(params):
            return loss(definition.merge(params, frozen), batch, None)[0]

        return jax.grad(value)(params)

    for batch in batches:
        flat = jax.device_get(state_lib.flatten(slopes(params, frozen, batch)))
        yield models.logical_arrays(model, flat)


def loss_spectra(
    canonical: Mapping[str, tuple], slopes: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """{matrix path: for each inner bond (d_k,)}: squared, the cost of dropping each index.

    In the form of singular values, so that `mpo.cheapest_cut` takes either.

    Args:
      canonical: {matrix path: (cores, the same in the central gauge, ...)}.
      slopes: gradients by the first cores, for each batch, such as `gradients` gives them.
    """
    names = {path: [f"{path}/cores/{k}" for k in range(len(c[0]))] for path, c in canonical.items()}
    spec = {path: groups.Chain(tuple(names[path])) for path in canonical}
    maps = {path: mpo.gauge_maps(cores[0], cores[1]) for path, cores in canonical.items()}
    params = {
        name: core
        for path, c in canonical.items()
        for name, core in zip(names[path], c[1], strict=True)
    }
    total = None
    for batch in slopes:
        moved = {}
        for path, own in names.items():
            parts = mpo.transform_gradients([batch[name] for name in own], maps[path])
            moved |= dict(zip(own, parts, strict=True))
        found = jax.device_get(scores.batch_scores(params, moved, spec, "hybrid"))
        total = found if total is None else jax.tree.map(np.add, total, found)
    whole = scores.final_scores("hybrid", spec, params, total)
    return {path: [np.sqrt(score) for score in bonds] for path, bonds in whole.items()}


def costs(canonical: Mapping[str, tuple], measure: str, slopes=None):
    """(what each index of each bond costs, how `mpo.cheapest_cut` is to count it).

    Args:
      canonical: {matrix path: (cores, the same in the central gauge, singular values)}.
      measure: one of `mpo.MEASURES`, or "loss".
      slopes: of "loss", see `loss_spectra`.
    """
    if measure != "loss":
        return {path: spectra for path, (_, _, spectra) in canonical.items()}, {"measure": measure}
    found = loss_spectra(canonical, slopes)
    # In units of the loss, not relative to the size of a matrix.
    # `mpo.cheapest_cut` divides by the sum of squares of the first bond: this weight undoes it.
    weights = {path: float(np.sum(np.square(bonds[0]))) for path, bonds in found.items()}
    return found, {"measure": "per_number", "weights": weights}
