"""Healing as a method of runs: `config.method="healing"`, settings `config.healing`.

The student is the decoder of the config: compressed by its `matrices` or `rules`, or compressed
earlier, the folder `config.model`. Its text is `config.dataset`, what is trained
`config.trainable`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mpojax import checks, io, models
from mpojax.methods import options as options_lib
from mpojax.methods import protocol
from mpojax.methods.healing import objective


@checks.settings("config.healing.")
class HealingSettings:
    """What a healed model learns from.

    Attributes:
      teacher: the original, of which the student was made: folder, hub id, package:NAME/PATH or
        .gguf file; "": `config.model`, where the config itself compresses it.
      distill_weight: 1 learns from the original alone, 0 from the text alone; see `healing_loss`.
    """

    teacher: str = checks.field(checks.text(), "")
    distill_weight: float = checks.field(objective.WEIGHT, objective.DISTILL_WEIGHT)


class Healing(protocol.Method):
    """Tuning of a compressed decoder by its original and by the text."""

    Settings = HealingSettings
    section = "healing"
    can_only_evaluate = False

    def check(self, options: options_lib.Options) -> None:
        unused = ("keep_best", "eval_every")
        options_lib.check_default(options, unused, ": the last state is reported")
        if self.settings.distill_weight and not self._teacher(options):
            raise ValueError(
                "config.healing.teacher is empty: give the model that config.model was made from, "
                "or config.healing.distill_weight=0 to learn from the text alone."
            )

    def _teacher(self, options: options_lib.Options) -> str:
        """Where the original is; "": unknown."""
        own = options.model
        is_made_here = bool(options.compression.compression_rules) and not own.num_layers_kept
        return self.settings.teacher or (is_made_here and (own.init_checkpoint or own.model)) or ""

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        """Loads the teacher."""
        own, options, teacher = self.settings, setup.options, None
        if own.distill_weight:
            place = io.locate(self._teacher(options), "--config.healing.teacher")
            computing = {name: getattr(options.model, name) for name in ("dtype", "remat")}
            teacher = models.reconfigure(io.load_pretrained(place), **computing)
        self.learning = objective.learning(
            setup.model,
            teacher,
            trainable=options.training.trainable,
            distill_weight=own.distill_weight,
        )
        return setup

    def train(self, setup: protocol.Setup, folder: pathlib.Path) -> protocol.Result | None:
        learnt = self.learning
        fields = setup.optimizer_fields(learnt.model)
        optimizer = setup.make_optimizer(learnt.model, fields=fields)
        state = setup.state(learnt.model, learnt.trainable, optimizer)
        extra = {"start_metrics": setup.evaluate(setup.model, setup.dev)}
        if self.settings.distill_weight:
            extra["teacher_metrics"] = setup.evaluate(learnt.model.teacher, setup.dev)
        result = setup.fit(
            state,
            optimizer,
            folder,
            loss_fn=learnt.loss,
            precompute=None,
            unsaved=(objective.TEACHER,),
        )
        if result.interrupted:
            return None
        healed = learnt.student_of(result.state.model())
        extra |= {"fit": result.summary()}
        made = setup.finished(healed, learnt.student_trainable, extra)
        return dataclasses.replace(made, stop_requested=result.stop_requested is not None)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        return {"distill_weight": self.settings.distill_weight}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        names = {"start_metrics": "before healing", "teacher_metrics": "original"}
        return [
            f"  {name}: perplexity {result[key]['perplexity']:.4f}"
            for key, name in names.items()
            if key in result
        ]
