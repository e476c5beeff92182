r"""Runs every cell of a sweep: one config, its axes, one folder for each combination.

    python -m experiments.sweep --config=configs/sweeps/bond_dims.py --workdir=runs/bonds
    python -m experiments.sweep --config=configs/sweeps/bond_dims.py:sst2 --workdir=runs/bonds \
        --config.cell.steps=200 --config.seeds=0,1,2

A sweep's config has `cell` (the whole config of one run of `experiments.train`), `axes` and
optionally `skip` and `baselines` (see `experiments.cells.expand`), `plots` (see
`experiments.render.figures`) and `repeats`: the axes over which means and standard deviations are
taken, default ("seed",); see `experiments.render.frames.means`.
All cells are checked before the first one runs, data and weights among what they need. Finished
cells are kept, an interrupted one resumes, a failing one is recorded in its `failed.json`, passed
over, and tried again at the next start. Axes may grow in the same folder (more seeds, more values);
the config of the cells may not change. Tables and figures are written after every cell:
`results.csv`, `summary.csv`, `summary.md`, `plots/`.
"""

import collections
import datetime
import gc
import json
import pathlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
from absl import logging

from experiments import cells as cells_lib
from experiments import config_fields, launch, live_table, sources, train
from experiments.render import figures, frames
from mpojax import checks, data, files
from mpojax.training import workdir as workdir_lib

# Fields of cells that name a model.
_MODELS = ("model", "init_checkpoint", "teacher", "start.teacher")


# No `Exception`: a cell, or what it calls, must not take it for a failure and go on.
class Stopped(BaseException):
    """A signal asks to stop; raised where the running cell does not listen itself."""


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """The whole sweep; returns the exit status: 0 finished or stopped, 1 when a cell failed."""
    frames.require()
    config_fields.check_axes(config)
    repeats = read_repeats(config)
    cells = cells_lib.expand(config, repeats)
    axes = list(cells[0].values)
    plots = figures.read(config.get("plots") or (), axes, repeats)
    check_cells(cells, files.at(folder))
    # Axes, which may grow, are not part of what the folder is recognised by.
    workdir = workdir_lib.Workdir(folder, {"cell": config.cell})
    workdir.write_json("sweep.json", config)
    (workdir.path / "result.json").unlink(missing_ok=True)

    def write(rows: Sequence[dict]) -> None:
        write_tables(workdir.path, rows, axes, repeats, plots)

    rows = run_cells(cells, workdir.path / "cells", write)
    if rows is None:
        return 0
    failed = [row["cell"] for row in rows if row["state"] == "failed"]
    if failed:
        logging.error("%d of %d cells failed: %s", len(failed), len(rows), "; ".join(failed))
        logging.error("see failed.json in their folders; the next start tries them again")
        return 1
    workdir.write_result({"cells": rows})
    logging.info("all %d cells are finished: %s", len(rows), workdir.path / "summary.md")
    return 0


