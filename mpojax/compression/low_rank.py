"""Post-training compression of a whole model by low rank: each published method, and the best.

| method            | errors count by         | ranks                   | targets        |
| svd               | the weights             | the same share for all  | weights        |
| activation_scaled | activation sizes        | the same share for all  | weights        |
| whitened          | outputs                 | the same share for all  | weights        |
| two_sided         | outputs and curvature   | by predicted loss       | weights        |
| pivoted           | outputs and curvature   | by predicted loss, more | weights        |
| best              | outputs and curvature   | by predicted loss, more | layer by layer |

svd is plain truncation; activation_scaled is ASVD (Yuan et al., 2023, arXiv:2312.05821) with root
mean squares in the place of mean absolute values; whitened is SVD-LLM (Wang et al., 2024,
arXiv:2403.07378) in closed form, without inverses.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import checks, mpo
from mpojax.compression import layerwise
from mpojax.compression.calibration import Calibration
from mpojax.compression.matrices import Matrices
from mpojax.compression.report import MatrixRow, role_of_path

# Of curvatures: few tokens know little about most directions.
CURVATURE_RIDGE = 0.1


@dataclasses.dataclass(frozen=True)
class Method:
    """How ranks and factors are found.

    Attributes:
      label: in tables.
      inputs: what errors count by at the inputs: "weights" (all alike), "scales" or "covariance".
      by_loss: errors count by the curvature of the loss at the outputs, too, and ranks are those of
        least predicted loss; else every matrix keeps the same share of its parameters.
      pivoted: ranks and chains are pivoted ones, see `mpojax.mpo.pivoted`.
      layerwise: targets are corrected layer by layer, see `mpojax.compression.layerwise`.
    """

    label: str
    inputs: str
    by_loss: bool = False
    pivoted: bool = False
    layerwise: bool = False


METHODS = {
    "svd": Method("SVD", "weights"),
    "activation_scaled": Method("activation-scaled SVD (ASVD)", "scales"),
    "whitened": Method("whitened SVD (SVD-LLM)", "covariance"),
    "two_sided": Method("two-sided whitening", "covariance", by_loss=True),
    "pivoted": Method("two-sided, pivoted", "covariance", by_loss=True, pivoted=True),
    "best": Method("ours", "covariance", by_loss=True, pivoted=True, layerwise=True),
}


def approximations(
    matrices: Matrices,
    paths: Sequence[str],
    budget: int,
    method: str,
    calibration: Calibration,
    batches: Sequence[Mapping] = (),
    share_bonds: bool = False,
    resume: str | os.PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[layerwise.Approximations, list[MatrixRow]]:
    """Chains, or changed dense matrices, for some matrices of a model.

    Args:
      matrices: of the model.
      paths: which of them.
      budget: parameters that they may have together.
      method: a key of `METHODS`.
      calibration: with curvature where the method counts by it.
      batches: what a layerwise method runs.
      share_bonds: matrices of one role have the same rank in all layers.
      resume: see `layerwise.compress`.
      progress: called as progress(done, total, path).

    Returns:
      What to put into the model, and a row of the report for each matrix.

    Raises:
      ValueError: a budget below rank 1.
    """
    settings = METHODS[method]
    done = 0

    def advance(path: str):
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(paths) * (1 + settings.by_loss), path)

    curvatures = _Curvatures(calibration)
    inputs = _input_metrics(paths, calibration, settings.inputs)

    def factorised(path: str) -> mpo.LowRank:
        curvature = curvatures[path] if settings.by_loss else None
        return mpo.LowRank(matrices.weights(path), inputs[path], curvature)

    predicted: dict[str, float] = {}
    sizes = [matrices.sizes[path] for path in paths]
    if settings.by_loss:
        losses = {}
        for path in paths:
            # Half of it is the rise of the loss that the curvature predicts.
            losses[path] = factorised(path).squared_errors / 2
            advance(path)
        ranks = _ranks_by_loss(matrices, losses, budget, settings.pivoted, share_bonds)
        predicted = {path: float(losses[path][-1 if r is None else r]) for path, r in ranks.items()}
    else:
        share = budget / sum(rows * columns for rows, columns in sizes)
        ranks = {p: _rank_of_share(*size, share) for p, size in zip(paths, sizes, strict=True)}
    if settings.layerwise:
        result = layerwise.compress(
            matrices.model,
            batches,
            ranks,
            curvatures,
            pivoted=settings.pivoted,
            resume=resume,
            progress=advance,
        )
    else:
        result = layerwise.Approximations({}, {}, [])
        for path, rank in ranks.items():
            if rank is not None:
                cores = factorised(path).cores(rank)
                result.chains[path] = layerwise.chain(cores, settings.pivoted)
            advance(path)
    rows = [
        _row(path, matrices, result, settings, calibration, predicted.get(path))
        for path in paths
        if path in result.chains
    ]
    return result, rows


def _ranks_by_loss(matrices: Matrices, losses, budget: int, pivoted: bool, share_bonds: bool):
    """{path: rank or None}, for each matrix alone or for those of a role and size together."""
    groups: dict[tuple, list[str]] = {}
    for path in losses:
        role = role_of_path(path) if share_bonds else path
        groups.setdefault((role, matrices.sizes[path]), []).append(path)
    pooled = [np.sum([losses[path] for path in group], axis=0) for group in groups.values()]
    sizes, counts = [size for _, size in groups], [len(group) for group in groups.values()]
    ranks = mpo.allocate_ranks(pooled, sizes, budget, counts, pivoted)
    chosen = {
        path: rank for group, rank in zip(groups.values(), ranks, strict=True) for path in group
    }
    return {path: chosen[path] for path in losses}


class _Curvatures(Mapping):
    """Curvatures with their ridge, by path; made when they are used: together they are large."""

    def __init__(self, calibration: Calibration):
        self.statistics = calibration.statistics

    def __getitem__(self, path: str) -> mpo.Metric:
        return mpo.Metric(mpo.ridged(self.statistics[path].curvature, CURVATURE_RIDGE))

    def __iter__(self):
        return iter(self.statistics)

    def __len__(self) -> int:
        return len(self.statistics)


def _input_metrics(paths, calibration: Calibration, kind: str) -> dict[str, mpo.Metric | None]:
    """Norms of errors by path; matrices that read the same input share one."""
    if kind == "weights":
        return dict.fromkeys(paths)
    made: dict[int, mpo.Metric] = {}
    for path in paths:
        covariance = calibration.covariance(path)
        if id(covariance) not in made:
            scales = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
            made[id(covariance)] = mpo.Metric(scales if kind == "scales" else covariance)
    return {path: made[id(calibration.covariance(path))] for path in paths}


def _rank_of_share(rows: int, columns: int, share: float) -> int | None:
    rank = int(share * rows * columns / (rows + columns))
    return None if share >= 1 else max(min(rank, rows, columns), 1)


def _row(path, matrices, result, settings: Method, calibration, predicted) -> MatrixRow:
    shape, cores = result.chains[path]
    w, w_hat = matrices.weights(path), mpo.to_matrix(cores, shape)
    covariance = calibration.covariance(path)
    return MatrixRow.of(
        path,
        shape,
        relative_error=mpo.relative_error(w, w_hat),
        error_bound=None,
        entropy=(),
        svd_error=None,
        method=settings.label,
        output_error=mpo.weighted_relative_error(w, w_hat, covariance),
        predicted_loss=predicted,
    )


def check(
    method: str,
    matrices: Matrices,
    paths: Sequence[str],
    calibration: Calibration,
    batches: Sequence[Mapping],
) -> None:
    """Checks that a method can be used.

    Raises:
      ValueError: no such method, a calibration that lacks what it needs or is of another model, or
        a model that a layerwise method cannot run.
    """
    checks.check_value("method", method, checks.one_of(*METHODS))
    settings = METHODS[method]
    calibration.check({path: matrices.weights(path) for path in paths})
    if unused := [path for path in paths if not calibration.statistics[path].count]:
        raise ValueError(
            f"{unused[0]}: no input has entered this matrix on the calibration set; leave it out "
            "of the rules."
        )
    if tables := [path for path in paths if calibration.covariance(path).ndim == 1]:
        raise ValueError(
            f"{tables[0]}: a method is for the linear maps, whose inputs vary; compress a table by "
            "a rule of its own, such as Rule('embeddings/word', rank=64), or leave it out."
        )
    counts = {path: calibration.statistics[path].count for path in paths}
    if few := [path for path in paths if counts[path] < matrices.sizes[path][0]]:
        logging.warning(
            "calibration: %d tokens are fewer than the %d inputs of %s; the result fits them, and "
            "other texts less well. Give more text.",
            counts[few[0]],
            matrices.sizes[few[0]][0],
            few[0],
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
    if settings.layerwise and (reason := layerwise.refusal(matrices.model)):
        raise ValueError(
            f"method={method!r} runs the model layer by layer, but {reason}; take method='pivoted'."
        )
