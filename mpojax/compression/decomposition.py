"""The matrices of a model become chains, one after the other, on the host in float64."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mpojax import models, mpo
from mpojax.compression import allocation as allocation_lib
from mpojax.compression.allocation import Group
from mpojax.compression.calibration import Calibration
from mpojax.compression.report import MatrixRow, relative_bound
from mpojax.compression.rules import Target


class Decomposer:
    """Replaces matrices in a flat dict of arrays by cores.

    Where full bonds are settled beforehand one decomposition gives chain and spectra. Else there
    are two passes: spectra of the uncut matrices, then the chains. Decomposing again with cut bonds
    costs less than keeping and rounding the full chains, and gives the same.

    Attributes:
      shapes: {path: shape} of the matrices that are chains now.
      spectra: {path: spectra of the uncut matrix for its factor lists}.
      rows: {path: row of the report}.
      kept: paths that a budget has left dense.
    """

    def __init__(
        self,
        arrays: dict,
        groups: Sequence[Group],
        calibration: Calibration | None,
        progress: Callable[[int, int, str], None] | None,
    ):
        """`arrays` changes in place by `run`; the other arguments as in `compression.compress`."""
        self.arrays, self.groups, self.calibration = arrays, groups, calibration
        self.progress = progress
        self.targets = [target for group in groups for target in group.targets]
        self.shapes: dict[str, mpo.MPOShape] = {}
        self.spectra: dict[str, list[np.ndarray]] = {}
        self.rows: dict[str, MatrixRow] = {}
        self.kept: list[str] = []
        self._done = self._total = 0

    def run(self, room: int | None, allocation: str, keep_dense: bool):
        """Chooses the shapes and makes the chains; arguments as in `allocation.chosen_shapes`."""
        settled = {target.path for target in self.targets if _is_settled(target, room)}
        self._total = 2 * len(self.targets) - len(settled)
        deciding = {}
        weights = None if room is None or allocation == "error" else {}
        for target in self.targets:
            path, w = target.path, self._matrix(target.path)
            if path in settled:
                cores, self.spectra[path] = mpo.decompose_with_spectra(
                    w, target.full, target.settings.gauge
                )
                self._store(target, target.full, cores)
            else:
                self.spectra[path] = mpo.decompose_with_spectra(w, target.full)[1]
                if room is not None and target.settings.leaves_bonds_open:
                    deciding[path] = self._deciding_spectra(target, w)
                    if weights is not None:
                        aware = target.settings.data_aware
                        weights[path] = self.calibration.sensitivity(path, w, aware)
            self._advance(path)
        spectra = self.spectra | deciding
        chosen = allocation_lib.chosen_shapes(self.groups, spectra, weights, room, keep_dense)
        for group, shape in zip(self.groups, chosen, strict=True):
            self._run_group([t for t in group.targets if t.path not in settled], shape)

    def _run_group(self, targets: Sequence[Target], shape: mpo.MPOShape | None):
        if shape is not None and targets and targets[0].settings.search:
            shape, found = self._searched(targets, shape)
        else:
            found = [None] * len(targets)
        for target, cores in zip(targets, found, strict=True):
            if shape is None:
                self.kept.append(target.path)
                del self.spectra[target.path]
            else:
                if cores is None:
                    cores = self._decomposed(target, shape)
                self._store(target, shape, cores)
            self._advance(target.path)

    def _matrix(self, path: str) -> np.ndarray:
        return np.asarray(self.arrays[models.dense_name(path)])

    def _metric(self, target: Target) -> np.ndarray | None:
        if not target.settings.data_aware:
            return None
        return self.calibration.metric(target.path, target.settings.ridge)

    def _deciding_spectra(self, target: Target, w) -> list[np.ndarray]:
        """Spectra in the norm that counts for this matrix: what an allocation cuts by."""
        metric = self._metric(target)
        if metric is None:
            return self.spectra[target.path]
        return mpo.decompose_with_spectra(mpo.whitened(w, metric), target.full)[1]

    def _decomposed(self, target: Target, shape: mpo.MPOShape):
        w, metric = self._matrix(target.path), self._metric(target)
        if metric is None or shape.is_full:
            return mpo.decompose(w, shape, target.settings.gauge)
        return mpo.canonicalize(mpo.fit(w, shape, metric).cores, target.settings.gauge)

    def _searched(self, targets: Sequence[Target], shape: mpo.MPOShape):
        """(shape found, cores of each matrix), with at most as many parameters as `shape`."""
        settings, paths = targets[0].settings, [target.path for target in targets]
        matrices = [self._matrix(path) for path in paths]
        covariances, ridge = None, settings.ridge
        if settings.data_aware:
            covariances = [self.calibration.covariance(path) for path in paths]
            if ridge is None:
                ridge = self.calibration.default_ridge(paths[0])
        searched = mpo.search_factors(
            matrices, shape.num_params, covariances, ridge=0.0 if ridge is None else ridge
        )
        full = searched.shape.with_bonds(None)
        for path, w in zip(paths, matrices, strict=True):
            self.spectra[path] = mpo.decompose_with_spectra(w, full)[1]
        return searched.shape, [mpo.canonicalize(c, settings.gauge) for c in searched.cores]

    def _store(self, target: Target, shape: mpo.MPOShape, cores):
        """Puts float32 cores in place of a matrix, and a row into the report."""
        path, w = target.path, self._matrix(target.path)
        cores = tuple(np.asarray(core, np.float32) for core in cores)
        del self.arrays[models.dense_name(path)]
        self.arrays.update({f"{path}/cores/{k}": core for k, core in enumerate(cores)})
        self.shapes[path] = shape
        w_hat = mpo.to_matrix(cores, shape)
        spectra, size = self.spectra[path], sum(w.shape)
        rank = min(shape.num_params // size, min(w.shape))
        self.rows[path] = MatrixRow(
            path=path,
            in_features=shape.in_features,
            out_features=shape.out_features,
            in_factors=shape.in_factors,
            out_factors=shape.out_factors,
            bonds=shape.bond_dims,
            dense_parameters=shape.num_dense_params,
            mpo_parameters=shape.num_params,
            relative_error=mpo.relative_error(w, w_hat),
            error_bound=relative_bound(spectra, shape.bond_dims),
            entropy=tuple(float(mpo.entanglement_entropy(s)) for s in spectra),
            svd_error=float(mpo.low_rank_errors(w)[rank]),
            method=_method(target),
            **self._output_errors(target, w, w_hat, rank),
        )

    def _output_errors(self, target: Target, w, w_hat, rank: int) -> Mapping[str, float]:
        """Relative output errors on the calibration set: of the chain and of both kinds of SVD."""
        if self.calibration is None or not self.calibration.statistics[target.path].count:
            return {}
        covariance = self.calibration.covariance(target.path)
        # Only measured here: few inputs are no reason to refuse a report.
        ridge = target.settings.ridge
        ridge = self.calibration.default_ridge(target.path) if ridge is None else ridge
        metric = self.calibration.metric(target.path, ridge)

        def error(approximation) -> float:
            return mpo.weighted_relative_error(w, approximation, covariance)

        errors = {"output_error": error(w_hat)}
        for name, s in (("svd_output_error", None), ("data_svd_output_error", metric)):
            # Nothing of rank 0 is left: all of the output is lost.
            errors[name] = error(mpo.to_matrix(mpo.low_rank(w, rank, s))) if rank else 1.0
        return errors

    def _advance(self, path: str):
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self._total, path)


def _is_settled(target: Target, room: int | None) -> bool:
    """True if the chain has full bonds whatever the spectra are."""
    settings = target.settings
    is_open = settings.tolerance is not None or (room is not None and settings.leaves_bonds_open)
    # The identity gauge is no factorisation: its spectra come from one of their own.
    return not is_open and target.cut.is_full and settings.gauge != "identity"


def _method(target: Target) -> str:
    names = {"searched": target.settings.search, "data-aware": target.settings.data_aware}
    return ", ".join(name for name, used in names.items() if used) or "plain"
