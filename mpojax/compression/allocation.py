"""Allocation of a budget to the matrices of a model: bonds for the chains, or dense after all."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from absl import logging

from mpojax import checks, mpo
from mpojax.compression.report import CompressionReport, role_of_path
from mpojax.compression.rules import Target

ALLOCATIONS = ("error", "first_order")
# A matrix of a larger error is hardly what it was; one of a smaller share saves next to nothing.
_LARGE_ERROR, _SMALL_SHARE = 0.5, 0.01


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices that get the same shape: those of one role where layers share their bonds."""

    targets: tuple[Target, ...]

    @property
    def first(self) -> Target:
        """Their common settings and full shape."""
        return self.targets[0]

    @property
    def paths(self) -> tuple[str, ...]:
        """Matrix paths."""
        return tuple(target.path for target in self.targets)


def grouped(targets: Sequence[Target], share_bonds: bool) -> list[Group]:
    """Targets by role, size and settings, or each alone."""
    groups: dict[tuple, list[Target]] = {}
    for target in targets:
        name = role_of_path(target.path) if share_bonds else target.path
        groups.setdefault((name, target.full, target.settings), []).append(target)
    return [Group(tuple(group)) for group in groups.values()]


def chosen_shapes(
    groups: Sequence[Group],
    spectra: Mapping[str, Sequence[np.ndarray]],
    weights: Mapping[str, float] | None,
    parameter_budget: int | None,
    keep_dense: bool = True,
) -> list[mpo.MPOShape | None]:
    """For each group its shape with final bonds; None where a budget leaves it dense.

    Args:
      groups: what to choose for.
      spectra: of every matrix whose bonds are open, in the norm that counts for it.
      weights: importance of each matrix' relative squared error; None for the default.
      parameter_budget: parameters of all matrices with open bonds together; None without a budget.
      keep_dense: whether a budget may leave matrices dense.
    """
    shapes: list[mpo.MPOShape | None] = []
    for group in groups:
        shape, tolerance = group.first.cut, group.first.settings.tolerance
        if tolerance is not None:
            needed = [mpo.bonds_for_tolerance(spectra[path], tolerance) for path in group.paths]
            shape = shape.with_bonds(tuple(map(max, *needed)) if len(needed) > 1 else needed[0])
        shapes.append(shape)
    if parameter_budget is None:
        return shapes
    is_open = [group.first.settings.leaves_bonds_open for group in groups]
    open_groups = [group for group, yes in zip(groups, is_open, strict=True) if yes]
    chosen = _allocated(open_groups, spectra, weights, parameter_budget, keep_dense)
    remaining = iter(chosen)
    return [next(remaining) if o else s for s, o in zip(shapes, is_open, strict=True)]


def _allocated(
    groups, spectra, weights, parameter_budget: int, keep_dense: bool
) -> list[mpo.MPOShape | None]:
    """Shapes with the bonds that meet the budget at the least error, one for each group.

    Without weights a matrix weighs the square root of its number of entries. With equal weights a
    large table counts no more than one small matrix and pays for all the others; weighed by entries
    it is the others that pay. The root lies between and served sentence vectors best where they
    differ; so did the logarithmic loss, which leaves something of every matrix.
    """
    pooled, totals = [], []
    for group in groups:
        if weights is None:
            own = [math.sqrt(group.first.full.num_dense_params)] * len(group.paths)
        else:
            own = [weights[path] for path in group.paths]
        pooled.append(mpo.pool_spectra([spectra[path] for path in group.paths], own))
        totals.append(sum(own))
    allocate = mpo.allocate_or_keep if keep_dense else mpo.allocate
    return allocate(
        [group.first.full for group in groups],
        pooled,
        parameter_budget,
        counts=[len(group.paths) for group in groups],
        weights=totals,
        loss="log",
    )


