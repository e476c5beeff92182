"""Report of a compression: one row for each matrix, totals, tables and plots."""

import dataclasses
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpojax import figures, files, mpo, tables

# {header: field of a row}, where there was a calibration.
_OF_OUTPUTS = {
    "output error": "output_error",
    "SVD output error": "svd_output_error",
    "data-aware SVD output error": "data_svd_output_error",
    "best baseline": "baseline_output_error",
}


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """One compressed matrix.

    Attributes:
      path: matrix path in the model.
      in_features, out_features: size of the dense matrix.
      in_factors, out_factors: factor lists of the MPO; products above the size mean padding.
      bonds: inner bond dimensions.
      dense_parameters, mpo_parameters: counts before and after, biases not counted.
      relative_error: Frobenius error of the stored float32 cores against the weights, measured.
      error_bound: sqrt(sum_k eps_k^2) / norm from the spectra: no plain truncation to these bonds
        is worse. A data-aware MPO may be; its measure is `output_error`. None, without entropy and
        SVD error, where the spectra of the weights were not needed.
      entropy: entanglement entropy of each bond of the uncut matrix, in nats.
      svd_error: error of the truncated SVD with at most as many parameters.
      method: "plain", "data-aware", "searched", or "searched, data-aware".
      output_error: ||X (W - W_hat)|| / ||X W|| over the inputs of the calibration set; None without
        a calibration, or where no input has entered the matrix.
      svd_output_error: the same of the truncated SVD with at most as many parameters.
      data_svd_output_error: the same of the data-aware one.
      predicted_loss: rise of the model's loss in nats a token that the curvature predicts, for the
        matrix alone.
      baseline_output_error: of experts' matrices the output error of the best form without a core
        that all share, of the same size.
      pivoted: low rank in the form with r^2 fewer numbers, see `mpojax.mpo.pivoted`.
    """

    path: str
    in_features: int
    out_features: int
    in_factors: tuple[int, ...]
    out_factors: tuple[int, ...]
    bonds: tuple[int, ...]
    dense_parameters: int
    mpo_parameters: int
    relative_error: float
    error_bound: float | None
    entropy: tuple[float, ...]
    svd_error: float | None
    method: str = "plain"
    output_error: float | None = None
    svd_output_error: float | None = None
    data_svd_output_error: float | None = None
    predicted_loss: float | None = None
    baseline_output_error: float | None = None
    pivoted: bool = False

    @classmethod
    def of(cls, path: str, shape: mpo.MPOShape, **measured: Any) -> "MatrixRow":
        """The row of a matrix in a shape; `measured` are the other attributes."""
        return cls(
            path=path,
            in_features=shape.in_features,
            out_features=shape.out_features,
            in_factors=shape.in_factors,
            out_factors=shape.out_factors,
            bonds=shape.bond_dims,
            dense_parameters=shape.num_dense_params,
            mpo_parameters=shape.num_params,
            pivoted=shape.pivoted,
            **measured,
        )

    @property
    def shape(self) -> mpo.MPOShape:
        """Shape of the MPO as the kernels describe it."""
        return mpo.MPOShape(
            self.in_factors,
            self.out_factors,
            self.bonds,
            self.in_features,
            self.out_features,
            self.pivoted,
        )

    @property
    def ratio(self) -> float:
        """mpo_parameters / dense_parameters."""
        return self.mpo_parameters / self.dense_parameters

    @property
    def role(self) -> str:
        """The path with the layer index as `*`: matrices of one role may share their bonds."""
        return role_of_path(self.path)


