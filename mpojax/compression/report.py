"""Report of a compression: one row for each matrix, totals, tables and plots."""

import csv
import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import rich.box
import rich.console
import rich.table

from mpojax import files, mpo
from mpojax.compression.matrix_table import commas, decimals, format_error, matrix_table, spaced


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """One compressed matrix.

    Attributes:
      path: matrix path in the model.
      in_features, out_features: size of the dense matrix.
      in_factors, out_factors: factor lists of the chain; products above the size mean padding.
      bonds: inner bond dimensions.
      dense_parameters, mpo_parameters: counts before and after, biases not counted.
      relative_error: Frobenius error of the stored float32 cores against the weights, measured.
      error_bound: sqrt(sum_k eps_k^2) / norm from the spectra: no plain truncation to these bonds
        is worse. A data-aware chain may be; its measure is `output_error`.
      entropy: entanglement entropy of each bond of the uncut matrix, in nats.
      svd_error: error of the truncated SVD with at most as many parameters.
      method: "plain", "data-aware", "searched", or "searched, data-aware".
      output_error: ||X (W - W_hat)|| / ||X W|| over the inputs of the calibration set; None without
        a calibration, or where no input has entered the matrix.
      svd_output_error: the same of the truncated SVD with at most as many parameters.
      data_svd_output_error: the same of the data-aware one.
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
    error_bound: float
    entropy: tuple[float, ...]
    svd_error: float
    method: str = "plain"
    output_error: float | None = None
    svd_output_error: float | None = None
    data_svd_output_error: float | None = None

    @property
    def shape(self) -> mpo.MPOShape:
        """The chain as the kernels describe it."""
        return mpo.MPOShape(
            self.in_factors, self.out_factors, self.bonds, self.in_features, self.out_features
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
class CompressionReport:
    """Result of `compress`, matrix by matrix and in total.

    Attributes:
      rows: one for each compressed matrix, in model order.
      spectra: singular values of every bond of the uncut matrices, {path: one array per bond}.
      dense_parameters, parameters: counts in the whole model before and after.
      kept_dense: matrices that a budget left dense, because a chain would have saved nothing.
      unmatched: dense matrices that no rule matched.
    """

    rows: tuple[MatrixRow, ...]
    spectra: Mapping[str, Sequence[np.ndarray]]
    dense_parameters: int
    parameters: int
    kept_dense: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

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
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("matrix", no_wrap=True)
        table.add_column("size", justify="right", no_wrap=True)
        names, cells = self._error_columns()
        table.add_column("bonds", justify="right")
        table.add_column("parameters", justify="right")
        for name in ("ratio", *names):
            table.add_column(name, justify="right", no_wrap=name in ("ratio", "error", "bound"))
        for row in self.rows:
            table.add_row(
                row.path,
                f"{row.in_features}x{row.out_features}",
                commas(row.bonds),
                f"{row.dense_parameters:,} → {row.mpo_parameters:,}",
                f"{row.ratio:.3f}",
                *cells(row),
            )
        buffer = io.StringIO()
        console = rich.console.Console(file=buffer, width=width, color_system=None, emoji=False)
        console.print(table)
        for line in [*self._factor_lines(), *self._kept_lines(), self.summary()]:
            console.print(line, markup=False, highlight=False)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())

    def _error_columns(self):
        """Names of the columns of errors, and the function that makes their cells of a row."""
        if self.output_error is None:
            return ("error", "svd", "bound", "entropy"), lambda row: (
                format_error(row.relative_error),
                format_error(row.svd_error),
                format_error(row.error_bound),
                decimals(row.entropy),
            )
        return ("error", "svd", "output", "svd output", "aware svd"), lambda row: (
            format_error(row.relative_error),
            format_error(row.svd_error),
            format_error(row.output_error),
            format_error(row.svd_output_error),
            format_error(row.data_svd_output_error),
        )

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
            "rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in self.rows],
        }

    def to_csv(self, path: str | os.PathLike):
        """Writes the rows as comma-separated values, replacing the file in one step.

        Raises:
          OSError: the file cannot be written; one that was there is kept.
        """
        rows = self.to_dict()["rows"]
        buffer = io.StringIO()
        names = [*(field.name for field in dataclasses.fields(MatrixRow)), "ratio"]
        writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: spaced(v) if isinstance(v, tuple) else v for k, v in row.items()})
        files.write_atomic(path, buffer.getvalue())

    def to_markdown(self) -> str:
        """The rows as a Markdown table, followed by the totals."""
        lines = [*self._kept_lines(), f"{self.summary()}."]
        return f"{matrix_table(self.to_dict()['rows'])}\n\n" + "\n\n".join(lines) + "\n"

    def plot(self, path: str | os.PathLike):
        """Draws the error bound against bond cap and against parameters, a line for each role.

        The lines come from the spectra (mean over the matrices of a role); the points are what was
        chosen, with the measured error.

        Raises:
          ImportError: matplotlib is not installed (extra `plot`).
          OSError: the file cannot be written.
        """
        try:
            import matplotlib.figure as figure_lib
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'mpojax[plot]'.") from error
        figure = figure_lib.Figure(figsize=(12, 5), layout="constrained")
        by_bond, by_size = figure.subplots(1, 2, sharey=True)
        for role, rows in self._by_role().items():
            caps, errors, ratios = self.error_curve(role)
            (line,) = by_bond.plot(caps, errors, label=role)
            by_size.plot(ratios, errors, color=line.get_color())
            chosen = [np.mean([row.relative_error for row in rows])]
            by_bond.plot([max(rows[0].bonds)], chosen, "o", color=line.get_color())
            by_size.plot([np.mean([r.ratio for r in rows])], chosen, "o", color=line.get_color())
        by_bond.set(xlabel="bond dimension (cap)", ylabel="relative error (bound)", xscale="log")
        by_size.set(xlabel="parameters / dense parameters", xlim=(0, None))
        by_bond.set_title("error vs bond dimension")
        by_size.set_title("error vs parameters")
        if self.rows:
            by_bond.legend(fontsize="small")
        suffix = pathlib.Path(path).suffix.lstrip(".") or "png"
        files.write_atomic(path, lambda file: figure.savefig(file, format=suffix, dpi=120))

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

    def _kept_lines(self) -> list[str]:
        lines = {
            "kept dense, as a chain saves nothing there": self.kept_dense,
            "dense, as no rule matches them": self.unmatched,
        }
        return [
            f"{what}: {', '.join(dict.fromkeys(map(role_of_path, paths)))}"
            for what, paths in lines.items()
            if paths
        ]

    def _factor_lines(self) -> list[str]:
        lines = {}
        for row in self.rows:
            size = f"{row.in_features}x{row.out_features}"
            factors = f"{commas(row.in_factors)} x {commas(row.out_factors)}"
            padded = row.shape.padded_in_features, row.shape.padded_out_features
            note = "" if not row.shape.is_padded else f" (padded to {padded[0]}x{padded[1]})"
            lines[f"factors of {size}: {factors}{note}"] = None
        return list(lines)


def _mean_square_root(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / max(len(values), 1))


def relative_bound(spectra: Sequence[np.ndarray], bonds: tuple[int, ...]) -> float:
    """sqrt(sum_k eps_k^2) over the norm of the matrix; 0 for a zero matrix."""
    norm = float(np.linalg.norm(spectra[0]))
    return float(mpo.truncation_error_bound(spectra, bonds)) / norm if norm > 0 else 0.0
