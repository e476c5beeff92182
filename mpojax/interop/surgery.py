"""Dense model -> MPO model by rules, and back; transforms of the flat dict of arrays."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mpojax import models, mpo
from mpojax.interop import rules as rules_lib
from mpojax.interop.report import CompressionReport, MatrixRow, relative_bound, role_of_path
from mpojax.interop.rules import Target
from mpojax.interop.safe_weights import check_finite

Model = models.Encoder | models.SequenceClassifier


def compress(
    model: Model,
    rules: Sequence[tuple[str, Mapping]],
    *,
    budget: float | int | None = None,
    bond: int | None = None,
    share_bonds: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Model, CompressionReport]:
    """Writes the matrices that the rules match in MPO form.

    Matrices are decomposed one after the other on the host in float64. Without `budget`, `bond` or
    bonds in the rules the chains have full bonds and the model computes the same as before.

    Args:
      model: its matrices must be dense where a rule matches.
      rules: (regular expression over matrix paths, settings); settings are the fields of
        `mpojax.interop.Settings`, for example
        `[(".*/(query|key|value|out|up|down)", dict(bond=64)), ("embeddings/word", dict(rank=64))]`.
      budget: numbers that the whole compressed model may have: a float in (0, 1] is a fraction of
        its dense count, an integer above 1 the count itself. Bonds that the rules leave open are
        chosen for least error.
      bond: cap for the rules that say nothing about bonds; not together with `budget`.
      share_bonds: matrices of one role have the same bonds in all layers, so that the layers stay
        in one stack; False chooses for each matrix alone.
      progress: called as progress(done, total, path) after each step.

    Returns:
      (compressed model, report).

    Raises:
      ValueError: rules that are malformed, match nothing, overlap, or do not fit; a budget that
        cannot be met (the smallest one is named); non-finite weights.
    """
    arrays = models.to_arrays(model)
    dense_total = _dense_total(arrays, model.shapes)
    targets, room = _targets_and_room(model, arrays, rules, budget, bond)
    kernels = {key: arrays[key] for key in (dense_key(arrays, t.path) for t in targets)}
    check_finite(kernels, "the model")
    shapes, spectra, rows = _decompose_all(targets, arrays, room, share_bonds, progress)
    compressed = models.from_arrays(model.config, {**model.shapes, **shapes}, arrays)
    total = sum(models.count_parameters(compressed).values())
    return compressed, CompressionReport(rows, spectra, dense_total, total)


def check_rules(
    model: Model,
    rules: Sequence[tuple[str, Mapping]],
    *,
    budget: float | int | None = None,
    bond: int | None = None,
) -> None:
    """Raises what `compress` would raise about these rules and this budget, without any work."""
    _targets_and_room(model, models.to_arrays(model), rules, budget, bond)


def _targets_and_room(model, arrays, rules, budget, bond) -> tuple[list[Target], int | None]:
    """What the rules match, and what a budget leaves for the matrices with open bonds."""
    sizes = models.matrix_sizes(model.config)
    targets = rules_lib.resolve(rules, sizes, model.shapes, bond)
    if budget is None:
        return targets, None
    dense_total = _dense_total(arrays, model.shapes)
    return targets, _room_for_open(targets, arrays, budget, bond, dense_total)


def merge(model: Model) -> Model:
    """The dense model: every MPO matrix rebuilt (float64 on the host, stored as float32).

    For a rebuild inside jit, with gradients, there is `mpojax.models.merged`.
    """
    arrays = models.to_arrays(model)
    for path, shape in model.shapes.items():
        cores = [arrays.pop(f"{path}/cores/{k}") for k in range(shape.num_cores)]
        cores = tuple(np.asarray(core, np.float64) for core in cores)
        arrays[models.dense_name(path)] = mpo.to_matrix(cores, shape).astype(np.float32)
    return models.from_arrays(model.config, {}, arrays)


def _decompose_all(targets, arrays: dict, room: int | None, share_bonds: bool, progress):
    """Replaces the matrices in `arrays` by their cores, one matrix at a time.

    Where full bonds are settled beforehand one decomposition gives chain and spectra. Else there
    are two passes: spectra of the uncut matrices, then the chains. Decomposing again with cut bonds
    costs less than keeping and rounding the full chains, and gives the same.

    Returns:
      {path: shape}, {path: spectra of the uncut matrix}, rows of the report.
    """
    settled = {target.path for target in targets if _is_settled_at_full_bonds(target, room)}
    advance = _Progress(progress, 2 * len(targets) - len(settled))
    spectra, rows = {}, {}
    for target in targets:
        w = np.asarray(arrays[dense_key(arrays, target.path)])
        if target.path in settled:
            cores, spectra[target.path] = mpo.decompose_with_spectra(
                w, target.full, target.settings.gauge
            )
            rows[target.path] = _store(arrays, target.path, target.full, cores, spectra)
        else:
            spectra[target.path] = mpo.decompose_with_spectra(w, target.full)[1]
        advance(target.path)
    shapes = _chosen_shapes(targets, spectra, room, share_bonds)
    for target in targets:
        path, shape = target.path, shapes[target.path]
        if path in settled:
            continue
        w = np.asarray(arrays[dense_key(arrays, path)])
        cores = mpo.decompose(w, shape, target.settings.gauge)
        rows[path] = _store(arrays, path, shape, cores, spectra)
        advance(path)
    return shapes, spectra, tuple(rows[target.path] for target in targets)


def _is_settled_at_full_bonds(target: Target, room: int | None) -> bool:
    settings = target.settings
    is_open = settings.tolerance is not None or (room is not None and settings.leaves_bonds_open)
    # The identity gauge is no factorisation: its spectra come from one of their own.
    return not is_open and target.cut.is_full and settings.gauge != "identity"


def _store(arrays: dict, path: str, shape: mpo.MPOShape, cores, spectra) -> MatrixRow:
    """Puts cores in place of a matrix; returns what the report says about it."""
    w = np.asarray(arrays.pop(dense_key(arrays, path)))
    arrays.update({f"{path}/cores/{k}": core for k, core in enumerate(cores)})
    return _row(path, shape, w, cores, spectra[path])


class _Progress:
    """Counts steps for the caller's function, if there is one."""

    def __init__(self, function, total: int):
        self.function, self.total, self.done = function, total, 0

    def __call__(self, path: str):
        self.done += 1
        if self.function is not None:
            self.function(self.done, self.total, path)