def role_of_path(path: str) -> str:
    """`layers/3/attention/query` -> `layers/*/attention/query`."""
    return re.sub(r"(^|/)\d+(/|$)", r"\1*\2", path)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How `method="best"` chose among its candidates, on texts that nothing was fitted to.

    Attributes:
      measure: "perplexity", or "relative error of the output" of a model that is no decoder.
      tokens: held-out tokens it was measured on.
      found: {candidate: value}, the dense model among them; less is better.
      chosen: the candidate that was taken.
      not_tried: {candidate that was left out: why}.
    """

    measure: str
    tokens: int
    found: Mapping[str, float]
    chosen: str
    not_tried: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:,.4g}" for name, value in self.found.items())
        left_out = "".join(f"; not {name}: {why}" for name, why in self.not_tried.items())
        return (
            f"chosen: {self.chosen}, by {self.measure} on {self.tokens:,} held-out tokens: {values}"
            f"{left_out}"
        )


@dataclasses.dataclass(frozen=True)
class CompressionReport:
    """Result of `compress`, matrix by matrix and in total.

    Attributes:
      rows: one for each compressed matrix, in model order.
      spectra: singular values of every bond of the uncut matrices, {path: one array per bond}.
      dense_parameters, parameters: counts in the whole model before and after.
      kept_dense: matrices that a budget left dense, because an MPO would have saved nothing.
      unmatched: dense matrices that no rule matched.
      choice: how method "best" chose; None where nothing was to choose.
      notes: what else there is to know.
    """

    rows: tuple[MatrixRow, ...]
    spectra: Mapping[str, Sequence[np.ndarray]]
    dense_parameters: int
    parameters: int
    kept_dense: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    choice: Choice | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.table()

    @property
    def ratio(self) -> float:
        """Parameters after over before, of the whole model."""
        return self.parameters / self.dense_parameters

    @property
    def stored_bytes(self) -> int:
        """Bytes of the parameters on disk, float32, file headers not counted."""
        return 4 * self.parameters

    @property
    def dense_stored_bytes(self) -> int:
        """Bytes of the dense parameters on disk, float32."""
        return 4 * self.dense_parameters

    @property
    def relative_error(self) -> float:
        """Frobenius error of all compressed matrices taken together, each at unit norm (rms).

        0 where every matrix stayed dense.
        """
        return _mean_square_root([row.relative_error for row in self.rows])

    @property
    def output_error(self) -> float | None:
        """As `relative_error`, of the outputs on the calibration set; None without one."""
        errors = [row.output_error for row in self.rows if row.output_error is not None]
        return _mean_square_root(errors) if errors else None

    def table(self, width: int = 120) -> str:
        """The report as plain text of at most `width` columns, factor lists once for each size.

        With a calibration the output errors take the place of bound and entropy.
        """
        left_out = {"in factors", "out factors", "method"}
        if self.output_error is not None:
            left_out |= {"bound", "entropy"}
        if all(row.svd_error is None for row in self.rows):
            left_out |= {"SVD error", "SVD output error", "data-aware SVD output error"}
        rows = self.to_dict()["rows"]
        columns = {n: show for n, show in _columns(rows).items() if n not in left_out}
        wrapped = ("bonds", "parameters", "entropy", *_OF_OUTPUTS)
        text = tables.text(list(columns), tables.cells(columns, rows), width, wrap=wrapped)
        lines = [*self._factor_lines(), *self._notes(), self.summary()]
        return "\n".join([text, "", *(textwrap.fill(line, width) for line in lines)])

    def summary(self) -> str:
        """One line with the totals."""
        output = "" if self.output_error is None else f", of the outputs {self.output_error:.4f}"
        left = f"; {len(self.unmatched)} matched by no rule" if self.unmatched else ""
        return (
            f"{len(self.rows)} matrices{left}; parameters of the model {self.dense_parameters:,} → "
            f"{self.parameters:,} ({100 * self.ratio:.1f} %); stored "
            f"{self.dense_stored_bytes / 1e6:.1f} → {self.stored_bytes / 1e6:.1f} MB; "
            f"relative error {self.relative_error:.4f}{output} (root mean square over matrices)"
        )

    def to_dict(self) -> dict:
        """Rows and totals as JSON-able data, without the spectra."""
        return {
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "ratio": self.ratio,
            "dense_stored_bytes": self.dense_stored_bytes,
            "stored_bytes": self.stored_bytes,
            "relative_error": self.relative_error,
            "output_error": self.output_error,
            "kept_dense": list(self.kept_dense),
            "unmatched": list(self.unmatched),
            "notes": list(self.notes),
            "choice": None if self.choice is None else dataclasses.asdict(self.choice),
            "rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in self.rows],
        }

    def to_csv(self, path: str | os.PathLike):
        """Writes the rows as comma-separated values, replacing the file in one step.

        Raises:
          OSError: the file cannot be written; one that was there is kept.
        """
        names = [*(field.name for field in dataclasses.fields(MatrixRow)), "ratio"]
        files.write_atomic(path, tables.csv(self.to_dict()["rows"], names))

    def to_markdown(self) -> str:
        """The rows as a Markdown table, followed by the totals."""
        lines = [*self._notes(), f"{self.summary()}."]
        return f"{matrix_table(self.to_dict()['rows'])}\n\n" + "\n\n".join(lines) + "\n"

    def plot(self, path: str | os.PathLike):
        """Draws the error bound against bond cap and against parameters, a line for each role.

        The lines come from the spectra (mean over the matrices of a role, at most 1, which is the
        error of a matrix of zeros); the points are what was chosen, with the measured error.

        Args:
          path: PNG, PDF or SVG, by its suffix.

        Raises:
          ImportError: matplotlib is not installed (extra `plot`).
          OSError: the file cannot be written.
        """
        if not self.spectra:
            self._plot_layers(path)
            return
        figure, (by_bond, by_size) = figures.new(1, 2, sharey=True, height=4.2)
        for index, (role, rows) in enumerate(self._by_role().items()):
            caps, errors, ratios = self.error_curve(role)
            look = figures.line_style(index)
            by_bond.plot(caps, np.minimum(errors, 1.0), label=role, **look)
            by_size.plot(ratios, np.minimum(errors, 1.0), **look)
            chosen = np.mean([row.relative_error for row in rows])
            dot = {"marker": "o", "linestyle": "", "color": look["color"], "markersize": 7}
            by_bond.plot([max(rows[0].bonds)], [chosen], **dot)
            by_size.plot([np.mean([row.ratio for row in rows])], [chosen], **dot)
        if self.rows:
            black = {"color": "black", "linestyle": ""}
            by_bond.plot([], [], marker="o", **black, label="chosen bonds, measured error")
            largest = max(max(row.shape.with_bonds(None).bond_dims) for row in self.rows)
            by_bond.set_xscale("log")
            figures.log_ticks(by_bond.xaxis, [4**k for k in range(10) if 4**k <= largest])
            figures.legend(figure, columns=2)
        by_bond.set(xlabel="bond dimension (cap)", ylabel="relative error of the weights (bound)")
        by_size.set(xlabel="parameters / dense parameters", xlim=(0, None), ylim=(0, 1.05))
        figures.save(figure, path)

    def _plot_layers(self, path: str | os.PathLike):
        """What was kept of each matrix, and the error of its outputs, by layer and role."""
        figure, (kept, errors) = figures.new(1, 2, height=4.2)
        for index, (role, rows) in enumerate(self._by_role().items()):
            layers = [int(re.search(r"layers/(\d+)/", row.path)[1]) for row in rows]
            # Dots, too: a role compressed in single layers has no line.
            look = figures.line_style(index) | {"marker": "o", "markersize": 3}
            kept.plot(layers, [row.ratio for row in rows], label=role, **look)
            errors.plot(layers, [row.output_error for row in rows], **look)
        figures.legend(figure, columns=2)
        kept.set(xlabel="layer", ylabel="parameters / dense parameters", ylim=(0, 1.05))
        errors.set(xlabel="layer", ylabel="relative error of the outputs", ylim=(0, None))
        figures.save(figure, path)

    def error_curve(self, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bond caps, relative error bound, parameters / dense) of a role, mean over its matrices.

        Raises:
          ValueError: no compressed matrix has this role.
        """
        rows = self._by_role().get(role)
        if not rows:
            raise ValueError(f"no matrix has role {role!r}; there are {sorted(self._by_role())}.")
        full = rows[0].shape.with_bonds(None)
        largest = max(full.bond_dims)
        # At most 40 caps, evenly spaced on the logarithmic axis of the plot.
        caps = np.unique(np.geomspace(1, largest, 40).round().astype(int))
        errors = [np.mean([self._bound(row, full, int(cap)) for row in rows]) for cap in caps]
        return caps, np.array(errors), np.array([full.with_bonds(int(cap)).ratio for cap in caps])

    def _bound(self, row, full, cap: int) -> float:
        bonds = full.with_bonds(cap).bond_dims
        return relative_bound(self.spectra[row.path], bonds)

    def _by_role(self) -> dict[str, list[MatrixRow]]:
        roles: dict[str, list[MatrixRow]] = {}
        for row in self.rows:
            roles.setdefault(row.role, []).append(row)
        return roles

    def _notes(self) -> list[str]:
        lines = {
            "kept dense, as a chain of the bonds they need saves nothing": self.kept_dense,
            "dense, as no rule matches them": self.unmatched,
        }
        lines = [
            f"{what}: {', '.join(dict.fromkeys(map(role_of_path, paths)))}"
            for what, paths in lines.items()
            if paths
        ]
        return [*([] if self.choice is None else [str(self.choice)]), *self.notes, *lines]

    def _factor_lines(self) -> list[str]:
        lines = {}
        for row in self.rows:
            size = f"{row.in_features}x{row.out_features}"
            factors = f"{tables.joined(row.in_factors)} x {tables.joined(row.out_factors)}"
            padded = row.shape.padded_in_features, row.shape.padded_out_features
            note = "" if not row.shape.is_padded else f" (padded to {padded[0]}x{padded[1]})"
            lines[f"factors of {size}: {factors}{note}"] = None
        return list(lines)


