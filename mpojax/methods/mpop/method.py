"""Dimension squeezing as a method: `config.method="squeezing"`, settings `config.squeeze`."""

import pathlib
from collections.abc import Mapping
from typing import Any

from mpojax import checks, training
from mpojax.methods import mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.mpop import costs, settings, squeezing


class Squeezing(protocol.Method):
    """Tuning of a model in MPO form, then cuts of its bonds, each followed by more tuning.

    What is held out decides about each cut, or else what is reported.
    """

    Settings = settings.SqueezingSettings
    section = "squeeze"

    def check(self, options: options_lib.Options) -> None:
        own = options.training
        has_rules = bool(options.compression.compression_rules)
        checks.check_clashes(
            {
                f"config.trainable={own.trainable!r} cannot be squeezed; allowed are "
                f"{sorted(mpop.FILTERS)}": own.trainable not in mpop.FILTERS,
                "config.squeeze needs a model in MPO form: give config.matrices or rules": (
                    not has_rules and not options.model.init_checkpoint
                ),
                "config.steps=0 only evaluates: give the steps before the first cut, or no "
                "config.squeeze": not own.steps,
                "config.keep_best has no meaning with config.squeeze, which decides itself": (
                    own.keep_best
                ),
            }
        )

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        own, train = setup.options.training, setup.train
        total = own.steps + self.settings.max_phases * self.settings.steps
        deciding = setup.dev if setup.held_out is None else setup.held_out
        decide = setup.decide or setup.evaluate

        def tune(state, optimizer, steps, phase_folder, description):
            label = f"{own.variant} {description}".strip()
            hooks = [training.Evaluate("decide", deciding, decide)]
            return setup.fit(state, optimizer, phase_folder, steps=steps, label=label, hooks=hooks)

        def gradients(model):
            rows = slice(0, train.batch_size)
            batches = (train.rows(step, rows) for step in range(self.settings.score_batches))
            return costs.gradients(model, setup.loss, batches)

        found = squeezing.Squeezing(
            model=setup.model,
            settings=self.settings,
            trainable=own.trainable,
            make_optimizer=lambda model: setup.make_optimizer(model, total),
            train=tune,
            metric=f"decide/{setup.metric}",
            sign=setup.sign,
            first_steps=own.steps,
            folder=folder / "squeezing",
            seed=own.seed,
            gradients=gradients,
        ).run()
        if found.state is None:
            return None
        return protocol.Result(
            found.state,
            setup.evaluate(found.state, setup.dev, setup.mesh),
            mpop.trainable_filter(own.trainable),
            {"squeeze": {"why": found.why, "phases": found.phases}},
        )

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        squeezed = result["squeeze"]
        cuts = sum(len(phase["cuts"]) for phase in squeezed["phases"] if phase["accepted"])
        return [f"  {cuts} cuts accepted; ended because {squeezed['why']}"]
