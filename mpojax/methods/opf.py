"""OPF: fine-tuning with some matrices over-parameterised, no teacher, merged at the end.

After "Small Pre-trained Language Models Can be Fine-tuned as Large Models via
Over-Parameterization" (ACL 2023). Static: score the matrices of a fine-tuned model once
(`static_scores`, or `opdf.select` on gradients), give `opdf.prepare` the best of each role of the
original model. Dynamic: every few steps `opdf.select` names the next best, and `convert` makes
chains of them in the middle of a run.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import optax
from flax import nnx

from mpojax import models, training
from mpojax.methods import moments, opdf


def only(settings: opdf.Settings, paths: Sequence[str]) -> opdf.Settings:
    """The settings for just these matrices, without alignment.

    Raises:
      ValueError: no paths.
    """
    if not paths:
        raise ValueError("paths is empty: name at least one matrix.")
    pattern = "|".join(map(re.escape, paths))
    return dataclasses.replace(settings, matrices=pattern, alignment="none")


def convert(
    state: training.TrainState,
    paths: Sequence[str],
    settings: opdf.Settings,
    trainable: nnx.filterlib.Filter,
    make_optimizer: Callable[[models.Model], optax.GradientTransformation],
) -> tuple[training.TrainState, optax.GradientTransformation]:
    """The same run with more matrices as chains: it computes the same, step and moments go on.

    The moments of the new cores start afresh; see `moments.carried`.

    Args:
      state: of a run whose matrices `paths` are dense.
      paths: matrix paths, such as `opdf.select` gives them.
      settings: how long the chains are; its matrices and alignment do not count.
      trainable: filter of what is trained.
      make_optimizer: from a model; all it makes are of one kind.

    Returns:
      (state, optimizer of the new model): put both into the loop.

    Raises:
      ValueError: matrices that are chains already, or an optimizer whose state cannot follow.
    """
    old = state.model()
    new, _ = opdf.prepare(old, only(settings, paths))
    optimizer = make_optimizer(new)
    fresh = training.TrainState.create(new, trainable, optimizer).optimizer
    carried = moments.carried(state.optimizer, fresh, old, new, trainable)
    return state.with_model(new, trainable, optimizer, carried), optimizer


def static_scores(
    model: models.Model, paths: Sequence[str], loss: Callable[[models.Model], float]
) -> dict[str, float]:
    """|L - L(W = 0)| of each matrix (equation 6): one evaluation of the loss for each.

    Args:
      model: fine-tuned, dense in these matrices.
      paths: matrix paths.
      loss: model -> number.
    """
    arrays = models.to_arrays(model)
    whole, found = loss(model), {}
    for path in paths:
        name = models.dense_name(path)
        without = arrays | {name: 0 * arrays[name]}
        found[path] = abs(whole - loss(models.from_arrays(model.config, model.shapes, without)))
    return found
