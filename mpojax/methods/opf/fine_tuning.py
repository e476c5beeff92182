"""OPF: fine-tuning with some matrices over-parameterised, no teacher, merged at the end.

After "Small Pre-trained Language Models Can be Fine-tuned as Large Models via
Over-Parameterization" (ACL 2023). Static: matrices of a model that is already fine-tuned are scored
once (`static_scores`), and the best of each role of the original model become chains before the
training. Dynamic: every few steps the next best by |<W, dL/dW>| become chains, in the middle of the
run (`Dynamic`).
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx

from mpojax import checks, models, training
from mpojax.methods import moments, opdf
from mpojax.methods.pet import groups
from mpojax.methods.pet import scores as pet_scores
from mpojax.training import objectives
from mpojax.training import state as state_lib

STRATEGIES = ("static", "dynamic")


@checks.settings("opf.")
class OPFSettings:
    """Settings of which matrices are over-parameterised.

    Attributes:
      strategy: "static" or "dynamic".
      num_per_role: N, matrices of each role in all.
      num_per_round: n, of each role at a time ("dynamic").
      interval: steps between two rounds ("dynamic"); below 1: a fraction of all steps. The paper
        gives no number.
      score_batches: batches of training data that scores are summed over.
      num_inner_cores: cores between the outer two of every chain.
      matrices: regular expression over matrix paths.
    """

    strategy: str = checks.field(checks.one_of(*STRATEGIES), "dynamic")
    num_per_role: int = checks.field(checks.integer(1), 8)
    num_per_round: int = checks.field(checks.integer(1), 2)
    interval: float = checks.field(checks.number(above=0), 0.05)
    score_batches: int = checks.field(checks.integer(1), 8)
    num_inner_cores: int = checks.field(checks.integer(0), 9)
    matrices: str = checks.field(checks.expression(), opdf.MATRICES)

    @property
    def chains(self) -> opdf.OPDFSettings:
        """Of every chain."""
        return opdf.OPDFSettings(
            num_inner_cores=self.num_inner_cores, matrices=self.matrices, alignment="none"
        )

    def round_steps(self, steps: int) -> list[int]:
        """After which of so many steps matrices are chosen, if there are enough.

        Raises:
          ValueError: the last of them would come after the end.
        """
        every = max(1, round(self.interval * steps) if self.interval < 1 else int(self.interval))
        # Rounds until each role has N: ceil(N / n).
        times = -(-self.num_per_role // self.num_per_round)
        if times * every >= steps:
            raise ValueError(
                f"opf.interval={self.interval!r} and opf.num_per_round={self.num_per_round} choose "
                f"{self.num_per_role} matrices of each role by step {times * every} of "
                f"{steps}, and nothing would be trained with all of them. Lower opf.interval or "
                "opf.num_per_role, or raise opf.num_per_round or the steps."
            )
        return [every * (time + 1) for time in range(times)]


def only(settings: opdf.OPDFSettings, paths: Sequence[str]) -> opdf.OPDFSettings:
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
    settings: opdf.OPDFSettings,
    trainable: nnx.filterlib.Filter,
    make_optimizer: Callable[[models.Model], optax.GradientTransformation],
) -> tuple[training.TrainState, optax.GradientTransformation]:
    """The same run with more matrices as chains: it computes the same; step and moments are kept.

    The moments of the new cores start afresh; see `moments.copy_by_name`.

    Args:
      state: of a run whose matrices `paths` are dense.
      paths: matrix paths, such as `select` gives them.
      settings: how long the chains are; its matrices and alignment do not count.
      trainable: filter of what is trained.
      make_optimizer: from a model; all it makes are of one kind.

    Returns:
      (state, optimizer of the new model): put both into the loop.

    Raises:
      ValueError: matrices that are chains already, or an optimizer whose state cannot follow.
    """
    old = state.model()
    new, _ = opdf.over_parameterise(old, only(settings, paths))
    optimizer = make_optimizer(new)
    fresh = training.TrainState.create(new, trainable, optimizer).optimizer
    copied = moments.copy_by_name(state.optimizer, fresh, old, new)
    return state.with_model(new, trainable, optimizer, copied), optimizer


def candidates(model: models.Model, settings: OPFSettings) -> list[str]:
    """Matrices that may become chains: dense, and matched by the settings.

    Raises:
      ValueError: none is matched.
    """
    planned = opdf.planned_shapes(model.config, settings.chains)
    return [path for path in planned if path not in model.shapes]


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
        # The same structure: the compiled loss is used again for every matrix.
        without = arrays | {name: 0 * arrays[name]}
        found[path] = abs(whole - loss(models.from_arrays(model.config, model.shapes, without)))
    return found


def dynamic_scores(
    state: training.TrainState,
    paths: Sequence[str],
    loss: objectives.LossFunction,
    batches: Iterable[dict],
) -> dict[str, float]:
    """|<W, dL/dW>| of each matrix (equation 7), the gradient summed over batches.

    To first order the change of the loss if the matrix were zero: `scores.score_groups` of
    whole matrices.

    Args:
      state: trains the matrices.
      paths: of dense matrices.
      loss: what training minimises; taken without dropout.
      batches: of training data.
    """
    names = {path: models.dense_name(path) for path in paths}
    spec = {path: groups.Module((name,)) for path, name in names.items()}
    model = nnx.eval_shape(state.model)

    @jax.jit
    def scores(state, batch):
        def value(trainable):
            return loss(state.definition.merge(trainable, state.frozen), batch, None)[0]

        # Scored where they are logical: one matrix of each layer, not a stack of all.
        trees = state.trainable, jax.grad(value)(state.trainable)
        params, grads = (models.logical_arrays(model, state_lib.flatten(tree)) for tree in trees)
        return pet_scores.score_groups(params, grads, spec)

    total = functools.reduce(
        functools.partial(jax.tree.map, jnp.add), (scores(state, batch) for batch in batches)
    )
    return {path: abs(float(score)) for path, (score,) in jax.device_get(total).items()}


def select(
    scores: Mapping[str, float],
    number: int,
    chosen: Sequence[str] = (),
    num_per_role: float = math.inf,
) -> list[str]:
    """Matrices that matter most, `number` of each role: what OPF over-parameterises.

    A role is the end of a path, such as attention/query.

    Args:
      scores: {matrix path: how much the loss depends on it}, such as `static_scores` and
        `dynamic_scores` give them.
      number: of each role.
      chosen: paths that are chosen already.
      num_per_role: together with those, at most so many of each role.

    Returns:
      Paths, most important first within each role, roles in order of appearance.
    """
    have = collections.Counter(map(role, chosen))
    roles: dict[str, list[tuple[float, str]]] = {}
    for path, score in scores.items():
        if path not in chosen:
            roles.setdefault(role(path), []).append((-float(score), path))
    return [
        path
        for name, entries in roles.items()
        for _, path in sorted(entries)[: max(0, min(number, num_per_role - have[name]))]
    ]


def role(path: str) -> str:
    """A matrix path without its stack and layer.

    >>> role("decoder/layers/11/attention/query")
    'attention/query'
    """
    return re.sub(r"^(.*/)?layers/\d+/", "", path)


class Dynamic(training.Hook):
    """Dynamic selection: makes chains of the next best matrices until each role has N.

    Args:
      model: as training starts.
      settings: see `OPFSettings`.
      loss: what training minimises.
      trainable: filter of what is trained; it must take the matrices.
      make_optimizer: from a model; all it makes are of one kind.
      steps: of the whole run.
      precompute: of the training step of a model with chains, see `training.fit`.

    Attributes:
      chosen: [(step, paths)], in order.

    Raises:
      ValueError: see `OPFSettings.round_steps` and `candidates`.
    """

    name, order = "opf", 10

    def __init__(
        self,
        model: models.Model,
        settings: OPFSettings,
        loss: objectives.LossFunction,
        trainable: nnx.filterlib.Filter,
        make_optimizer: Callable[[models.Model], optax.GradientTransformation],
        steps: int,
        precompute: Callable[[models.Model], Any] | None = None,
    ):
        candidates(model, settings)
        self.settings, self.loss, self.trainable = settings, loss, trainable
        self.make_optimizer, self.precompute = make_optimizer, precompute
        self.round_steps = settings.round_steps(steps)
        self.chosen: list[tuple[int, list[str]]] = []

    def after_step(self, loop: training.Loop) -> None:
        if loop.step in self.round_steps:
            with loop.untimed():
                self._choose(loop)

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen}

    def load_state_dict(self, loop: training.Loop, saved: dict[str, Any]) -> None:
        self.chosen = [(int(step), list(paths)) for step, paths in saved["chosen"]]
        if paths := self.paths:
            self._convert(loop, paths)

    @property
    def paths(self) -> list[str]:
        """All that are chosen."""
        return [path for _, paths in self.chosen for path in paths]

    def _choose(self, loop: training.Loop) -> None:
        # The last metrics belong to the state as it is: fetched before it is replaced.
        loop.flush()
        settings = self.settings
        paths = candidates(loop.state.model(), settings)
        # Those that training reads next.
        batches = (loop.batch(loop.step + k) for k in range(settings.score_batches))
        scores = dynamic_scores(loop.state, paths, self.loss, batches)
        taken = select(scores, settings.num_per_round, self.paths, settings.num_per_role)
        if not taken:
            return
        self.chosen.append((loop.step, taken))
        self._convert(loop, taken)
        logging.info("step %d: %s become chains", loop.step, ", ".join(taken))

    def _convert(self, loop: training.Loop, paths: Sequence[str]) -> None:
        state, optimizer = convert(
            loop.state, paths, self.settings.chains, self.trainable, self.make_optimizer
        )
        step = training.TrainStep(
            self.loss,
            optimizer,
            grad_accum_steps=loop.step_function.grad_accum_steps,
            precompute=self.precompute,
        )
        # Paths of the new cores are sharded by the rules of the new model.
        loop.rules = training.model_rules(state.model())
        loop.replace(state=state, step_function=step)


def report(model: models.Model, chosen: Sequence[tuple[int, Sequence[str]]]) -> dict[str, Any]:
    """Metadata of a run: sizes while it learns and after merging, and what was chosen when."""
    # Below 0: exact chains have more parameters than their matrices.
    dense = sum(shape.num_dense_params - shape.num_params for shape in model.shapes.values())
    size = int(sum(models.count_parameters(model).values()))
    return {
        "train_parameters": size,
        "inference_parameters": int(size + dense),
        "chosen": [{"step": step, "matrices": list(paths)} for step, paths in chosen],
    }


def losses(
    loss: objectives.LossFunction, batches: Sequence[dict]
) -> Callable[[models.Model], float]:
    """model -> its mean loss over batches, without dropout: what `static_scores` takes."""
    value = nnx.jit(lambda model, batch: loss(model, batch, None)[0])
    return lambda model: float(np.mean([value(model, batch) for batch in batches]))
