"""Metrics of a run: JSON lines for programs and tables, TensorBoard events for people."""

import json
import math
import pathlib
from collections.abc import Mapping

import jax
import tensorboardX

from mpojax import files


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and TensorBoard events; only process 0 writes.

    Args:
      folder: the run's folder.
      resume_step: lines and events of later steps are dropped, because the resumed run writes them
        again.
    """

    def __init__(self, folder: str | pathlib.Path, resume_step: int = 0):
        self.path = pathlib.Path(folder) / "metrics.jsonl"
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        try:
            drop_after(self.path, resume_step)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
            self._board = tensorboardX.SummaryWriter(
                str(self.path.parent / "tensorboard"), purge_step=resume_step + 1
            )
        except OSError as error:
            self.close()
            raise files.explain(error, self.path) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step; NaN and infinities become null in the JSON."""
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        safe = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        try:
            self._file.write(json.dumps({"step": step} | safe) + "\n")
            self._file.flush()  # a killed run keeps its lines
        except OSError as error:
            raise files.explain(error, self.path) from error
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *unused) -> None:
        self.close()


def read(path: str | pathlib.Path) -> list[dict]:
    """Lines of a metrics file; a last line cut short by a kill is left out."""
    path = pathlib.Path(path)
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # After the last newline stands nothing, or a line that was never finished.
    return [json.loads(line) for line in lines[:-1]]


def drop_after(path: pathlib.Path, step: int) -> None:
    """Keeps only the lines up to a step."""
    if not path.is_file():
        return
    kept = [line for line in read(path) if line["step"] <= step]
    files.write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