def dense_key(arrays: Mapping, path: str) -> str:
    """Name of the array that holds a dense matrix: its kernel, or the table of an embedding."""
    return f"{path}/kernel" if f"{path}/kernel" in arrays else f"{path}/table"


def _dense_total(arrays: Mapping, shapes: Mapping[str, mpo.MPOShape]) -> int:
    """Numbers in the model with every matrix dense."""
    total = sum(math.prod(array.shape) for array in arrays.values())
    return total + sum(shape.num_dense_params - shape.num_params for shape in shapes.values())


def _room_for_open(targets, arrays, budget, bond, dense_total: int) -> int:
    """Numbers that the matrices whose bonds a budget may choose can have together.

    Raises:
      ValueError: a budget that is no budget, clashes with other settings, or cannot be met.
    """
    if bond is not None:
        raise ValueError("budget and bond exclude each other: a cap leaves nothing to choose.")
    limit = _limit(budget, dense_total)
    for target in targets:
        for name, clash in (
            ("a tolerance", target.settings.tolerance is not None),
            ("gauge='identity'", target.settings.gauge == "identity"),
        ):
            if clash:
                raise ValueError(f"{target.path}: {name} and a budget exclude each other.")
    open_targets = [target for target in targets if target.settings.leaves_bonds_open]
    if not open_targets:
        raise ValueError(
            f"budget={budget!r} has nothing to choose: every rule fixes its bonds. Leave bond, "
            "bonds and rank out of a rule, or leave out the budget."
        )
    now = sum(math.prod(array.shape) for array in arrays.values())
    fixed = now + sum(
        (0 if target.settings.leaves_bonds_open else target.cut.num_params)
        - target.full.num_dense_params
        for target in targets
    )
    smallest = fixed + sum(target.full.with_bonds(1).num_params for target in open_targets)
    if smallest > limit:
        raise ValueError(
            f"budget={budget!r} allows {limit:,} numbers, but with every open bond at 1 the model "
            f"still has {smallest:,}: the smallest feasible budget for these rules is "
            f"{math.ceil(1e4 * smallest / dense_total) / 1e4} ({smallest} numbers). Let the rules "
            "match more matrices, or raise the budget."
        )
    return limit - fixed


def _limit(budget, dense_total: int) -> int:
    """Numbers that the whole model may have."""
    if isinstance(budget, float) and 0.0 < budget <= 1.0:
        return math.floor(budget * dense_total)
    # Whole floats are counts too: command lines and configs know no other numbers.
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if number and budget > 1 and float(budget).is_integer():
        return int(budget)
    raise ValueError(
        f"budget={budget!r} must be a fraction in (0, 1] of the dense parameters, given as a float "
        "(use 1.0 for all parameters), or an integer above 1: the number of parameters."
    )


def _chosen_shapes(targets, spectra, room: int | None, share_bonds: bool):
    """{path: shape with its final bonds}, by group of matrices that get the same bonds."""
    groups: dict[tuple, list[Target]] = {}
    for target in targets:
        name = role_of_path(target.path) if share_bonds else target.path
        groups.setdefault((name, target.full, target.settings), []).append(target)
    shapes, open_groups = {}, []
    for group in groups.values():
        settings = group[0].settings
        shape = group[0].cut
        if settings.tolerance is not None:
            needed = [mpo.bonds_for_tolerance(spectra[t.path], settings.tolerance) for t in group]
            shape = shape.with_bonds(tuple(map(max, *needed)) if len(needed) > 1 else needed[0])
        elif room is not None and settings.leaves_bonds_open:
            open_groups.append(group)
        shapes.update({target.path: shape for target in group})
    if open_groups:
        for group, shape in zip(open_groups, _allocated(open_groups, spectra, room), strict=True):
            shapes.update({target.path: shape for target in group})
    return shapes


def _allocated(groups, spectra, room: int) -> list[mpo.MPOShape]:
    """Shapes with the bonds that meet the budget at the least error, one for each group.

    A matrix weighs the square root of its number of entries. With equal weights a large table
    counts no more than one small matrix and pays for all the others; weighed by entries it is the
    others that pay. The root lies between and served sentence vectors best where the two differ.
    """
    return mpo.allocate(
        [group[0].full for group in groups],
        [mpo.pool_spectra([spectra[target.path] for target in group]) for group in groups],
        room,
        counts=[len(group) for group in groups],
        weights=[len(group) * math.sqrt(group[0].full.num_dense_params) for group in groups],
    )


def _row(path, shape, w, cores, spectra) -> MatrixRow:
    return MatrixRow(
        path=path,
        in_features=shape.in_features,
        out_features=shape.out_features,
        in_factors=shape.in_factors,
        out_factors=shape.out_factors,
        bonds=shape.bond_dims,
        dense_parameters=shape.num_dense_params,
        mpo_parameters=shape.num_params,
        relative_error=mpo.relative_error(w, mpo.to_matrix(cores, shape)),
        error_bound=relative_bound(spectra, shape.bond_dims),
        entropy=tuple(float(mpo.entanglement_entropy(s)) for s in spectra),
    )
