"""PET search as a method of runs: `config.method="pet_search"`, settings `config.search`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from mpojax import checks, compression, io, models, training
from mpojax.methods import mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import search as pet_search

AFTER_SEARCH = ("continue", "retrain")


class PETSearch(protocol.Method):
    """Pruning of a super-set of adapters to a budget; without a budget, tuning of the adapters.

    Args:
      settings: of the search, or None.
      after_search: "continue" the training of what is left, or "retrain" it from its start.
      series: what the method is called in plots.
    """

    Settings = pet_search.SearchSettings
    section = "search"
    can_only_evaluate = False

    def __init__(
        self,
        settings: pet_search.SearchSettings | None,
        after_search: str = "continue",
        series: str = "",
    ):
        super().__init__(settings)
        self.after_search, self.series = after_search, series
        checks.check_value("config.after_search", after_search, checks.one_of(*AFTER_SEARCH))

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "PETSearch":
        fields, made = options_lib.plain(config.get(cls.section) or {}), None
        if fields.get("budget"):
            # The random criterion differs from run to run.
            seed = fields.get("seed", 0) + config["seed"]
            made = checks.from_mapping(cls.Settings, fields | {"seed": seed}, "config.search")
        more = {name: config[name] for name in ("after_search", "series") if name in config}
        return cls(made, **more)

    def check(self, options: options_lib.Options) -> None:
        if self.settings is None:
            return
        own = options.training
        self.settings.round_steps(own.steps)
        checks.check_clashes(
            {
                "config.search has nothing to search: give the super-set as config.adapters, such "
                'as ((".*/(query|value)", {"rank": 8}),)': not options.compression.adapters,
                f"config.trainable={own.trainable!r}: a search trains the adapters; set it to "
                "'adapters'": own.trainable != "adapters",
            }
        )
        why = ": a search reports its last state"
        options_lib.check_default(options, ("keep_best", "eval_every"), why)

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        if self.settings is not None:  # a mistake in it shows before the folder is claimed
            self._search(setup)
        return setup

    def _search(self, setup: protocol.Setup) -> pet_search.Search:
        steps = setup.options.training.steps
        return pet_search.Search(setup.model, self.settings, setup.loss, steps)

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        if self.settings is None:
            result = super().train(setup, folder)
            if result is not None and setup.options.training.trainable == "adapters":
                result.extra.update(_saved(result.state.model(), folder))
            return result
        accept = models.adapter_filter(setup.model)
        optimizer = pet_search.masked(setup.make_optimizer(setup.model))
        search, state = self._search(setup), setup.state(setup.model, accept, optimizer)
        variant = setup.options.training.variant
        found = setup.fit(
            state, optimizer, folder / "search", label=f"{variant} search".strip(), hooks=[search]
        )
        if found.interrupted:
            return None
        masks, state = search.masks(found.state), found.state
        extra = {"fit": found.summary(), "search_seconds": search.seconds}
        if self.after_search == "retrain":
            seed = setup.options.training.seed
            again = search.restarted(setup.model, masks, accept, optimizer, seed)
            label = f"{variant} retraining".strip()
            found = setup.fit(again, optimizer, folder / "retrain", label=label)
            if found.interrupted:
                return None
            state, extra["retrain_fit"] = found.state, found.summary()
        result = _finished(setup, search, masks, state, folder)
        result.extra.update(extra)
        return dataclasses.replace(result, stop_requested=found.stop_requested is not None)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        model = result.state.model()
        head = mpop.head_parameters(model)
        trained = mpop.parameter_counts(model, result.trainable)["trainable"]
        return {
            "method": self.series,
            "search": None,
            "search_seconds": 0.0,
            "head_parameters": head,
            "updates": trained - head,
        }

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        if not result["search"]:
            return []
        first, last = (result["search"]["history"][k] for k in (0, -1))
        whole = first["cost"] + first["dropped"]
        return [
            f"  {result['updates']:,} parameters of {whole:,} kept (budget {last['budget']:,})",
            f"  the head apart; the adapter takes {result['adapter_bytes']:,} bytes",
        ]


def _saved(model: models.Model, folder: pathlib.Path, mask=None) -> dict[str, int]:
    """Writes the adapter; the size of its files."""
    adapter = folder / "adapter"
    if jax.process_index() == 0:
        io.save_adapter(model, adapter, mask=mask)
    return {"adapter_bytes": sum(path.stat().st_size for path in adapter.glob("*"))}


def _finished(
    setup: protocol.Setup, search: pet_search.Search, masks, state, folder: pathlib.Path
) -> protocol.Result:
    """What is left of the super-set, cut out, evaluated and saved."""
    superset, model, entries = search.superset, state.model(), None
    rows = pet_masks.report(masks, superset.spec, superset.sizes)
    updates = superset.cost(masks)
    if search.settings.mode == "structured":
        model = superset.compacted(model, masks)
    else:
        entries = superset.entry_masks(masks)
    accept = models.adapter_filter(model)
    small = training.TrainState.create(model, accept, setup.make_optimizer(model))
    extra = {
        "search": {"history": search.history, "kept": rows},
        "updates": updates,
        "steps": setup.options.training.steps,
        "trained": updates + mpop.head_parameters(model),
        **_saved(model, folder, entries),
    }
    # Merged: one program evaluates whatever was kept.
    metrics = setup.evaluate(compression.merge(model), setup.dev)
    return protocol.Result(small, metrics, accept, extra)
