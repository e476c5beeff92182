"""The matrices of a model become chains, one after the other, on the host in float64."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mpojax import mpo
from mpojax.compression import allocation as allocation_lib
from mpojax.compression.allocation import Group
from mpojax.compression.calibration import Calibration
from mpojax.compression.report import MatrixRow, relative_bound
from mpojax.compression.rules import Target


class Decomposer:
    """Makes the chains of the matrices that rules match.

    Where full bonds are settled beforehand one decomposition gives chain and spectra. Else there
    are two passes: spectra of the uncut matrices, then the chains. Decomposing again with cut bonds
    costs less than keeping and rounding the full chains, and gives the same. What is factorised for
    low rank is kept from the first pass to the report of the second.

    Attributes:
      chains: {path: (shape, float32 cores)} of the matrices that are chains now.
      spectra: {path: spectra of the uncut matrix for its factor lists}.
      rows: {path: row of the report}.
    """

    def __init__(
        self,
        weights: Callable[[str], np.ndarray],
        groups: Sequence[Group],
        calibration: Calibration | None,
        progress: Callable[[int, int, str], None] | None,
    ):
        """`weights` gives a matrix by its path; other arguments as in `compression.compress`."""
        self.weights, self.groups, self.calibration = weights, groups, calibration
        self.progress = progress
        self.targets = [target for group in groups for target in group.targets]
        self.chains: dict[str, tuple[mpo.MPOShape, tuple[np.ndarray, ...]]] = {}
        self.spectra: dict[str, list[np.ndarray]] = {}
        self.rows: dict[str, MatrixRow] = {}
        self._low_ranks: dict[tuple[str, mpo.Metric | None], mpo.LowRank] = {}
        self._done = self._total = 0

    def run(self, parameter_budget: int | None, allocation: str, keep_dense: bool):
        """Chooses the shapes and makes the chains; arguments as in `allocation.chosen_shapes`."""
        settled = {target.path for target in self.targets if _is_settled(target, parameter_budget)}
        self._total = 2 * len(self.targets) - len(settled)
        deciding = {}
        weights = None if parameter_budget is None or allocation == "error" else {}
        for target in self.targets:
            path, w = target.path, self.weights(target.path)
            if path in settled:
                gauge = target.settings.gauge
                cores, self.spectra[path] = mpo.decompose_with_spectra(w, target.full, gauge)
                self._store(target, target.full, cores)
            else:
                self.spectra[path] = self._spectra(target, None)
                if parameter_budget is not None and target.settings.leaves_bonds_open:
                    # In the norm that counts for this matrix: what an allocation cuts by.
                    metric = self._metric(target)
                    own = self.spectra[path]
                    deciding[path] = own if metric is None else self._spectra(target, metric)
                    if weights is not None:
                        aware = target.settings.data_aware
                        weights[path] = self.calibration.sensitivity(path, w, aware)
            self._advance(path)
        spectra = self.spectra | deciding
        chosen = allocation_lib.chosen_shapes(
            self.groups, spectra, weights, parameter_budget, keep_dense
        )
        for group, shape in zip(self.groups, chosen, strict=True):
            self._run_group([t for t in group.targets if t.path not in settled], shape)

    def _run_group(self, targets: Sequence[Target], shape: mpo.MPOShape | None):
        if shape is not None and targets and targets[0].settings.search:
            shape, found = self._searched(targets, shape)
        else:
            found = [None] * len(targets)
        for target, cores in zip(targets, found, strict=True):
            if shape is None:
                del self.spectra[target.path]
                self._forget(target.path)
            else:
                self._store(target, shape, self._chain(target, shape) if cores is None else cores)
            self._advance(target.path)

    def _metric(self, target: Target) -> mpo.Metric | None:
        if not target.settings.data_aware:
            return None
        return self.calibration.metric(target.path, target.settings.ridge)

    def _low_rank(self, path: str, metric: mpo.Metric | None) -> mpo.LowRank:
        """All best approximations of low rank of a matrix, factorised once."""
        key = path, metric
        if key not in self._low_ranks:
            self._low_ranks[key] = mpo.LowRank(self.weights(path), metric)
        return self._low_ranks[key]

    def _forget(self, path: str):
        self._low_ranks = {k: v for k, v in self._low_ranks.items() if k[0] != path}

    def _spectra(self, target: Target, metric: mpo.Metric | None) -> list[np.ndarray]:
        """Singular values of every bond of the uncut matrix, in a norm."""
        if target.full.is_low_rank:
            return [self._low_rank(target.path, metric).spectrum]
        w = self.weights(target.path)
        white = w if metric is None else metric.whitened(w)
        return mpo.decompose_with_spectra(white, target.full)[1]

    def _chain(self, target: Target, shape: mpo.MPOShape):
        metric, gauge = self._metric(target), target.settings.gauge
        if shape.is_low_rank and gauge != "identity":
            cores = self._low_rank(target.path, metric).cores(shape.bond_dims[0])
            return mpo.canonicalize(cores, gauge)
        w = self.weights(target.path)
        if metric is None or shape.is_full:
            return mpo.decompose(w, shape, gauge)
        return mpo.canonicalize(mpo.fit(w, shape, metric).cores, gauge)

    def _searched(self, targets: Sequence[Target], shape: mpo.MPOShape):
        """(shape found, cores of each matrix), with at most as many parameters as `shape`."""
        paths, metrics = [t.path for t in targets], [self._metric(t) for t in targets]
        low_ranks = [
            [self._low_rank(path, m) for m in dict.fromkeys([metric, None])]
            for path, metric in zip(paths, metrics, strict=True)
        ]
        searched = mpo.search_factors(
            [self.weights(path) for path in paths],
            shape.num_params,
            None if metrics[0] is None else metrics,
            low_ranks=low_ranks,
        )
        full = searched.shape.with_bonds(None)
        if not full.is_low_rank:
            for path in paths:
                self.spectra[path] = mpo.decompose_with_spectra(self.weights(path), full)[1]
        gauge = targets[0].settings.gauge
        return searched.shape, [mpo.canonicalize(cores, gauge) for cores in searched.cores]

    def _store(self, target: Target, shape: mpo.MPOShape, cores):
        """Keeps float32 cores of a matrix, and a row for the report."""
        path, w = target.path, self.weights(target.path)
        cores = tuple(np.asarray(core, np.float32) for core in cores)
        self.chains[path] = shape, cores
        w_hat = mpo.to_matrix(cores, shape)
        spectra = self.spectra[path]
        # Low rank with at most as many parameters: r (in + out) <= those of the chain.
        rank = min(shape.num_params // sum(w.shape), min(w.shape))
        self.rows[path] = MatrixRow.of(
            path,
            shape,
            relative_error=mpo.relative_error(w, w_hat),
            error_bound=relative_bound(spectra, shape.bond_dims),
            entropy=tuple(float(mpo.entanglement_entropy(s)) for s in spectra),
            svd_error=float(self._low_rank(path, None).errors[rank]),
            method=_method(target),
            **self._output_errors(target, w, w_hat, rank),
        )
        self._forget(path)

    def _output_errors(self, target: Target, w, w_hat, rank: int) -> Mapping[str, float]:
        """Relative output errors on the calibration set: of the chain and of both kinds of SVD."""
        if self.calibration is None or not self.calibration.statistics[target.path].count:
            return {}
        # Only measured here: few inputs are no reason to refuse a report.
        ridge = target.settings.ridge
        ridge = self.calibration.default_ridge(target.path) if ridge is None else ridge
        metric = self.calibration.metric(target.path, ridge)

        def error(approximation) -> float:
            return mpo.weighted_relative_error(w, approximation, metric.covariance)

        errors = {"output_error": error(w_hat)}
        for name, norm in (("svd_output_error", None), ("data_svd_output_error", metric)):
            # Nothing of rank 0 is left: all of the output is lost.
            low_rank = self._low_rank(target.path, norm)
            errors[name] = error(mpo.to_matrix(low_rank.cores(rank))) if rank else 1.0
        return errors

    def _advance(self, path: str):
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self._total, path)


def _is_settled(target: Target, parameter_budget: int | None) -> bool:
    """True if the chain has full bonds whatever the spectra are."""
    settings = target.settings
    is_open = settings.tolerance is not None or (
        parameter_budget is not None and settings.leaves_bonds_open
    )
    # The identity gauge is no factorisation: its spectra come from one of their own.
    return not is_open and target.cut.is_full and settings.gauge != "identity"


def _method(target: Target) -> str:
    names = {"searched": target.settings.search, "data-aware": target.settings.data_aware}
    return ", ".join(name for name, used in names.items() if used) or "plain"
