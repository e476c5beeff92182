"""The search: training starts with all of a super-set, and in rounds the groups go that matter
least to the loss, to first order.

The super-set is a model with adapters (`mpojax.compression.add_adapters`) of any kind but
bottlenecks. Groups are structured (one index of a bond, one bias vector) or unstructured (one
entry). Masks keep all shapes; what remains is cut out at the end (`SuperSet.compacted`).
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from mpojax import checks, models, training
from mpojax.methods import moments
from mpojax.methods.pet import allocation
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import scores as pet_scores
from mpojax.methods.pet import superset as pet_superset
from mpojax.methods.pet.groups import Masks
from mpojax.training import objectives
from mpojax.training import state as state_lib
from mpojax.training.optimizer import Optimizer


@checks.settings("search.")
class SearchSettings:
    """Settings of a search over a super-set.

    Attributes:
      budget: parameters that remain at most; heads do not count.
      mode: "structured" or "unstructured".
      rounds: in which groups are dropped.
      warm_steps: before the first; below 1: a fraction of all steps. Updates start at zero, where
        every score is zero.
      last_round: step of the last; below 1: a fraction of all steps.
      criterion: "taylor", "hybrid", "magnitude" or "random", see `scores`.
      score_batches: batches of training data that a round's scores are summed over. Each costs
        about a step.
      by_cost: whether a score is divided by the parameters that its group frees; those of the
        random baseline never are.
      balance: "unit_mean", "factor_mean" or "none", see `scores.normalise`.
      gauge: in which bonds are scored: along singular vectors, "svd", or as trained, "raw".
      seed: of the random baseline.
    """

    budget: int = checks.field(checks.integer(1))
    mode: str = checks.field(checks.one_of(*pet_superset.MODES), "structured")
    rounds: int = checks.field(checks.integer(1), 10)
    warm_steps: float = checks.field(checks.number(above=0), 0.05)
    last_round: float = checks.field(checks.number(above=0), 0.3)
    criterion: str = checks.field(checks.one_of(*pet_scores.CRITERIA), "taylor")
    score_batches: int = checks.field(checks.integer(1), 8)
    by_cost: bool = checks.field(checks.flag(), True)
    balance: str = checks.field(checks.one_of(*pet_scores.BALANCES), "unit_mean")
    gauge: str = checks.field(checks.one_of("svd", "raw"), "svd")
    seed: int = checks.field(checks.integer(0), 0)

    def round_steps(self, steps: int) -> list[int]:
        """After which of so many steps the rounds take place.

        Raises:
          ValueError: rounds that do not fit into the steps.
        """
        first, last = (
            round(value * steps) if value < 1 else int(value)
            for value in (self.warm_steps, self.last_round)
        )
        first = max(1, first)
        # t_k = first + ceil((last - first) k / rounds), k = 1..rounds: the last round is at `last`.
        found = [
            first + math.ceil((last - first) * t / self.rounds) for t in range(1, self.rounds + 1)
        ]
        if last > steps or len(set(found)) < self.rounds:
            raise ValueError(
                f"{self.rounds} rounds do not fit between step {first} and step {last} of {steps}: "
                "each takes at least one step. Lower search.rounds or warm_steps, or raise "
                "search.last_round or the steps."
            )
        return found


class MaskedState(NamedTuple):
    """State of a masked optimizer.

    Attributes:
      mask: like the parameters: 1 where an entry is trained, 0 where it stays as it is.
      inner: of the optimizer.
    """

    mask: Any
    inner: Any


def masked(optimizer: Optimizer, masks: Mapping | None = None) -> Optimizer:
    """The optimizer, with gradients and updates multiplied by a mask that its state holds.

    The mask is part of the state, so that it is saved with it and may change without compiling
    again. Gradients are masked before norms are clipped, updates after decay is added: a dropped
    entry neither moves nor counts.

    Args:
      optimizer: from `make_optimizer`.
      masks: nested like the parameters; None for all ones.
    """

    def init(params):
        # Own buffers: the given ones may be donated by a step.
        mask = jax.tree.map(jnp.ones_like, params) if masks is None else masks
        return MaskedState(jax.tree.map(jnp.array, mask), optimizer.init(params))

    def update(updates, state, params=None):
        # m o g: dropped entries have no part in the norm by which gradients are clipped.
        updates = jax.tree.map(jnp.multiply, updates, state.mask)
        updates, inner = optimizer.update(updates, state.inner, params)
        return jax.tree.map(jnp.multiply, updates, state.mask), MaskedState(state.mask, inner)

    return optimizer._replace(
        init=init,
        update=update,
        learning_rate=lambda state: optimizer.learning_rate(state.inner),
        metrics=lambda state: optimizer.metrics(state.inner),
    )


class Search(training.Hook):
    """The rounds of a search as a hook of the training loop.

    The optimizer must be `masked(...)`: its state holds the masks, so that a run that is stopped
    resumes exactly.

    Args:
      model: the super-set, as training starts.
      settings: see `SearchSettings`.
      loss: what training minimises; scores take it without dropout.
      steps: of the whole run.

    Raises:
      ValueError: a budget above the super-set or below its smallest group; rounds that do not fit;
        adapters that cannot be searched.
    """

    name, order = "pet_search", 10

    def __init__(
        self,
        model: models.Model,
        settings: SearchSettings,
        loss: objectives.LossFunction,
        steps: int,
    ):
        self.settings, self.loss = settings, loss
        # Which arrays a stack holds; not their values.
        self.model = nnx.eval_shape(lambda: model)
        self.superset = pet_superset.read(model, settings.mode)
        self.round_steps = settings.round_steps(steps)
        whole = self.superset.whole_masks()
        allocation.check_budget(settings.budget, self.superset.spec, self.superset.sizes, whole)
        self.budgets = allocation.schedule(
            self.superset.cost(whole), settings.budget, settings.rounds
        )
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0  # that rounds took
        self._batch_sums = jax.jit(self._sums_of_batch)

    def after_step(self, loop: training.Loop) -> None:
        if loop.step in self.round_steps:
            with loop.untimed():
                self._round(loop, self.round_steps.index(loop.step))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, loop: training.Loop, saved: dict[str, Any]) -> None:
        self.history, self.seconds = list(saved["history"]), saved["seconds"]

    def masks(self, state: training.TrainState) -> Masks:
        """Groups of each unit that are left."""
        return pet_masks.group_masks(self._logical(state.optimizer.mask), self.superset.spec)

    def restarted(
        self, model: models.Model, masks, accept, optimizer, seed: int
    ) -> training.TrainState:
        """The start of a training of nothing but what is left, from the start of the super-set."""
        state = training.TrainState.create(model, accept, optimizer, seed=seed)
        return self._with_masks(state, masks)

    def _round(self, loop: training.Loop, index: int) -> None:
        loop.flush()
        start = time.perf_counter()
        state, superset, settings = loop.state, self.superset, self.settings
        masks = self.masks(state)
        if settings.mode == "structured" and settings.gauge == "svd":
            state, masks = self._regauged(state, masks)
        scores = self._scores(loop, state, index)
        before = superset.cost(masks)
        kept = allocation.allocate(
            pet_scores.normalise(scores, masks, superset.spec, settings.balance),
            superset.spec,
            superset.sizes,
            self.budgets[index],
            masks,
            by_cost=settings.by_cost and settings.criterion != "random",
        )
        loop.replace(state=self._with_masks(state, kept))
        left = superset.cost(kept)
        self.history.append(
            {
                "round": index + 1,
                "step": loop.step,
                "budget": int(self.budgets[index]),
                "cost": left,
                "dropped": before - left,
                "units": sum(any(m.any() for m in unit) for unit in kept.values()),
            }
        )
        self.seconds += time.perf_counter() - start
        loop.log({"search/cost": left, "search/budget": self.budgets[index]})
        logging.info("round %d: %d of %d parameters left", index + 1, left, before)

    def _scores(self, loop: training.Loop, state: training.TrainState, index: int):
        """Scores of every group."""
        settings, total = self.settings, None
        if settings.criterion in ("taylor", "hybrid"):
            for batch in range(settings.score_batches):
                # The batches of the next steps, before they are learnt.
                sums = self._batch_sums(state, loop.batch(loop.step + batch))
                total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return pet_scores.final_scores(
            settings.criterion,
            self.superset.spec,
            self._logical(state.trainable),
            _host(total),
            reference=self.superset.reference,
            # By round: a resumed run ranks as the first one would have.
            rng=np.random.default_rng((settings.seed, index)),
        )

    def _sums_of_batch(self, state: training.TrainState, batch):
        """Part of the scores from one batch, without dropout."""

        def loss(trainable):
            return self.loss(state.definition.merge(trainable, state.frozen), batch, None)[0]

        params, grads = (
            models.logical_arrays(self.model, state_lib.flatten(tree))
            for tree in (state.trainable, jax.grad(loss)(state.trainable))
        )
        return pet_scores.batch_scores(
            params, grads, self.superset.spec, self.settings.criterion, self.superset.reference
        )

    def _regauged(self, state: training.TrainState, masks: Masks):
        """The state with every bond along singular vectors, and what is left in that order."""
        held = [(self._logical(tree), squared) for tree, squared in moments.trees(state.optimizer)]
        params, masks, held = pet_masks.regauge(
            self._logical(state.trainable), masks, self.superset.spec, held
        )
        old = [tree for tree, _ in moments.trees(state.optimizer)]
        new = [self._stacked(tree, moved) for tree, moved in zip(old, held, strict=True)]
        optimizer = moments.with_trees(state.optimizer, new)
        trainable = self._stacked(state.trainable, params)
        state = dataclasses.replace(state, trainable=trainable, optimizer=optimizer)
        return self._with_masks(state, masks), masks

    def _with_masks(self, state: training.TrainState, masks: Masks) -> training.TrainState:
        """The state with these masks: what is dropped is back at its reference, without moments."""
        params = self.superset.apply_mask(self._logical(state.trainable), masks)
        entries = {n: m.astype(np.float32) for n, m in self.superset.entry_masks(masks).items()}
        mask = self._stacked(state.optimizer.mask, entries)
        optimizer = state.optimizer._replace(mask=mask)
        # An entry that is gone must not come back by its momentum.
        held = [_multiplied(tree, mask) for tree, _ in moments.trees(optimizer)]
        optimizer = moments.with_trees(optimizer, held)
        trainable = self._stacked(state.trainable, params)
        return dataclasses.replace(state, trainable=trainable, optimizer=optimizer)

    def _logical(self, tree) -> dict[str, np.ndarray]:
        """{logical path: array on the host} of the super-set in a tree like the parameters."""
        found = models.logical_arrays(self.model, state_lib.flatten(_host(tree)))
        return {name: found[name] for name in self.superset.sizes}

    def _stacked(self, tree, logical) -> dict:
        """The tree with these logical arrays in it; the rest, such as the head, as it was."""
        flat = state_lib.flatten(tree)
        new = models.stacked_arrays(self.model, logical)
        changed = {path: np.asarray(value, flat[path].dtype) for path, value in new.items()}
        return state_lib.nest(flat | jax.device_put(changed))


@jax.jit
def _multiplied(tree, mask):
    return jax.tree.map(jnp.multiply, tree, mask)


def _host(tree):
    return jax.tree.map(np.asarray, tree)
