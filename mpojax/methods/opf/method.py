"""OPF as a method of runs: `config.method="opf"`, settings `config.opf`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mpojax import checks, io, models
from mpojax.methods import mpop, opdf, opf, protocol
from mpojax.methods import options as options_lib

# Fields about compression.
_COMPRESSION = ("matrices", "rules", "budget", "bond", "calibration_examples", "adapters")


class OPF(protocol.Method):
    """Tuning with some matrices over-parameterised as exact chains, merged at the end.

    Args:
      settings: which matrices, and when.
      scoring_checkpoint: of "static": the same model, tuned on the task; its loss without a matrix
        says what that is worth.
    """

    Settings = opf.OPFSettings
    section = "opf"
    can_only_evaluate = False

    def __init__(self, settings: opf.OPFSettings, scoring_checkpoint: str = ""):
        super().__init__(settings)
        self.scoring_checkpoint = scoring_checkpoint

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "OPF":
        fields = options_lib.plain(config.get(cls.section) or {})
        made = checks.from_mapping(cls.Settings, fields, "config.opf")
        return cls(made, config.get("scoring_checkpoint") or "")

    def check(self, options: options_lib.Options) -> None:
        is_dynamic = self.settings.strategy == "dynamic"
        if is_dynamic:
            self.settings.round_steps(options.training.steps)
        if is_dynamic == bool(self.scoring_checkpoint):
            raise ValueError(
                f"config.scoring_checkpoint={self.scoring_checkpoint!r} with config.opf.strategy="
                f"{self.settings.strategy!r}: 'static' needs the folder of a fine-tuned model "
                "there, 'dynamic' reads none."
            )
        options_lib.check_default(
            options,
            (*_COMPRESSION, "trainable", "keep_best", "eval_every"),
            ": the whole dense model is trained, and its last state reported",
        )
        if is_dynamic:
            _check_optimizer(options.training.optimizer)

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        """Of "static" the model has its chains already."""
        paths = opf.candidates(setup.model, self.settings)
        if self.settings.strategy == "dynamic":
            return setup
        where = io.locate(self.scoring_checkpoint, "--config.scoring_checkpoint")
        tuned = io.load_pretrained(where)
        own, scoring = (models.array_shapes(m.config) for m in (setup.model, tuned))
        if own != scoring or tuned.shapes or type(tuned) is not type(setup.model):
            raise ValueError(
                f"the model in config.scoring_checkpoint={self.scoring_checkpoint!r} has other "
                "parameters than config.model with its head: give that model, fine-tuned on the "
                "task and dense."
            )
        rows = slice(0, setup.train.batch_size)
        batches = [setup.train.rows(k, rows) for k in range(self.settings.score_batches)]
        scores = opf.static_scores(tuned, paths, opf.losses(setup.loss, batches))
        chosen = opf.select(scores, self.settings.num_per_role)
        model, _ = opdf.over_parameterise(setup.model, opf.only(self.settings.chains, chosen))
        return dataclasses.replace(setup, model=model)

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        own, trainable = self.settings, mpop.trainable_filter("all")

        def make_optimizer(model):
            fields = opdf.optimizer_fields(setup, model, own.chains)
            return setup.make_optimizer(model, fields=fields)

        optimizer, hooks = make_optimizer(setup.model), []
        if own.strategy == "dynamic":
            steps, precompute = setup.options.training.steps, setup.precompute(has_chains=True)
            more = (trainable, make_optimizer, steps, precompute)
            hooks = [opf.Dynamic(setup.model, own, setup.loss, *more)]
        state = setup.state(setup.model, trainable, optimizer)
        result = setup.fit(state, optimizer, folder, hooks=hooks)
        if result.interrupted:
            return None
        model = result.state.model()
        # "static": all matrices in chains were chosen before the first step.
        chosen = hooks[0].chosen if hooks else [(0, list(setup.model.shapes))]
        extra = {"fit": result.summary(), **opf.report(model, chosen)}
        merged = setup.merged(model, extra)
        return dataclasses.replace(merged, stop_requested=result.stop_requested is not None)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        own = self.settings
        return {
            "strategy": own.strategy,
            "number": own.num_per_role,
            "units": own.num_inner_cores,
        }

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        count = sum(len(entry["matrices"]) for entry in result["chosen"])
        return [
            f"  {count} matrices became chains: {result['train_parameters']:,} parameters trained, "
            f"{result['inference_parameters']:,} left after merging"
        ]


def _check_optimizer(optimizer: Mapping[str, Any]) -> None:
    """What the state of a run in which matrices become chains can follow."""
    decay = optimizer.get("weight_decay")
    checks.check_clashes(
        {
            "config.optimizer.name='muon' has state that cannot follow a matrix that becomes a "
            "chain: take adam, adamw, lamb or sgd, or config.opf.strategy='static'": (
                optimizer["name"] == "muon"
            ),
            f"config.optimizer.weight_decay={decay!r}: cores decay towards their start, and have "
            "none when training begins. Set it to 0, or config.opf.strategy='static'": decay,
        }
    )
