"""Expanded training as a method of runs: `config.method="branches"`, settings `config.branches`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mpojax import checks, models
from mpojax.checks import one_of
from mpojax.methods import branches, mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.branches import expanded as expanded_lib

# Of what scales of branches are multiplied by, see `branches.multiplied`.
_POWERS = {"sgd": 2, "adam": 1, "adamw": 1}
_COMPRESSION = ("matrices", "rules", "budget", "bond", "calibration_examples", "adapters")


class Branches(protocol.Method):
    """Tuning of a dense model whose matrices are sums while they learn, and summed at the end."""

    Settings = branches.BranchSettings
    section = "branches"
    can_only_evaluate = False

    def check(self, options: options_lib.Options) -> None:
        options_lib.check_default(
            options,
            (*_COMPRESSION, "trainable", "keep_best", "eval_every"),
            ": the whole dense model is trained, and its last state reported",
        )
        if self.settings.form == "gradients":
            own = options.training.optimizer
            checks.check_value("config.optimizer.name", own["name"], one_of(*_POWERS))
            decay = own.get("weight_decay")
            checks.check_clashes(
                {
                    f"config.optimizer.weight_decay={decay!r}: steps of Adam are multiplied, which "
                    "would multiply the decay; set it to 0, or config.branches.form='branches'": (
                        decay and _POWERS[own["name"]] == 1
                    )
                }
            )

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        """Checks the matrices, before a folder is claimed."""
        expanded_lib.checked(setup.model, self.settings)
        return setup

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        own, trainable = self.settings, mpop.trainable_filter("all")
        is_expanded = own.form != "gradients"
        model = setup.model
        if is_expanded:
            model = branches.expand(model, own, setup.options.training.seed)
        loss = branches.expanded_loss(setup.loss) if is_expanded else setup.loss
        optimizer = setup.make_optimizer(model, fields=setup.optimizer_fields(model))
        if not is_expanded:
            power = _POWERS[setup.options.training.optimizer["name"]]
            paths = expanded_lib.checked(model, own)
            optimizer = branches.multiplied(optimizer, own, paths, power)
        state = setup.state(model, trainable, optimizer)
        result = setup.fit(state, optimizer, folder, loss_fn=loss)
        if result.interrupted:
            return None
        learnt = result.state.model()
        extra = {
            "fit": result.summary(),
            "train_parameters": sum(models.count_parameters(learnt).values()),
            "scales": list(own.scales) if own.form != "majority" else None,
        }
        if own.form == "search":
            extra["scales"] = learnt.found
        plain = branches.combined(learnt) if is_expanded else learnt
        made = setup.finished(plain, trainable, extra)
        return dataclasses.replace(made, stop_requested=result.stop_requested is not None)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        return {"form": self.settings.form, "number": self.settings.count}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        lines = [
            f"  {result['form']}: {result['train_parameters']:,} parameters trained, "
            f"{result['inference_parameters']:,} left after merging"
        ]
        if result["form"] == "search":
            scales = ", ".join(f"{scale:.4f}" for scale in result["scales"])
            lines.append(f"  scales found: {scales}; give them as config.branches.scales")
        return lines