def matrix_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the rows of `CompressionReport.to_dict`, also when read back from JSON.

    Columns of output errors appear where a row has them.
    """
    columns = _columns(rows) | {"matrix": lambda row: f"`{row['path']}`"}
    return tables.markdown(list(columns), tables.cells(columns, rows))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping], str]]:
    """{header: cell of a row}."""
    columns = {
        "matrix": lambda row: row["path"],
        "size": lambda row: f"{row['in_features']}x{row['out_features']}",
        "in factors": lambda row: tables.joined(row["in_factors"]),
        "out factors": lambda row: tables.joined(row["out_factors"]),
        "bonds": lambda row: tables.joined(row["bonds"]),
        "parameters": lambda row: f"{row['dense_parameters']:,} → {row['mpo_parameters']:,}",
        "ratio": lambda row: f"{row['ratio']:.3f}",
        "error": lambda row: tables.error(row["relative_error"]),
        "SVD error": lambda row: tables.error(row.get("svd_error")),
        "bound": lambda row: tables.error(row["error_bound"]),
        "entropy": lambda row: tables.decimals(row["entropy"]),
    }
    if any(row.get("predicted_loss") is not None for row in rows):
        columns["predicted nats"] = lambda row: tables.error(row.get("predicted_loss"))
    if any(row.get("output_error") is not None for row in rows):
        has_baseline = any(row.get("baseline_output_error") is not None for row in rows)
        columns |= {
            header: lambda row, name=name: tables.error(row.get(name))
            for header, name in _OF_OUTPUTS.items()
            if has_baseline or name != "baseline_output_error"
        } | {"method": lambda row: row["method"]}
    return columns


def _mean_square_root(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / max(len(values), 1))


def relative_bound(spectra: Sequence[np.ndarray], bonds: tuple[int, ...]) -> float:
    """sqrt(sum_k eps_k^2) over the norm of the matrix; 0 for a zero matrix."""
    norm = float(np.linalg.norm(spectra[0]))
    return float(mpo.truncation_error_bound(spectra, bonds)) / norm if norm > 0 else 0.0