def open_budget(
    targets,
    now: int,
    dense_total: int,
    budget,
    bond,
    numbers: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Parameters that the matrices whose bonds a budget may choose can have together.

    Args:
      targets: all matrices that rules match.
      now: parameters in the model as it is.
      dense_total: parameters in the model with every matrix dense.
      budget, bond: as given to `compress`.
      numbers: {path: experts} of maps that stand for the matrices of several experts.

    Raises:
      ValueError: a budget that is no budget, clashes with other settings, or cannot be met.
    """
    limit = _limit(budget, dense_total)
    clashes = {"budget and bond exclude each other: a cap leaves nothing to choose": bond}
    for target in targets:
        of_target = {
            "a tolerance": target.settings.tolerance is not None,
            "gauge='identity'": target.settings.gauge == "identity",
        }
        for name, is_so in of_target.items():
            clashes[f"{target.path}: {name} and a budget exclude each other"] = is_so
    checks.check_clashes(clashes)
    open_targets = [target for target in targets if target.settings.leaves_bonds_open]
    if not open_targets:
        raise ValueError(
            f"budget={budget!r} has nothing to choose: every rule fixes its bonds. Leave bond, "
            "bonds and rank out of a rule, or leave out the budget."
        )
    # What a budget cannot touch: the model without the matched matrices, and chains of fixed bonds.
    fixed = now + sum(
        (0 if target.settings.leaves_bonds_open else target.cut.num_params)
        - target.full.num_dense_params * numbers.get(target.path, 1)
        for target in targets
    )
    smallest = fixed + sum(
        target.full.with_bonds(1).num_params * numbers.get(target.path, 1)
        for target in open_targets
    )
    if smallest > limit:
        raise SmallBudgetError(budget, limit, smallest, dense_total)
    return limit - fixed


class SmallBudgetError(ValueError):
    """A budget that is not met with every open bond at 1; `smallest` parameters are left then."""

    def __init__(self, budget, limit: int, smallest: int, dense_total: int):
        self.smallest = smallest
        super().__init__(
            f"budget={budget!r} allows {limit:,} parameters, but with every open bond at 1 the "
            f"model still has {smallest:,}: the smallest feasible budget for these rules is "
            f"{math.ceil(1e4 * smallest / dense_total) / 1e4} ({smallest} parameters). Let the "
            "rules match more matrices, or raise the budget."
        )


def _limit(budget, dense_total: int) -> int:
    """Parameters that the whole model may have."""
    if isinstance(budget, float) and 0.0 < budget <= 1.0:
        return math.floor(budget * dense_total)
    # Whole floats are counts too: command lines and configs know no other type.
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if number and budget > 1 and float(budget).is_integer():
        return int(budget)
    raise ValueError(
        f"budget={budget!r} must be a fraction in (0, 1] of the dense parameters, given as a float "
        "(use 1.0 for all parameters), or an integer above 1: the number of parameters."
    )


def warn_if_uneven(report: CompressionReport, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Warns of matrices that a budget has spoiled while it left others as they were.

    Args:
      report: of a compression to a budget.
      sizes: of all matrices of the model.
    """
    spoiled: dict[str, float] = {}
    for row in report.rows:
        error = row.relative_error if row.output_error is None else row.output_error
        if error > _LARGE_ERROR:
            spoiled[row.role] = max(error, spoiled.get(row.role, 0.0))
    advice = {
        'let rules match what they leave out (the pattern "all")': report.unmatched,
        "set keep_dense=False": report.kept_dense,
    }
    whole = {what: _large_roles(paths, sizes, report) for what, paths in advice.items()}
    roles = [role for found in whole.values() for role in found]
    if spoiled and roles:
        logging.warning(
            "The budget leaves relative errors of %s, but %s as they were: %s.",
            checks.listed([f"{error:.2f} in {role}" for role, error in spoiled.items()]),
            checks.listed(roles),
            ", or ".join([what for what in advice if whole[what]] + ["raise the budget"]),
        )


def _large_roles(paths, sizes, report: CompressionReport) -> list[str]:
    """Roles that hold a fraction of the model worth compressing."""
    total: dict[str, int] = {}
    for path in paths:
        total[role_of_path(path)] = total.get(role_of_path(path), 0) + math.prod(sizes[path])
    least = _SMALL_SHARE * report.dense_parameters
    return [role for role, number in total.items() if number >= least]
