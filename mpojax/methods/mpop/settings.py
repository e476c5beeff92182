"""Settings of dimension squeezing, checked before any work."""

import math
import re
from collections.abc import Mapping, Sequence

from mpojax import checks, models, mpo
from mpojax.compression.report import role_of_path


@checks.settings("squeeze.")
class SqueezingSettings:
    """Settings of dimension squeezing.

    Attributes:
      steps: training steps after each cut.
      max_phases: phases with a cut, at most.
      max_metric_drop: how far the development metric may fall below that of the uncut model.
      budget: stop once the model has at most so many parameters: a fraction (0, 1] of the dense
        count, or a number above 1; None squeezes until the metric or the bond grid ends it.
      matrices: regular expression over matrix paths in MPO form that may be cut.
      group_by: "role" cuts a matrix in all layers alike (layers stay in one stack), "matrix" each
        by itself.
      cuts_per_phase: cheapest cuts taken together before the model is tuned and compiled again; 0
        takes equal parts of the way to the budget, which is then met in phase `max_phases`.
      multiple, factor, minimum, per_bond: the bond grid, see `mpo.BondGrid`.
      measure: what the cheapest cut is: see `mpo.cheapest_cut`, or "loss", what the loss pays for
        each parameter saved, by gradients of training data (`costs`).
      score_batches: batches of those gradients, before every phase.
      on_drop: after a larger drop the phase is reverted; then "stop", or "exclude" the groups that
        were cut and continue with the others.
      optimizer_state: "map" (`moments.regauge_and_slice`) or "reset", which starts moments anew.
    """

    steps: int = checks.field(checks.integer(1), 200)
    max_phases: int = checks.field(checks.integer(1), 20)
    max_metric_drop: float = checks.field(checks.number(0), 0.01)
    budget: float | None = checks.field(
        checks.number(above=0, high=1).noted("of the dense parameters") | checks.whole(2), None
    )
    matrices: str = checks.field(checks.expression(), ".*")
    group_by: str = checks.field(checks.one_of("role", "matrix"), "role")
    cuts_per_phase: int = checks.field(checks.integer(0), 1)
    multiple: int = checks.field(checks.integer(1), 8)
    factor: float = checks.field(checks.number(0, 1), 1.0)
    minimum: int = checks.field(checks.integer(1), 1)
    per_bond: bool = checks.field(checks.flag(), False)
    measure: str = checks.field(checks.one_of(*mpo.MEASURES, "loss"), "relative")
    score_batches: int = checks.field(checks.integer(1), 8)
    on_drop: str = checks.field(checks.one_of("stop", "exclude"), "stop")
    optimizer_state: str = checks.field(checks.one_of("map", "reset"), "map")

    def __post_init__(self):
        if self.cuts_per_phase == 0 and self.budget is None:
            raise ValueError("squeeze.cuts_per_phase=0 takes parts of a budget: give one.")

    @property
    def grid(self) -> mpo.BondGrid:
        """The bond dimensions at which cuts stop."""
        return mpo.BondGrid(self.multiple, self.factor, self.minimum, self.per_bond)

    def check(self, model: models.Model) -> None:
        """Checks the settings against a model in MPO form.

        Raises:
          ValueError: nothing to cut, or a budget below the smallest model that cuts can reach.
        """
        paths = self.select(model)
        for name, members in self.groups(paths).items():
            if self.per_bond and len({model.shapes[path].num_cores for path in members}) > 1:
                raise ValueError(
                    f"squeeze.per_bond=True: the chains of {name} have different lengths; cut them "
                    "by one cap, or with group_by='matrix'."
                )
        smallest = sum(models.count_parameters(model).values())
        for path in paths:
            shape = model.shapes[path]
            bonds = tuple(min(bond, self.minimum) for bond in shape.bond_dims)
            smallest -= shape.num_params - shape.with_bonds(bonds).num_params
        limit = self.parameter_budget(model)
        if limit is not None and smallest > limit:
            raise ValueError(
                f"squeeze.budget={self.budget!r} allows {limit:,} parameters, but with all bonds "
                f"of {self.matrices!r} at {self.minimum} the model still has {smallest:,}. "
                "Raise the budget, lower squeeze.minimum, or let squeeze.matrices match more."
            )

    def parameter_budget(self, model: models.Model) -> int | None:
        """The number of parameters at which squeezing ends."""
        if self.budget is None or self.budget > 1:
            return self.budget and int(self.budget)
        total = sum(models.count_parameters(model).values())
        dense = total + sum(s.num_dense_params - s.num_params for s in model.shapes.values())
        return math.floor(self.budget * dense)

    def select(self, model: models.Model) -> list[str]:
        """Paths of the matrices that may be cut, sorted."""
        paths = [path for path in model.shapes if re.fullmatch(self.matrices, path)]
        if not paths:
            raise ValueError(
                f"squeeze.matrices={self.matrices!r} matches no matrix in MPO form; there are "
                f"{len(model.shapes)}: {checks.listed(list(model.shapes), limit=5)}."
            )
        return sorted(paths)

    def group(self, path: str) -> str:
        """Name of the group that a matrix is cut with: its path, or its role in all layers."""
        return role_of_path(path) if self.group_by == "role" else path

    def groups(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """{group: its matrices}."""
        found: dict[str, list[str]] = {}
        for path in paths:
            found.setdefault(self.group(path), []).append(path)
        return found

    def bonds_by_group(self, shapes: Mapping[str, mpo.MPOShape]) -> dict[str, list[int]]:
        """{group: bond dimensions}, for records."""
        return {self.group(path): list(shape.bond_dims) for path, shape in shapes.items()}
