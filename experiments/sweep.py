r"""Runs every cell of a sweep: one config, its axes, one folder for each combination.

    python -m experiments.sweep --config=configs/sweeps/bond_dims.py --workdir=runs/bonds
    python -m experiments.sweep --config=configs/sweeps/bond_dims.py:sst2 --workdir=runs/bonds \
        --config.cell.steps=200 --config.seeds=0,1,2

A sweep's config has `runner` (a name in `RUNNERS`), `cell` (the whole config of one run), `axes`
and optionally `skip` (see `experiments.cells.expand`), `plots` (see `experiments.plots`) and
`repeats`: the axes over which means and standard deviations are taken, default ("seed",); see
`experiments.sweep_files.summary`.
All cells are checked before the first one runs. Finished cells are kept, an interrupted one goes
on, a failing one is recorded in its `failed.json`, passed over, and tried again at the next start.
Axes may grow in the same folder (more seeds, more values); the config of the cells may not change.
Tables and plots are written after every cell: `results.csv`, `summary.csv`, `summary.md`, `plots/`.
"""

import datetime
import gc
import importlib
import json
import pathlib
import signal
import threading
import time
import traceback
from collections.abc import Callable

import jax
import ml_collections
from absl import logging

from experiments import cells as cells_lib
from experiments import config_fields, launch, sweep_files, sweep_view
from experiments import plots as plots_lib
from mpojax import checks, files
from mpojax.training import workdir as workdir_lib

# Name -> module:function(config, folder) -> int, 0 when it has written the folder's `result.json`,
# anything else when it was asked to stop. A function `check(config)` next to it is called for every
# cell before anything runs.
RUNNERS = {
    "finetune": "experiments.finetune:run",
    "multitask": "experiments.multitask:run",
    "pretrain": "experiments.pretrain:run",
    "language_model": "experiments.language_model:run",
    "text_to_text": "experiments.text_to_text:run",
    "pet_search": "experiments.pet_search:run",
    "distill": "experiments.distill:run",
    "opf": "experiments.opf:run",
}

Runner = Callable[[ml_collections.ConfigDict, str], int]


class Stopped(BaseException):
    """A signal asks to stop; raised where the running cell does not listen itself."""


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """The whole sweep; returns the exit status: 0 finished or stopped, 1 when a cell failed."""
    config_fields.check_axes(config)
    runner, check = find_runner(config.get("runner"))
    cells = cells_lib.expand(config)
    repeats = read_repeats(config, cells)
    plots = plots_lib.read_plots(config.get("plots") or (), cells, repeats)
    check_cells(cells, pathlib.Path(folder), check)
    # Axes, which may grow, are not part of what the folder is recognised by.
    workdir = workdir_lib.Workdir(folder, {"runner": config.runner, "cell": config.cell})
    workdir.write_json("sweep.json", config)
    return Sweep(cells, runner, workdir, plots, repeats).run()


def read_repeats(config: ml_collections.ConfigDict, cells) -> tuple[str, ...]:
    """`config.repeats`, checked.

    Raises:
      ValueError: a name that is no axis, or one twice.
    """
    repeats = config.get("repeats")
    if repeats is None:
        return sweep_files.REPEATS
    axes = list(cells[0].labels)
    if isinstance(repeats, str) or not repeats or len({*repeats}) < len(repeats):
        raise ValueError(f"config.repeats={repeats!r} must be a tuple of axes, each named once.")
    if unknown := [axis for axis in repeats if axis not in axes]:
        raise ValueError(f"config.repeats has {unknown}; the axes are {axes}.")
    return tuple(repeats)


def find_runner(name: str | None) -> tuple[Runner, Callable | None]:
    """The function of a name in `RUNNERS`, and its module's `check` where there is one.

    Raises:
      ValueError: an unknown name.
    """
    if name not in RUNNERS:
        raise ValueError(f"config.runner={name!r} must be one of {', '.join(sorted(RUNNERS))}.")
    module, _, function = RUNNERS[name].partition(":")
    module = importlib.import_module(module)
    return getattr(module, function), getattr(module, "check", None)


