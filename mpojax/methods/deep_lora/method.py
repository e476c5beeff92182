"""Deep LoRA as a method of runs: `config.method="deep_lora"`, settings `config.deep_lora`."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mpojax import models
from mpojax.methods import deep_lora, mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.mpop.lightweight import ADAPTERS
from mpojax.training import state as state_lib
from mpojax.training.optimizer import Optimizer


class DeepLoRA(protocol.Method):
    """Tuning of deep updates and the head; the result has updates of the ranks that were found."""

    Settings = deep_lora.DeepLoRASettings
    section = "deep_lora"
    can_only_evaluate = False

    def check(self, options: options_lib.Options) -> None:
        options_lib.check_default(
            options,
            ("adapters", "keep_best", "eval_every"),
            ": config.deep_lora makes the adapters, and their last state is reported",
        )
        if options.training.trainable != ADAPTERS:
            raise ValueError(
                f"config.trainable={options.training.trainable!r} must be 'adapters': deep updates "
                "are learnt, and the head."
            )

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        """Adds the updates, where the first gradient tells."""
        own, rows = self.settings, slice(0, setup.train.batch_size)
        batches = (setup.train.rows(k, rows) for k in range(own.gradient_batches))

        def gradients(paths):
            return deep_lora.first_gradients(setup.model, paths, setup.loss, batches)

        seed = setup.options.training.seed
        return dataclasses.replace(
            setup, model=deep_lora.started(setup.model, own, gradients, seed)
        )

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        own = self.settings
        model, trainable = mpop.with_trainable(setup.model, ADAPTERS)
        optimizer = setup.make_optimizer(model)
        if own.basis_rate is not None:
            # The bases: the first and the last core.
            outer = rf".*/adapter/cores/(0|{own.num_cores - 1})"
            optimizer = slower(optimizer, outer, own.basis_rate)
        result = setup.fit(setup.state(model, trainable, optimizer), optimizer, folder)
        if result.interrupted:
            return None
        deep = result.state.model()
        shallow, ranks = deep_lora.compressed(deep, own.tolerance)
        extra = {
            "fit": result.summary(),
            "deep_metrics": setup.evaluate(deep, setup.dev),
            "train_parameters": models.count_parameters(deep)["adapter"],
            "ranks": ranks,
        }
        made = setup.finished(shallow, models.adapter_filter(shallow), extra)
        return dataclasses.replace(made, stop_requested=result.stop_requested is not None)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        return {"rank": self.settings.rank}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        ranks = sorted(result["ranks"].values())
        return [
            f"  {len(ranks)} updates of rank {result['rank']} found ranks {ranks[0]} to "
            f"{ranks[-1]}, {sum(ranks) / len(ranks):.1f} on average"
        ]


def slower(optimizer: Optimizer, pattern: str, factor: float) -> Optimizer:
    """The optimizer, but parameters whose whole path matches move by `factor` times as much."""

    def update(gradients, state, params=None):
        changes, state = optimizer.update(gradients, state, params)

        def scaled(path, change):
            return factor * change if re.fullmatch(pattern, path) else change

        return state_lib.map_with_path(scaled, changes), state

    return optimizer._replace(update=update)
