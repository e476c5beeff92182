"""Post-training compression of a whole model by low rank: the published methods and our own.

| method            | errors count by         | ranks                   | targets        |
| svd               | the weights             | the same share for all  | weights        |
| activation_scaled | activation sizes        | the same share for all  | weights        |
| whitened          | outputs                 | the same share for all  | weights        |
| whitened_v2       | outputs                 | 1 / log(loss) in a role | weights        |
| two_sided         | outputs and curvature   | by predicted loss       | weights        |
| pivoted           | outputs and curvature   | by predicted loss, more | weights        |
| layerwise         | outputs and curvature   | by predicted loss, more | layer by layer |
| shared            | outputs and curvature   | by predicted loss, more | weights        |
| experts           | outputs                 | the same share for all  | weights        |
| best              | what predicts held-out text best, see `mpojax.compression.choosing`        |

svd is plain truncation; activation_scaled is ASVD (Yuan et al., 2023, arXiv:2312.05821) with root
mean squares in the place of mean absolute values; whitened is SVD-LLM (Wang et al., 2024,
arXiv:2403.07378) in closed form, without inverses, whitened_v2 with the budget of SVD-LLM V2 (Wang
et al., 2025, arXiv:2503.12340). shared is pivoted, with first cores that neighbouring layers share
where that loses less, see `mpojax.compression.sharing`. The first three give each expert of a
mixture an SVD of its own; experts is whitened, and of the matrices of experts the form that loses
least, see `mpojax.compression.experts`.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from mpojax import checks, mpo
from mpojax.compression import layerwise
from mpojax.compression.calibration import Calibration
from mpojax.compression.layerwise import Approximations
from mpojax.compression.matrices import Matrices, side_by_side, stored_type
from mpojax.compression.report import MatrixRow, role_of_path

# Of curvatures: few tokens know little about most directions.
CURVATURE_RIDGE = 0.1

Losses = dict[str, np.ndarray]
Ranks = dict[str, int | None]


@dataclasses.dataclass(frozen=True)
class Method:
    """How ranks and factors are found.

    Attributes:
      label: in tables.
      inputs: what errors count by at the inputs: "weights" (all alike), "scales" or "covariance".
      by_loss: errors count by the curvature of the loss at the outputs, too, and ranks are those of
        least predicted loss; else every matrix keeps the same share of its parameters.
      by_log: matrices of a role keep different shares, see `mpojax.mpo.log_shares`.
      pivoted: ranks and chains are pivoted ones, see `mpojax.mpo.pivoted`.
      layerwise: targets are corrected layer by layer, see `mpojax.compression.layerwise`.
      forms: of the matrices of experts, see `mpo.EXPERT_FORMS`; none for a method that knows none.
      exponent: of the loss of a whole matrix in what ranks are chosen by, loss(0)^exponent times
        the relative loss of a rank: below 1 sensitive matrices get less, 0 makes all alike.
    """

    label: str
    inputs: str
    by_loss: bool = False
    by_log: bool = False
    pivoted: bool = False
    layerwise: bool = False
    forms: tuple[str, ...] = ()
    exponent: float = 1.0


_OURS = {"inputs": "covariance", "by_loss": True, "pivoted": True}
METHODS = {
    "svd": Method("SVD", "weights", forms=("own",)),
    "activation_scaled": Method("activation-scaled SVD (ASVD)", "scales", forms=("own",)),
    "whitened": Method("whitened SVD (SVD-LLM)", "covariance", forms=("own",)),
    "whitened_v2": Method("whitened SVD, V2's budget (SVD-LLM V2)", "covariance", by_log=True),
    "two_sided": Method("two-sided whitening", "covariance", by_loss=True),
    "pivoted": Method("two-sided, pivoted", **_OURS),
    "layerwise": Method("two-sided, pivoted, layer by layer", **_OURS, layerwise=True),
    "shared": Method("two-sided, pivoted, shared", **_OURS),
    "experts": Method("experts around shared cores", "covariance", forms=mpo.EXPERT_FORMS),
    "best": Method("ours", **_OURS, layerwise=True),
}


@dataclasses.dataclass
class Task:
    """What is compressed, to what size, by what is known of the inputs.

    Attributes:
      matrices: of the model.
      paths: which of them.
      expert_paths: maps of experts, each with the matrices of all.
      budget: parameters that they may have together.
      calibration: with curvature where a method counts by it.
      batches: what a layerwise method runs.
      share_bonds: matrices of one role have the same rank in all layers.
      resume: folder of finished layers, see `layerwise.compress`.
      progress: called as progress(done, total, path) after each of `steps`.
      steps: of all that is done; whoever begins the work says how many.
    """

    matrices: Matrices
    paths: Sequence[str]
    budget: int
    calibration: Calibration
    batches: Sequence[Mapping] = ()
    share_bonds: bool = False
    resume: str | os.PathLike | None = None
    progress: Callable[[int, int, str], None] | None = None
    expert_paths: Sequence[str] = ()
    steps: int = 0

    def __post_init__(self):
        self._done = 0

    def advance(self, path: str) -> None:
        """Tells that a step is done."""
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self.steps, path)

    @property
    def share(self) -> float:
        """Of the parameters of all matrices that are compressed, those that they may have."""
        paths = (*self.paths, *self.expert_paths)
        sizes = ((*self.matrices.all_sizes[p], self.matrices.num_matrices(p)) for p in paths)
        return self.budget / sum(math.prod(size) for size in sizes)

    def inputs(self, kind: str) -> "_Inputs":
        """Norms of errors at the inputs, by path; for one thread."""
        return _Inputs(self.calibration, kind)

    def factorised(self, method: Method) -> Callable[[str], mpo.LowRank]:
        """Best approximations of a matrix by its path, in the norm of a method."""
        inputs = self.inputs(method.inputs)
        curvatures = Curvatures(self.calibration) if method.by_loss else {}
        return lambda path: mpo.LowRank(
            self.matrices.weights(path), inputs[path], curvatures.get(path)
        )

    def of_each(
        self, method: Method, use: Callable[[str, mpo.LowRank], Any]
    ) -> Iterator[tuple[str, Any]]:
        """(path, `use` of its factorisation), in order; several are factorised at a time.

        The factorisations themselves are dropped: together they are large.
        """

        def of_input(paths: Sequence[str]) -> list[tuple[str, Any]]:
            factorised = self.factorised(method)  # keeps what the matrices of one input share
            return [(path, use(path, factorised(path))) for path in paths]

        known = self.calibration.statistics
        groups = itertools.groupby(self.paths, lambda path: known[path].reads)
        for found in side_by_side(of_input, [list(paths) for _, paths in groups]):
            for path, result in found:
                yield path, result
                self.advance(path)


def approximations(task: Task, method: Method) -> tuple[Approximations, list[MatrixRow]]:
    """Chains, or changed dense matrices, and a row of the report for each matrix.

    Raises:
      ValueError: a budget below rank 1.
    """
    needs_losses = method.by_loss or method.by_log
    # Steps of a matrix: its losses where they are needed, its factors, its row of the report.
    task.steps = len(task.paths) * (2 + needs_losses) + len(task.expert_paths)
    losses = predicted_losses(task, method) if needs_losses else None
    ranks = ranks_of(task, method, losses)
    found = (layer_by_layer if method.layerwise else at_once)(task, method, ranks)
    return found, rows_of(task, method, found, losses)


def predicted_losses(
    task: Task, method: Method, visit: Callable[[str, mpo.LowRank], None] | None = None
) -> Losses:
    """Rise of the model's loss that the curvature predicts, nats a token, by path and rank.

    Of a method without curvature half the mean squared error of the outputs. `visit` may take more
    of each factorisation, in several threads.
    """

    def squared_errors(path: str, found: mpo.LowRank) -> np.ndarray:
        if visit is not None:
            visit(path, found)  # first: eigenvalues alone would not serve it
        return found.squared_errors

    return {path: errors / 2 for path, errors in task.of_each(method, squared_errors)}


def ranks_of(task: Task, method: Method, losses: Losses | None) -> Ranks:
    """The rank of each matrix by the losses; None for one that stays dense."""
    if method.by_loss:
        # loss(0)^exponent * loss(r) / loss(0)
        weighted = {p: s * (s[0] or 1.0) ** (method.exponent - 1) for p, s in losses.items()}
        return _ranks_by_loss(task, weighted, method.pivoted)
    sizes, share = {path: task.matrices.sizes[path] for path in task.paths}, task.share
    shares = _log_shares(task, losses, share) if method.by_log else dict.fromkeys(sizes, share)
    return {path: _rank_of_share(*size, shares[path]) for path, size in sizes.items()}


def at_once(task: Task, method: Method, ranks: Ranks) -> Approximations:
    """The best chains of these ranks, each matrix for itself."""

    def chain(path: str, found: mpo.LowRank):
        if (rank := ranks[path]) is None:
            return None
        return layerwise.chain(found.cores(rank), method.pivoted, stored_type(found.w))

    made = {path: found for path, found in task.of_each(method, chain) if found is not None}
    return Approximations(made, {}, [])


def layer_by_layer(task: Task, method: Method, ranks: Ranks) -> Approximations:
    """Chains of these ranks, and changed dense matrices, for what really reaches them."""
    return layerwise.compress(
        task.matrices.stored,
        task.batches,
        ranks,
        Curvatures(task.calibration),
        pivoted=method.pivoted,
        resume=task.resume,
        progress=task.advance,
    )


def rows_of(
    task: Task, method: Method, found: Approximations, losses: Losses | None
) -> list[MatrixRow]:
    """Rows of the report, in the order of the model."""

    def row(path: str) -> MatrixRow | None:
        if path not in found.chains:
            return None
        rank = found.chains[path][0].bonds[0]
        predicted = float(losses[path][rank]) if method.by_loss else None
        return _row(task, path, found, method.label, predicted)

    rows = []
    for path, made in zip(task.paths, side_by_side(row, task.paths), strict=True):
        task.advance(f"errors of {path}")
        rows += [] if made is None else [made]
    return rows


def _log_shares(task: Task, losses: Losses, share: float) -> dict[str, float]:
    """Shares of SVD-LLM V2, by the error of all outputs where each matrix keeps the same share."""
    shares: dict[str, float] = {}
    for (_, size), group in _groups(task, by_role=True).items():
        rank = _rank_of_share(*size, share)
        # ||X (W - W_hat)||, over all tokens
        counts = [task.calibration.statistics[path].count for path in group]
        # `losses` are halves of mean squared errors.
        squares = [2 * losses[path][-1 if rank is None else rank] for path in group]
        errors = np.sqrt(np.multiply(counts, squares))
        shares |= zip(group, mpo.log_shares(errors, share), strict=True)
    return shares


def _groups(task: Task, by_role: bool) -> dict[tuple, list[str]]:
    """Paths by (role or path, size)."""
    groups: dict[tuple, list[str]] = {}
    for path in task.paths:
        role = role_of_path(path) if by_role else path
        groups.setdefault((role, task.matrices.sizes[path]), []).append(path)
    return groups


def _ranks_by_loss(task: Task, losses: Losses, pivoted: bool) -> Ranks:
    """For each matrix alone or for those of a role and size together."""
    groups = _groups(task, task.share_bonds)
    pooled = [np.sum([losses[path] for path in group], axis=0) for group in groups.values()]
    sizes, counts = [size for _, size in groups], [len(group) for group in groups.values()]
    ranks = mpo.allocate_ranks(pooled, sizes, task.budget, counts, pivoted)
    chosen = {
        path: rank for group, rank in zip(groups.values(), ranks, strict=True) for path in group
    }
    return {path: chosen[path] for path in losses}


class Curvatures(Mapping):
    """Curvatures with their ridge, by path; made when they are used: together they are large."""

    def __init__(self, calibration: Calibration):
        self.statistics = calibration.statistics

    def __getitem__(self, path: str) -> mpo.Metric:
        return mpo.Metric(mpo.ridged(np.asarray(self.statistics[path].curvature), CURVATURE_RIDGE))

    def __iter__(self):
        return iter(self.statistics)

    def __len__(self) -> int:
        return len(self.statistics)


class _Inputs:
    """Norms of errors by path; matrices that read the same input share one, and its factors."""

    def __init__(self, calibration: Calibration, kind: str):
        self.calibration, self.kind = calibration, kind
        self.last: tuple[str, mpo.Metric] | None = None

    def __getitem__(self, path: str) -> mpo.Metric | None:
        if self.kind == "weights":
            return None
        reads = self.calibration.statistics[path].reads
        if self.last is None or self.last[0] != reads:  # those of one input follow each other
            covariance = self.calibration.covariance(path)
            # S = diag(rms): S^(1/2) W scales row i by rms_i^(1/2), ASVD with its alpha of 1/2.
            scales = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
            self.last = reads, mpo.Metric(scales if self.kind == "scales" else covariance)
        return self.last[1]


def _rank_of_share(rows: int, columns: int, share: float) -> int | None:
    # r (in + out) = share in out
    rank = int(share * rows * columns / (rows + columns))
    return None if share >= 1 else max(min(rank, rows, columns), 1)


def _row(task: Task, path: str, found: Approximations, label: str, predicted) -> MatrixRow:
    w, w_hat = task.matrices.weights(path), found.matrix(path)
    covariance = task.calibration.covariance(path)
    return MatrixRow.of(
        path,
        found.chains[path][0],
        relative_error=mpo.relative_error(w, w_hat),
        error_bound=None,
        entropy=(),
        svd_error=None,
        method=label,
        output_error=mpo.weighted_relative_error(w, w_hat, covariance),
        predicted_loss=predicted,
    )


def check_model(method: str, matrices: Matrices, paths: Sequence[str]) -> None:
    """Checks that a method can be used for these matrices; before anything is calibrated.

    Raises:
      ValueError: tables, experts that the method does not know, or a model that a layerwise one
        cannot run.
    """
    if tables := [path for path in paths if path in matrices.tables]:
        raise ValueError(
            f"{tables[0]}: a method is for the linear maps, whose inputs vary; compress a table by "
            "a rule of its own, such as Rule('embeddings/word', rank=64), or leave it out."
        )
    experts = [path for path in paths if path in matrices.expert_sizes]
    if experts and not METHODS[method].forms:
        knowing = checks.listed([repr(name) for name, each in METHODS.items() if each.forms])
        raise ValueError(
            f"{experts[0]}: method={method!r} knows no experts; take one of {knowing}, or rules "
            "that leave the experts as they are."
        )
    if METHODS[method].layerwise and (reason := layerwise.refusal(matrices.model)):
        raise ValueError(
            f"method={method!r} runs the model layer by layer, but {reason}; take method='pivoted'."
        )


def check(
    method: str,
    matrices: Matrices,
    paths: Sequence[str],
    calibration: Calibration,
    batches: Sequence[Mapping],
) -> None:
    """Checks that a calibration, and texts, are what a method needs.

    Raises:
      ValueError: one that lacks what it needs, or is of another model.
    """
    settings = METHODS[method]
    calibration.check(matrices.of_paths(paths))
    if unused := [path for path in paths if not calibration.statistics[path].count]:
        raise ValueError(
            f"{unused[0]}: no input has entered this matrix on the calibration set; leave it out "
            "of the rules."
        )
    without = [path for path in paths if calibration.statistics[path].curvature is None]
    if settings.by_loss and without:
        raise ValueError(
            f"method={method!r} counts errors by the curvature of the loss: calibrate with "
            "curvature=True, or give the batches themselves as calibration."
        )
    if settings.layerwise and not batches:
        raise ValueError(
            f"method={method!r} runs the texts layer by layer: give the batches as calibration, or "
            "take method='pivoted'."
        )


def warn_of_few(matrices: Matrices, paths: Sequence[str], calibration: Calibration) -> None:
    """Logs a warning where fewer tokens were read than a matrix has inputs."""
    for path in paths:
        count, inputs = calibration.statistics[path].count, matrices.all_sizes[path][0]
        if count < inputs:
            logging.warning(
                "calibration: %d tokens are fewer than the %d inputs of %s; the result fits them, "
                "and other texts less well. Give more text.",
                *(count, inputs, path),
            )
            return