def read_repeats(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """`config.repeats`, checked.

    Raises:
      ValueError: a name that is no axis, or one twice.
    """
    repeats = config.get("repeats")
    if repeats is None:
        return frames.REPEATS
    if isinstance(repeats, str) or not repeats or len({*repeats}) < len(repeats):
        raise ValueError(f"config.repeats={repeats!r} must be a tuple of axes, each named once.")
    checks.check_names(
        repeats, [axis.name for axis in cells_lib.read_axes(config)], "config.repeats"
    )
    return tuple(repeats)


def check_cells(
    cells: Sequence[cells_lib.Cell],
    folder: pathlib.Path,
    models: Sequence[str] = _MODELS,
) -> None:
    """Checks the config of every cell, also against an earlier start's, and what cells read.

    Args:
      cells: of the sweep.
      folder: of the sweep.
      models: fields that name models which must be there.

    Raises:
      ValueError: names the cell and what is wrong, or everything that is missing.
    """
    for cell in cells:
        record = folder / "cells" / cell.name / "config.json"
        there = checks.read_json(record) if record.is_file() else None
        if there is not None and (changes := workdir_lib.changes(there, cell.config)):
            raise ValueError(
                f"cell {cell.name} was run with another config in {folder}; it differs in:\n  "
                + "\n  ".join(changes[:10])
                + "\nUse another --workdir, or remove the folder of the cell to run it anew."
            )
        try:
            train.check(cell.config)
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from error
    # Inputs of finished cells may be gone.
    left = [cell for cell in cells if frames.read_result(folder / "cells" / cell.name) is None]
    # Each input is looked for once, whatever the number of cells that read it.
    needed = collections.Counter(need for cell in left for need in _inputs(cell.config, models))
    missing = []
    for (load, *arguments), count in needed.items():
        try:
            load(*arguments)
        except (OSError, ImportError, ValueError) as error:
            missing.append(f"{count} of {len(left)} cells: {error}")
    if missing:
        raise ValueError("inputs are missing. " + "\n".join(missing))


def _inputs(config: ml_collections.ConfigDict, models: Sequence[str]) -> Iterator[tuple]:
    """Functions, with their arguments, that find or load what a run reads, fetched where it can be.

    Names of models, and data of tasks.
    """
    leaves = dict(config_fields.leaves(config))
    for name in models:
        if leaves.get(name):
            yield sources.locate, leaves[name], f"config.{name}"
    task = leaves.get("task", "")
    if "data_dir" in leaves and (task in data.TASKS or task.startswith("file:")):
        yield data.load_task, task, leaves["data_dir"] or None


def run_cells(
    cells: Sequence[cells_lib.Cell],
    folder: pathlib.Path,
    write: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict] | None:
    """Runs every cell that is not finished, in a folder of its own below `folder`.

    Args:
      cells: checked.
      folder: new, or that of the same cells.
      write: is given the rows after every cell.

    Returns:
      `rows` of the cells; None where a signal asked to stop.
    """
    results = {cell.name: frames.read_result(folder / cell.name) for cell in cells}
    view = live_table.LiveTable(results)
    left, is_stopped = [cell for cell in cells if results[cell.name] is None], False
    with Signals() as signals, view.shown():
        try:
            for cell in left:
                if signals.received or _run_cell(cell, folder / cell.name, signals, view):
                    is_stopped = True
                    break
                write(rows(cells, folder))
        except (Stopped, KeyboardInterrupt):
            signals.in_cell, is_stopped = False, True
        found = rows(cells, folder)
        write(found)
    if is_stopped:
        logging.info("stopped; start the same command again to resume")
        return None
    return found


def _run_cell(
    cell: cells_lib.Cell,
    path: pathlib.Path,
    signals: "Signals",
    view: live_table.LiveTable,
) -> int:
    """Runs one cell; returns the status of its run, 0 when it failed."""
    failure = path / "failed.json"
    # Before the run: a folder with nothing else in it must look new to it.
    failure.unlink(missing_ok=True)
    view.started(cell.name)
    start, status = time.perf_counter(), 0
    try:
        signals.in_cell = True
        status = train.run(cell.config.copy_and_resolve_references(), str(path))
        if status == 0 and frames.read_result(path) is None:
            raise RuntimeError("the run returned 0 but wrote no result.json")
    except (Exception, SystemExit) as error:
        logging.exception("cell %s failed", cell.name)
        files.write_atomic(failure, json.dumps(_failure(error), indent=1) + "\n")
    finally:
        signals.in_cell = False
        _free_memory()
    result = frames.read_result(path)
    view.ended(cell.name, result, time.perf_counter() - start, stopped=status != 0)
    return status


class Signals:
    """SIGTERM and Ctrl-C: between cells a note is taken; inside a cell `Stopped` is raised.

    A cell that listens itself (training does, to save its state) replaces the handler meanwhile.
    """

    def __init__(self):
        self.received: str | None = None
        self.in_cell = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *unused) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number).name
        if self.in_cell:
            raise Stopped


def rows(cells: Sequence[cells_lib.Cell], folder: pathlib.Path) -> list[dict]:
    """One row for each cell: name, state ("done", "failed", "open"), axes, scalar result fields.

    Fields of the table `metrics` are called `metrics.<name>`. An axis of the same name as a field
    keeps its own value.
    """
    made = []
    for cell in cells:
        result = frames.read_result(folder / cell.name)
        failed = (folder / cell.name / "failed.json").is_file()
        state = "done" if result is not None else "failed" if failed else "open"
        first = {"cell": cell.name, "state": state} | dict(cell.values)
        # First for the order of the columns, last so that fields of the result do not hide axes.
        made.append(first | frames.scalars(result or {}) | first)
    return made


def write_tables(
    folder: pathlib.Path,
    rows: Sequence[dict],
    axes: Sequence[str],
    repeats: Sequence[str] = frames.REPEATS,
    plots: Sequence[figures.Plot] = (),
) -> None:
    """Writes `results.csv`, `summary.csv`, `summary.md` and the figures of `plots/`."""
    frame = frames.of(rows)
    frames.write(folder / "results.csv", frame)
    done = frame[frame["state"] == "done"]
    lines = [f"# Sweep: {len(done)} of {len(rows)} cells finished"]
    if len(done):
        means = frames.means(done.drop(columns=["cell", "state"]), axes, repeats)
        frames.write(folder / "summary.csv", means)
        lines.append(frames.summary(means, axes, repeats))
        figures.draw_all(folder / "plots", means, plots)
    for state in ("failed", "open"):
        if names := [f"`{row['cell']}`" for row in rows if row["state"] == state]:
            lines.append(f"{state.capitalize()}: " + ", ".join(names))
    files.write_atomic(folder / "summary.md", "\n\n".join(lines) + "\n")


def _failure(error: BaseException) -> dict[str, str]:
    return {
        "message": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _free_memory() -> None:
    """Compiled programs and arrays of one cell are of no use to the next."""
    jax.clear_caches()
    gc.collect()


if __name__ == "__main__":
    launch.run(main, ("cell", "axes"))
