"""PET search: a super-set of adapters, pruned while it trains to a budget of parameters.

After Lawton et al., "Neural Architecture Search for Parameter-Efficient Fine-tuning of Large
Pre-trained Language Models" (Findings of ACL 2023): the idea is theirs, formulas and settings are
our own. The super-set is a model with adapters (`mpojax.compression.add_adapters`) of any kind but
bottlenecks; training starts with all of it, and in rounds the groups that matter least to the
loss, to first order, are pruned. Groups are structured (one index of a bond, one bias vector) or
unstructured (one entry). Masks keep all shapes; what remains is cut out at the end
(`pet_superset.compact`).
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from mpojax import models, training
from mpojax.methods.pet import allocation, gauge, update_masks
from mpojax.methods.pet import groups as pet_groups
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import superset as pet_superset
from mpojax.methods.pet.settings import Settings
from mpojax.training import objectives
from mpojax.training import state as state_lib


class Search(training.Hook):
    """The rounds of a search as a hook of the training loop.

    The optimizer must be `update_masks.masked(...)`: its state holds the masks, so that a run that
    is stopped resumes exactly.

    Args:
      model: the super-set, as training starts.
      settings: see `Settings`.
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
        settings: Settings,
        loss: objectives.LossFunction,
        steps: int,
    ):
        self.settings, self.loss = settings, loss
        # Which arrays a stack holds; not their values.
        self.model = nnx.eval_shape(lambda: model)
        self.superset = pet_superset.read(model, settings.mode)
        self.places = settings.round_steps(steps)
        whole = self.superset.whole_masks()
        allocation.check_budget(settings.budget, self.superset.spec, self.superset.sizes, whole)
        self.budgets = allocation.schedule(
            self.superset.cost(whole), settings.budget, settings.rounds, settings.schedule
        )
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0  # that rounds took
        self._sums = None

    def after_step(self, loop: training.Loop) -> None:
        if loop.step in self.places:
            with loop.untimed():
                self._round(loop, self.places.index(loop.step))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, loop: training.Loop, saved: dict[str, Any]) -> None:
        self.history, self.seconds = list(saved["history"]), saved["seconds"]

    def masks(self, state: training.TrainState) -> dict[str, tuple[np.ndarray, ...]]:
        """Groups of each unit that are left."""
        flat = state_lib.flatten(_host(state.optimizer.mask))
        entries = models.logical_arrays(self.model, flat)
        return pet_masks.group_masks(entries, self.superset.spec)

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
        scores, state = self._scores(loop, state, masks, index)
        before = superset.cost(masks)
        kept = allocation.allocate(
            pet_groups.normalise(scores, masks, superset.spec, settings.balance),
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

    def _scores(self, loop: training.Loop, state, masks, index: int):
        """(scores of every group, the state, in the basis in which they hold)."""
        settings, spec = self.settings, self.superset.spec
        reference = self.superset.reference
        params = self._logical(_host(state.trainable))
        if settings.criterion in ("random", "magnitude"):
            rng = np.random.default_rng((settings.seed, index))
            return pet_groups.final_scores(
                settings.criterion, spec, params, reference=reference, rng=rng
            ), state
        if self._sums is None:
            self._sums = jax.jit(self._batch_sums)
        total = None
        for batch in range(settings.score_batches):
            sums = self._sums(state, loop.batch(loop.step + batch))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        scored, bonds = _host(total)
        scores = pet_groups.final_scores(settings.criterion, spec, params, scored)
        rotations = {}
        for unit, matrices in bonds.items():
            pairs = [gauge.score_basis(*p) for p in zip(matrices, masks[unit], strict=True)]
            rotations[unit] = [basis for basis, _ in pairs]
            signed = settings.criterion == "taylor_signed"
            scores[unit] = tuple(s if signed else np.abs(s) for _, s in pairs)
        if rotations:
            change = functools.partial(gauge.rotate, spec=self.superset.spec)
            state = self._rebased(state, lambda p, m: change(p, rotations=rotations, moments=m))
        return scores, state

    def _batch_sums(self, state: training.TrainState, batch):
        """(what a batch adds to the scores, open bonds of the chains): without dropout."""

        def loss(trainable):
            return self.loss(state.definition.merge(trainable, state.frozen), batch, None)[0]

        params, grads = (
            self._logical(tree) for tree in (state.trainable, jax.grad(loss)(state.trainable))
        )
        spec = self.superset.spec
        sums = pet_groups.batch_scores(
            params, grads, spec, self.settings.criterion, self.superset.reference
        )
        bonds = {}
        if self.settings.mode == "structured" and self.settings.gauge == "score":
            for unit, groups in spec.items():
                if groups.kind == "chain":
                    pairs = [[tree[name] for name in groups.arrays] for tree in (params, grads)]
                    bonds[unit] = pet_groups.open_bonds(*pairs)
        return sums, bonds

    def _regauged(self, state: training.TrainState, masks):
        """The state with every bond along singular vectors, and what is left in that order."""
        found = {}

        def change(params, moments):
            params, found["masks"], moments = gauge.regauge(
                params, masks, self.superset.spec, moments
            )
            return params, moments

        state = self._rebased(state, change)
        return self._with_masks(state, found["masks"]), found["masks"]

    def _rebased(self, state: training.TrainState, change) -> training.TrainState:
        """The state after `change(params, moments)` of logical arrays, on the host."""
        trees, second = [], []

        def collect(name, tree):
            trees.append(self._logical(_host(tree)))
            second.append(name == "nu")
            return tree

        update_masks.map_moments(collect, state.optimizer)
        params = self._logical(_host(state.trainable))
        params, moved = change(params, list(zip(trees, second, strict=True)))
        moved = iter(moved)
        optimizer = update_masks.map_moments(
            lambda name, tree: self._stacked(tree, next(moved)), state.optimizer
        )
        trainable = self._stacked(state.trainable, params)
        return dataclasses.replace(state, trainable=trainable, optimizer=optimizer)

    def _with_masks(self, state: training.TrainState, masks) -> training.TrainState:
        """The state with these masks: what is dropped is back at its reference, without moments."""
        superset = self.superset
        params = pet_masks.apply_mask(
            self._logical(_host(state.trainable)), masks, superset.spec, superset.reference
        )
        entries = {n: m.astype(np.float32) for n, m in superset.entry_masks(masks).items()}
        mask = self._stacked(state.optimizer.mask, entries)
        optimizer = state.optimizer._replace(mask=mask)
        optimizer = update_masks.map_moments(lambda name, tree: _masked(tree, mask), optimizer)
        trainable = self._stacked(state.trainable, params)
        return dataclasses.replace(state, trainable=trainable, optimizer=optimizer)

    def _logical(self, tree) -> dict[str, Any]:
        """{logical path: array} of the super-set's part of a tree like the parameters."""
        found = models.logical_arrays(self.model, state_lib.flatten(tree))
        return {name: found[name] for name in self.superset.sizes}

    def _stacked(self, tree, logical) -> dict:
        """The tree with these logical arrays in it; the rest, such as the head, as it was."""
        flat = state_lib.flatten(tree)
        new = models.stacked_arrays(self.model, logical)
        changed = {path: np.asarray(value, flat[path].dtype) for path, value in new.items()}
        return state_lib.nest(flat | jax.device_put(changed))


@jax.jit
def _masked(tree, mask):
    return jax.tree.map(jnp.multiply, tree, mask)


def _host(tree):
    return jax.tree.map(np.asarray, tree)
