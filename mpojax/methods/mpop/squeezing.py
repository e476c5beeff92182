"""Dimension squeezing: bonds cut step by step, each cut followed by lightweight fine-tuning.

Source: MPOP paper (ACL 2021), section 4.2 and algorithm 2, with these points fixed: spectra are
refreshed from the trained cores before every choice, bonds are really sliced with the optimizer's
moments along, the development metric decides (a gain is no reason to stop), and a cut that costs
too much is reverted.

A run is a list of phases: phase 0 tunes the given model, every other one cuts and tunes. What has
been decided is in `squeeze.json`, the last accepted state in `accepted/`; started again on its
folder, a run resumes where it was and follows the same path.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging

from mpojax import checks, files, models, mpo, training
from mpojax.methods import moments, mpop
from mpojax.methods.mpop import costs
from mpojax.methods.mpop.settings import SqueezingSettings


class Train(Protocol):
    """Trains and evaluates; what a run does between two cuts."""

    def __call__(
        self,
        state: training.TrainState,
        optimizer: Any,
        steps: int,
        folder: pathlib.Path,
        description: str,
    ) -> training.FitResult:
        """Trains to `steps` finished steps in `folder`, where it resumes its own checkpoint."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of `Squeezing`.

    Attributes:
      state: the last accepted state; None if a signal ended the run before its end.
      phases: one record each, see `Squeezing`.
      why: what ended it.
    """

    state: training.TrainState | None
    phases: list[dict]
    why: str


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Squeezing:
    """One run: tunes, then cuts and tunes until the budget, the metric or the bond grid ends it.

    A record of a phase: phase, cuts ([{group, bond, "rung": its new dimension, cost, saved}]),
    bonds ({role or path: bonds}), parameters, trained, metric, drop (against phase 0), accepted,
    step, compilations.

    Args:
      model: in MPO form, usually at full bonds.
      settings: see `SqueezingSettings`.
      trainable: a name of `mpop.FILTERS`.
      make_optimizer: the optimizer for a model; its state must not depend on anything else.
      train: see `Train`.
      metric: development metric in the result of `train`, such as "dev/accuracy".
      first_steps: steps of phase 0.
      folder: of the run; kept between starts.
      seed: of the training state.
      gradients: model -> gradients of batches, which the measure "loss" needs.
      sign: -1 where a lower metric is better, as of a perplexity.
    """

    model: models.Model
    settings: SqueezingSettings
    trainable: str
    make_optimizer: Callable[[models.Model], Any]
    train: Train
    metric: str
    first_steps: int
    folder: pathlib.Path
    seed: int = 0
    gradients: costs.Gradients | None = None
    sign: int = 1

    def __post_init__(self):
        self.settings.check(self.model)
        if self.settings.measure == "loss" and self.gradients is None:
            raise ValueError("squeeze.measure='loss' needs gradients: give gradients=...")
        checks.check_value("trainable", self.trainable, checks.one_of(*mpop.FILTERS))
        self.filter = mpop.trainable_filter(self.trainable)
        self.parameter_budget = self.settings.parameter_budget(self.model)
        self.phases: list[dict] = []
        self.pending: dict | None = None  # the phase that has been begun
        self.shapes = dict(self.model.shapes)  # of the last accepted state
        self.step = 0  # of the last accepted state
        self.excluded: list[str] = []
        self._canonical: dict[str, tuple] = {}  # of the state that is about to be cut

    def run(self) -> Result:
        """Runs, or resumes, all phases."""
        self._load()
        # Two: a kill between a save and the record of it must leave the one that is on record.
        with training.Checkpoints(self.folder / "accepted", keep_last=2) as saved:
            state = self._accepted(saved)
            while (why := self._reason_to_end()) is None:
                state, finished = self._phase(state, saved)
                if not finished:
                    return Result(None, self.phases, "interrupted")
        self._remove_phase_folders()
        return Result(state, self.phases, why)

    def _reason_to_end(self) -> str | None:
        if not self.phases:
            return None
        if not self.phases[-1]["accepted"] and self.settings.on_drop == "stop":
            return f"the metric fell by more than {self.settings.max_metric_drop}"
        accepted = [phase for phase in self.phases if phase["accepted"]][-1]
        if self.parameter_budget is not None and accepted["parameters"] <= self.parameter_budget:
            return "the budget is met"
        if len(self.phases) > self.settings.max_phases:
            return f"{self.settings.max_phases} phases are done"
        if self.pending is not None and not self.pending["cuts"]:
            return "nothing is left to cut" + (" besides what is excluded" if self.excluded else "")
        return None

    def _phase(self, state: training.TrainState, saved) -> tuple[training.TrainState, bool]:
        """One phase; returns the state that is accepted after it, and False at an interruption."""
        number = len(self.phases)
        if self.pending is None:
            self.pending = {"phase": number, "cuts": [], "shapes": self.shapes}
            if number:
                self._choose(state)
            self._save()
        if number and not self.pending["cuts"]:
            return state, True
        if number:
            tuned, optimizer = self.cut(state)
        else:
            tuned, optimizer = state, self.make_optimizer(self.model)
        description = f"squeezing, phase {number}" if number else "before squeezing"
        target = self.step + self.settings.steps if number else self.first_steps
        result = self.train(tuned, optimizer, target, self._phase_folder(number), description)
        if result.interrupted:
            return state, False
        record = self._record(result)
        accepted = record["accepted"]
        if accepted:
            saved.save(result.state)
            saved.wait()
            self.shapes, self.step = self.pending["shapes"], record["step"]
        elif self.settings.on_drop == "exclude":
            self.excluded += sorted({cut["group"] for cut in record["cuts"]})
        self.phases.append(record)
        self.pending = None
        self._save()
        files.remove_tree(self._phase_folder(number) / "checkpoints")
        # Step and key of the accepted state were donated to the rejected phase: read it again.
        return (result.state if accepted else self._restored(saved)), result.stop_requested is None

    def _choose(self, state: training.TrainState) -> None:
        """Puts the cheapest cuts of refreshed spectra into the pending phase."""
        canonical = self._canonicalized(state)
        paths = list(canonical)
        slopes = self.gradients(state.model()) if self.settings.measure == "loss" else None
        spectra, how = costs.costs(canonical, self.settings.measure, slopes)
        shapes = {path: self.shapes[path] for path in paths}
        parameters = sum(models.count_parameters(state.model()).values())
        cuts, target, most = [], *self._aim()
        # At least one: a large cut may have gone beyond the aim of the next phase.
        while not cuts or (len(cuts) < most and (target is None or parameters > target)):
            cut = mpo.cheapest_cut(
                self.settings.groups(paths),
                shapes,
                spectra,
                self.settings.grid,
                excluded=self.excluded,
                **how,
            )
            if cut is None:
                break
            shapes |= cut.shapes
            parameters -= cut.saved
            record = {name: getattr(cut, name) for name in ("group", "bond", "cost", "saved")}
            cuts.append(record | {"rung": cut.bond_dim})
            logging.info("cut %s to %d: cost %.3g", cut.group, cut.bond_dim, cut.cost)
        self.pending |= {"cuts": cuts, "shapes": self.shapes | shapes}

    def _aim(self) -> tuple[int | None, float]:
        """Number of parameters at which the next phase ends, and its largest number of cuts."""
        if self.settings.cuts_per_phase:
            return self.parameter_budget, self.settings.cuts_per_phase
        start, number = self.phases[0]["parameters"], len(self.phases)
        way = (start - self.parameter_budget) * number // self.settings.max_phases
        return max(self.parameter_budget, start - way), math.inf

    def cut(self, state: training.TrainState):
        """State and optimizer with the pending shapes: cores in the central gauge, then sliced."""
        model, shapes = state.model(), self.pending["shapes"]
        arrays = models.to_arrays(model)
        maps = {}
        for path, (old, new, _) in self._canonicalized(state).items():
            maps[path] = mpo.gauge_maps(old, new)
            _put_sliced(arrays, path, new, shapes[path])
        self._canonical = {}
        cut = models.from_arrays(model.config, shapes, arrays)
        optimizer = self.make_optimizer(cut)
        fresh = training.TrainState.create(cut, self.filter, optimizer).optimizer
        if self.settings.optimizer_state == "reset":
            held = moments.reset(state.optimizer, fresh)
        else:
            held = moments.regauge_and_slice(state.optimizer, fresh, maps, model, cut)
        return state.with_model(cut, self.filter, optimizer, held), optimizer

    def _canonicalized(self, state: training.TrainState) -> dict[str, tuple]:
        """{path: (cores, cores in the central gauge, spectra)} of what may be cut, in float64."""
        if not self._canonical:
            arrays = models.to_arrays(state.model())
            for path in self.settings.select(self.model):
                cores = _cores(arrays, path, self.shapes)
                self._canonical[path] = (cores, *mpo.canonicalize_with_spectra(cores))
        return self._canonical

    def _record(self, result: training.FitResult) -> dict:
        value = float(result.metrics[self.metric])
        if not self.phases and not math.isfinite(value):
            raise ValueError(
                f"{self.metric} is {value} before the first cut: there is nothing to compare with. "
                "Look at the training metrics; a lower learning rate may help."
            )
        counts = mpop.parameter_counts(result.state.model(), self.filter)
        drop = self.sign * (self.phases[0]["metric"] - value) if self.phases else 0.0
        return {
            "phase": len(self.phases),
            "cuts": self.pending["cuts"],
            "bonds": self.settings.bonds_by_group(self.pending["shapes"]),
            "parameters": counts["total"],
            "trained": counts["trainable"],
            "metric": value,
            "drop": drop,
            "accepted": drop <= self.settings.max_metric_drop,
            "step": int(result.state.step),
            "compilations": result.traces,
        }

    def _accepted(self, saved: training.Checkpoints) -> training.TrainState:
        if self.phases:
            return self._restored(saved)
        optimizer = self.make_optimizer(self.model)
        return training.TrainState.create(self.model, self.filter, optimizer, seed=self.seed)

    def _restored(self, saved: training.Checkpoints) -> training.TrainState:
        """The last accepted state; the start model, sliced to its shapes, says what is in it."""
        arrays = models.to_arrays(self.model)
        for path, shape in self.shapes.items():
            _put_sliced(arrays, path, _cores(arrays, path, self.model.shapes), shape)
        model = models.from_arrays(self.model.config, self.shapes, arrays)
        state = training.TrainState.create(model, self.filter, self.make_optimizer(model))
        return saved.restore(state, step=self.step)

    def _phase_folder(self, number: int) -> pathlib.Path:
        return self.folder / f"phase-{number:03d}"

    def _remove_phase_folders(self) -> None:
        for folder in self.folder.glob("phase-*/checkpoints"):
            files.remove_tree(folder)

    def _save(self) -> None:
        content = {
            "phases": self.phases,
            "excluded": self.excluded,
            "step": self.step,
            "shapes": _to_json(self.shapes),
            "pending": self.pending and self.pending | {"shapes": _to_json(self.pending["shapes"])},
        }
        files.write_atomic(self.folder / "squeeze.json", json.dumps(content, indent=1) + "\n")

    def _load(self) -> None:
        path = self.folder / "squeeze.json"
        if not path.is_file():
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        self.phases = content["phases"]
        self.excluded = content.get("excluded", content.get("banned"))  # as older versions said
        self.step, self.shapes = content["step"], _from_json(content["shapes"])
        if content["pending"] is not None:
            shapes = _from_json(content["pending"]["shapes"])
            self.pending = content["pending"] | {"shapes": shapes}


def _cores(arrays: Mapping, path: str, shapes: Mapping[str, mpo.MPOShape]) -> tuple:
    names = (f"{path}/cores/{k}" for k in range(shapes[path].num_cores))
    return tuple(np.asarray(arrays[name], np.float64) for name in names)


def _put_sliced(arrays: dict, path: str, cores, shape: mpo.MPOShape) -> None:
    for k, core in enumerate(mpo.slice_bonds(cores, shape.bond_dims)):
        arrays[f"{path}/cores/{k}"] = core.astype(np.float32)


def _to_json(shapes: Mapping[str, mpo.MPOShape]) -> dict[str, dict]:
    return {path: shape.to_dict() for path, shape in shapes.items()}


def _from_json(shapes: Mapping[str, Mapping]) -> dict[str, mpo.MPOShape]:
    return {path: mpo.MPOShape.from_dict(dict(fields)) for path, fields in shapes.items()}
