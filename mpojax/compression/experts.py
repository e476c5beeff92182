"""Compression of the matrices of experts: of each map the form of least error at its size.

Every map keeps the same share of its parameters. Its candidates are those of `mpo.EXPERT_FORMS`,
compared by the error of the outputs on the tokens that reach each expert; what others do (an SVD
for each expert, a common matrix and low-rank differences) is among them, so that a core that all
experts share is taken only where it loses less.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence

import numpy as np

from mpojax import mpo
from mpojax.compression.calibration import Calibration, InputStatistics
from mpojax.compression.low_rank import Method, Task
from mpojax.compression.matrices import stored_type
from mpojax.compression.report import MatrixRow

_ERROR = operator.attrgetter("squared_error")
Chains = dict[str, tuple[mpo.MPOShape, tuple[np.ndarray, ...]]]


@dataclasses.dataclass
class Compressed:
    """What came out, by path.

    Attributes:
      chains: (shape, cores), cores that experts own with a leading axis of experts.
      bases: (in, out), added to the chains of all experts.
      rows: of the report.
    """

    chains: Chains
    bases: dict[str, np.ndarray]
    rows: list[MatrixRow]

    @property
    def notes(self) -> tuple[str, ...]:
        """How often a shared core was the best."""
        # Of experts whose inputs are all zero every error is zero.
        compared = [row for row in self.rows if row.baseline_output_error]
        if not compared:
            return ()
        shared = [row for row in compared if row.method not in mpo.EXPERT_BASELINES]
        # Errors of rows are norms: the squares give the share of the squared error.
        gains = [1 - (row.output_error / row.baseline_output_error) ** 2 for row in shared]
        gain = f", by {100 * np.mean(gains):.0f} % of its squared error" if shared else ""
        return (
            f"experts: a core that all share loses less than every baseline of its size in "
            f"{len(shared)} of {len(compared)} maps{gain}",
        )


def approximations(task: Task, method: Method) -> Compressed:
    """Of the maps of experts of a task.

    Raises:
      ValueError: a budget below rank 1 of every form.
    """
    found = Compressed({}, {}, [])
    for path in task.expert_paths:
        ws = np.asarray(task.matrices.weights(path))
        fit, baseline = _best(task, method, path, ws)
        if fit is not None:
            kind = stored_type(ws)
            cores = tuple(np.asarray(core, kind) for core in fit.cores)
            found.chains[path] = fit.shape, cores
            if fit.base is not None:
                found.bases[path] = np.asarray(fit.base, kind)
            found.rows.append(_row(task, path, ws, fit, baseline))
        task.advance(path)
    return found


def unreached(calibration: Calibration, paths: Sequence[str]) -> tuple[str, ...]:
    """A note for each block with experts that no token reached."""
    found: dict[str, list[int]] = {}
    for path in paths:
        loads = calibration.statistics[path].loads
        if none := [int(e) for e in np.flatnonzero(loads == 0)]:
            found[path.rpartition("/")[0]] = none
    return tuple(
        f"{block}: no token of the calibration reached experts {', '.join(map(str, experts))}; "
        "they are fitted to their weights alone"
        for block, experts in found.items()
    )


def _best(task: Task, method: Method, path: str, ws):
    """(the best fit, None for dense; the best of the baselines where they are compared)."""
    if task.share >= 1:
        return None, None
    experts = mpo.ExpertMatrices(ws, _metrics(task.calibration.statistics[path], method.inputs))
    budget = int(task.share * ws.size)
    fits = list(experts.fits(budget, method.forms))
    if not fits:
        raise ValueError(
            f"{path}: {budget:,} parameters, {100 * task.share:.1f} % of those of its "
            f"{len(ws)} experts, are below rank 1; raise the budget."
        )
    best = min(fits, key=_ERROR)
    if len(method.forms) == 1:
        return best, None
    baselines = (fit for fit in fits if fit.form in mpo.EXPERT_BASELINES)
    return best, min(baselines, key=_ERROR, default=None)


def _metrics(known: InputStatistics, kind: str) -> list[mpo.Metric] | None:
    """Norms of errors at the inputs of each expert; None for the plain norm."""
    if kind == "weights":
        return None
    covariances = np.asarray(known.covariance, np.float64)
    plain = _one_token(covariances, known)
    return [mpo.Metric(_metric(s, kind) if np.any(s) else plain) for s in covariances]


def _metric(covariance, kind: str) -> np.ndarray:
    if kind == "covariance":
        return mpo.ridged(covariance, mpo.DEFAULT_RIDGE)
    # Positive, as fits need it, also at features that are always zero.
    return np.sqrt(np.maximum(np.diagonal(covariance), 0.0)) + np.finfo(np.float64).tiny


def _one_token(covariances, known: InputStatistics) -> np.ndarray:
    """Of an expert that no token reached: as if one had, of the usual size, in no direction."""
    loads = np.asarray(known.loads, np.float64)
    # mean |x|^2 of the routed tokens over the number of all tokens: what one token adds to tr(S).
    each = np.trace(covariances.sum(axis=0)) / max(loads.sum() * known.count, 1.0)
    return np.eye(covariances.shape[1]) * (each / covariances.shape[1] or 1.0)


def _row(task: Task, path: str, ws, fit: mpo.ExpertFit, baseline) -> MatrixRow:
    covariances = np.asarray(task.calibration.statistics[path].covariance)
    row = MatrixRow.of(
        path,
        fit.shape,
        relative_error=_relative(ws, fit, [None] * len(ws)),
        error_bound=None,
        entropy=(),
        svd_error=None,
        method=fit.form,
        output_error=_relative(ws, fit, covariances),
        baseline_output_error=baseline and _relative(ws, baseline, covariances),
    )
    return dataclasses.replace(row, dense_parameters=ws.size, mpo_parameters=fit.num_params)


def _relative(ws, fit: mpo.ExpertFit, covariances) -> float:
    """Relative error over all experts, in norms of their outputs or of the weights (None)."""
    error = norm = 0.0
    for expert, (w, covariance) in enumerate(zip(ws, covariances, strict=True)):
        # tr((W - W')^T S (W - W')) with S the covariance of the expert's inputs, S = I for None.
        error += mpo.weighted_square(np.float64(w) - fit.matrix(expert), covariance)
        norm += mpo.weighted_square(w, covariance)
    return math.sqrt(error / norm) if norm else 0.0