def check_cells(cells, folder: pathlib.Path, check: Callable | None) -> None:
    """Checks the config of every cell, and against what an earlier start recorded for it.

    Raises:
      ValueError: names the cell and what is wrong.
    """
    for cell in cells:
        record = folder / "cells" / cell.name / "config.json"
        there = checks.read_json(record) if record.is_file() else None
        if there is not None and (changes := cells_lib.differing(cell, there)):
            raise ValueError(
                f"cell {cell.name} was run with another config in {folder}; it differs in:\n  "
                + "\n  ".join(changes[:10])
                + "\nUse another --workdir, or remove the folder of the cell to run it anew."
            )
        if check is not None:
            try:
                check(cell.config)
            except ValueError as error:
                raise ValueError(f"cell {cell.name}: {error}") from error


class Signals:
    """SIGTERM and Ctrl-C: between cells a note is taken; inside a cell `Stopped` is raised.

    A cell that listens itself (training does, to save its state) replaces the handler meanwhile.
    """

    def __init__(self):
        self.received: str | None = None
        self.in_cell = False
        self._previous: dict[int, object] = {}

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


class Sweep:
    """The loop over cells, and the state that is shown."""

    def __init__(
        self,
        cells,
        runner: Runner,
        workdir: workdir_lib.Workdir,
        plots,
        repeats: tuple[str, ...] = sweep_files.REPEATS,
    ):
        self.cells, self.runner, self.workdir = cells, runner, workdir
        self.plots, self.repeats = plots, repeats
        self.view = sweep_view.View(
            [cell.name for cell in cells],
            {cell.name: sweep_files.read_result(self.folder(cell)) for cell in cells},
        )

    def folder(self, cell: cells_lib.Cell) -> pathlib.Path:
        return self.workdir.path / "cells" / cell.name

    def run(self) -> int:
        """Runs what is left; returns the exit status."""
        (self.workdir.path / "result.json").unlink(missing_ok=True)
        with Signals() as signals, self.view.shown():
            stopped = not self._run_cells(signals)
            rows = self._write()
        if stopped:
            logging.info("stopped; start the same command again to resume")
            return 0
        failed = [row["cell"] for row in rows if row["state"] == "failed"]
        if failed:
            logging.error("%d of %d cells failed: %s", len(failed), len(rows), "; ".join(failed))
            logging.error("see failed.json in their folders; the next start tries them again")
            return 1
        self.workdir.write_result({"cells": rows})
        logging.info("all %d cells are finished: %s", len(rows), self.workdir.path / "summary.md")
        return 0

    def _run_cells(self, signals: Signals) -> bool:
        """False when a signal has stopped the sweep."""
        try:
            return all(not signals.received and self._run_cell(c, signals) for c in self.cells)
        except (Stopped, KeyboardInterrupt):
            signals.in_cell = False
            return False

    def _run_cell(self, cell: cells_lib.Cell, signals: Signals) -> bool:
        """Runs one cell unless it is finished; False when it was stopped."""
        folder = self.folder(cell)
        if (folder / "result.json").is_file():
            return True
        failure = folder / "failed.json"
        # Before the run: a folder with nothing else in it must look new to the runner.
        failure.unlink(missing_ok=True)
        self.view.started(cell.name)
        start = time.perf_counter()
        try:
            signals.in_cell = True
            status = self.runner(cell.config.copy_and_resolve_references(), str(folder))
        except (Exception, SystemExit) as error:
            signals.in_cell = False
            logging.exception("cell %s failed", cell.name)
            files.write_atomic(failure, json.dumps(_failure(error), indent=1) + "\n")
            status = 0
        finally:
            signals.in_cell = False
            _free_memory()
        result = sweep_files.read_result(folder)
        if status == 0 and result is None and not failure.is_file():
            message = "the runner returned 0 but wrote no result.json"
            files.write_atomic(failure, json.dumps({"message": message}, indent=1) + "\n")
        self.view.ended(cell.name, result, time.perf_counter() - start, stopped=status != 0)
        self._write()
        return status == 0

    def _write(self) -> list[dict]:
        rows = sweep_files.rows(self.cells, self.workdir.path / "cells")
        axes = list(self.cells[0].labels)
        sweep_files.write_tables(self.workdir.path, rows, axes, self.repeats)
        plots_lib.draw_all(self.workdir.path / "plots", rows, axes, self.plots, self.repeats)
        return rows


def _failure(error: BaseException) -> dict:
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
    launch.run(main, ("runner", "cell", "axes"))
