"""Settings of dimension squeezing, checked before any work."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from mpojax import models, mpo
from mpojax.compression.report import role_of_path

GROUPINGS = ("role", "matrix")
ON_DROP = ("stop", "ban")
OPTIMIZER_STATES = ("map", "reset")
MEASURES = (*mpo.MEASURES, "loss")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of dimension squeezing.

    Attributes:
      steps: training steps after each cut.
      max_phases: phases with a cut, at most.
      gap: how far the development metric may fall below that of the uncut model.
      budget: stop once the model has at most so many parameters: a fraction (0, 1] of the dense
        count, or a number above 1; None squeezes until the gap or the foot of the ladder ends it.
      matrices: regular expression over matrix paths in MPO form that may be cut.
      group_by: "role" cuts a matrix in all layers alike (layers stay in one stack), "matrix" each
        by itself.
      cuts_per_phase: cheapest cuts taken together before the model is tuned and compiled again; 0
        takes equal shares of the way to the budget, which is then met in phase `max_phases`.
      multiple, factor, minimum, per_bond: the ladder, see `mpo.Ladder`.
      measure: what the cheapest cut is: see `mpo.cheapest_cut`, or "loss", what the loss pays for
        each parameter saved, by gradients of training data (`squeeze_costs`).
      score_batches: batches of those gradients, before every phase.
      on_drop: after a drop of more than the gap the phase is reverted; then "stop", or "ban" the
        groups that were cut and continue with the others.
      optimizer_state: "map" moves the moments along (`moments.transfer`); "reset" starts them anew.
    """

    steps: int = 200
    max_phases: int = 20
    gap: float = 0.01
    budget: float | None = None
    matrices: str = ".*"
    group_by: str = "role"
    cuts_per_phase: int = 1
    multiple: int = 8
    factor: float = 1.0
    minimum: int = 1
    per_bond: bool = False
    measure: str = "relative"
    score_batches: int = 8
    on_drop: str = "stop"
    optimizer_state: str = "map"

    def __post_init__(self):
        for name, least in (
            ("steps", 1),
            ("max_phases", 1),
            ("cuts_per_phase", 0),
            ("score_batches", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"squeeze.{name}={value!r} must be an integer of at least {least}."
                )
        if self.cuts_per_phase == 0 and self.budget is None:
            raise ValueError("squeeze.cuts_per_phase=0 takes shares of a budget: give one.")
        if not _is_number(self.gap) or not self.gap >= 0:
            raise ValueError(f"squeeze.gap={self.gap!r} must be a number of at least 0.")
        if self.budget is not None and not (
            _is_number(self.budget)
            and (0 < self.budget <= 1 or (self.budget > 1 and float(self.budget).is_integer()))
        ):
            raise ValueError(
                f"squeeze.budget={self.budget!r} must be a fraction in (0, 1] of the dense "
                "parameters, or a whole number above 1."
            )
        try:
            re.compile(self.matrices)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"squeeze.matrices={self.matrices!r} is not a regular expression: {error}."
            ) from error
        for name, allowed in (
            ("group_by", GROUPINGS),
            ("on_drop", ON_DROP),
            ("measure", MEASURES),
            ("optimizer_state", OPTIMIZER_STATES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"squeeze.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        _ = self.ladder

    @property
    def ladder(self) -> mpo.Ladder:
        return mpo.Ladder(self.multiple, self.factor, self.minimum, self.per_bond)


def check(settings: Settings, model: models.Model) -> None:
    """Checks the settings against a model in MPO form.

    Raises:
      ValueError: nothing to cut, or a budget below the smallest model that cuts can reach.
    """
    paths = matrices(settings, model)
    for name, members in groups(settings, paths).items():
        if settings.per_bond and len({model.shapes[path].num_cores for path in members}) > 1:
            raise ValueError(
                f"squeeze.per_bond=True: the chains of {name} have different lengths; cut them by "
                "one cap, or with group_by='matrix'."
            )
    total = sum(models.count_parameters(model).values())
    limit = parameter_limit(settings, model)
    smallest = total
    for path in paths:
        shape = model.shapes[path]
        bonds = tuple(min(bond, settings.minimum) for bond in shape.bond_dims)
        smallest -= shape.num_params - shape.with_bonds(bonds).num_params
    if limit is not None and smallest > limit:
        raise ValueError(
            f"squeeze.budget={settings.budget!r} allows {limit:,} parameters, but with all bonds "
            f"of {settings.matrices!r} at {settings.minimum} the model still has {smallest:,}. "
            "Raise the budget, lower squeeze.minimum, or let squeeze.matrices match more."
        )


def parameter_limit(settings: Settings, model: models.Model) -> int | None:
    """The number of parameters at which squeezing ends."""
    if settings.budget is None:
        return None
    if settings.budget > 1:
        return int(settings.budget)
    total = sum(models.count_parameters(model).values())
    dense = total + sum(s.num_dense_params - s.num_params for s in model.shapes.values())
    return math.floor(settings.budget * dense)


def matrices(settings: Settings, model: models.Model) -> list[str]:
    """Paths of the matrices that may be cut, sorted."""
    paths = [path for path in model.shapes if re.fullmatch(settings.matrices, path)]
    if not paths:
        raise ValueError(
            f"squeeze.matrices={settings.matrices!r} matches no matrix in MPO form; there are "
            f"{len(model.shapes)}{': ' if model.shapes else ''}{', '.join(list(model.shapes)[:5])}."
        )
    return sorted(paths)


def group(settings: Settings, path: str) -> str:
    """Name of the group that a matrix is cut with: its path, or its role in all layers."""
    return role_of_path(path) if settings.group_by == "role" else path


def groups(settings: Settings, paths: Sequence[str]) -> dict[str, list[str]]:
    """{group: its matrices}."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(group(settings, path), []).append(path)
    return found


def bonds_by_group(settings: Settings, shapes: Mapping[str, mpo.MPOShape]) -> dict[str, list[int]]:
    """{group: bond dimensions}, for records."""
    return {group(settings, path): list(shape.bond_dims) for path, shape in shapes.items()}


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
