"""Sweeps of runs that take no time: resuming, failures, signals, tables, the view."""

import csv
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import pytest
import rich.console

from experiments import cells, live_table, sweep, train
from tests.experiments import toy
from tests.experiments.toy import toy_config


@pytest.fixture(autouse=True)
def freed(monkeypatch):
    """Toy runs; counts how often memory is freed, which takes longer than a toy cell."""
    freed = []
    toy.install(monkeypatch)
    monkeypatch.setattr(sweep, "_free_memory", lambda: freed.append(1))
    return freed


FREE_MEMORY = sweep._free_memory


def test_compiled_programs_are_freed(monkeypatch):
    """Not those of this process, which other tests go on with."""
    called = []
    monkeypatch.setattr(jax, "clear_caches", lambda: called.append("programs"))
    monkeypatch.setattr(gc, "collect", lambda: called.append("arrays"))
    FREE_MEMORY()
    assert called == ["programs", "arrays"]


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_plots(tmp_path, freed):
    config = toy_config()
    config.plots = ({"x": "total", "y": "metric", "lines": "variant"},)
    assert sweep.main(config, str(tmp_path / "run")) == 0
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert len(rows) == len(toy.CALLS) == len(freed) == 8
    assert list(rows[0])[:5] == ["cell", "state", "variant", "optimizer.learning_rate", "seed"]
    assert rows[7]["variant"] == "mpo"  # the axis, not the field of the result
    assert float(rows[7]["metrics.f1"]) == pytest.approx(0.325)
    assert "fit" not in rows[0]
    means = read_csv(tmp_path / "run" / "summary.csv")
    assert len(means) == 4
    assert means[2]["n"] == "2"
    assert float(means[2]["metric"]) == pytest.approx(0.6)
    assert float(means[2]["metric_std"]) == pytest.approx(0.1 / 2**0.5)
    page = (tmp_path / "run" / "summary.md").read_text(encoding="utf-8")
    assert "8 of 8 cells finished" in page
    assert "0.6000 ± 0.0707" in page
    picture = (tmp_path / "run" / "plots" / "metric_vs_total.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["axes"][2] == ["seed", "seeds"]


def test_finished_cells_are_kept_and_axes_may_grow(tmp_path):
    config = toy_config()
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(toy.CALLS) == 8
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(toy.CALLS) == 8
    config.seeds = (0, 1, 2)
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(toy.CALLS) == 12
    assert read_csv(tmp_path / "summary.csv")[0]["n"] == "3"


def test_another_config_is_refused(tmp_path):
    sweep.main(toy_config(), str(tmp_path))
    config = toy_config()
    config.cell.max_length = 9
    with pytest.raises(ValueError, match=r"cell.max_length: 8 there, 9 here"):
        sweep.main(config, str(tmp_path))
    config = toy_config()
    config.axes = (("variant", {"dense": {"variant": "other"}}), *config.axes[1:])
    for cell in cells.expand(toy_config()):  # as a runner that records its config
        path = tmp_path / "cells" / cell.name / "config.json"
        path.write_text(cell.config.to_json_best_effort(), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run with another config.*\n.*variant: 'd' there"):
        sweep.main(config, str(tmp_path))


def without(config, names):
    """A config of a version that had not yet some fields."""
    older = {name: value for name, value in config.items() if name not in names}
    return {n: without(v, names) if isinstance(v, dict) else v for n, v in older.items()}


def test_a_sweep_begun_before_a_field_existed_resumes(tmp_path):
    sweep.main(toy_config(), str(tmp_path))
    records = [tmp_path / "config.json"]
    for cell in cells.expand(toy_config()):
        records.append(tmp_path / "cells" / cell.name / "config.json")
        records[-1].write_text(cell.config.to_json_best_effort(), encoding="utf-8")
    for path in records:
        there = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(without(there, ("dtype", "remat"))), encoding="utf-8")
    later = toy_config()
    with later.cell.unlocked():
        later.cell.dtype, later.cell.remat = "float32", False
    assert sweep.main(later, str(tmp_path)) == 0
    later.cell.dtype = "bfloat16"
    with pytest.raises(ValueError, match="dtype: 'float32' there, 'bfloat16' here"):
        sweep.main(later, str(tmp_path))


def test_a_failing_cell_is_recorded_and_tried_again(tmp_path, monkeypatch):
    broken = [True]

    def run(config, folder):
        assert not pathlib.Path(folder).exists() or not list(pathlib.Path(folder).iterdir())
        if config.variant == "m" and config.seed == 0 and broken[0]:
            raise RuntimeError("out of luck")
        return toy.toy_run(config, folder)

    monkeypatch.setattr(train, "run", run)
    assert sweep.main(toy_config(), str(tmp_path)) == 1
    assert len(toy.CALLS) == 6
    name = "variant=mpo,optimizer.learning_rate=0.001,seed=0"
    record = json.loads((tmp_path / "cells" / name / "failed.json").read_text(encoding="utf-8"))
    assert record["message"] == "RuntimeError: out of luck"
    assert "in run" in record["traceback"]
    states = [row["state"] for row in read_csv(tmp_path / "results.csv")]
    assert states == ["done"] * 4 + ["failed", "done"] * 2
    assert f"Failed: `{name}`" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert not (tmp_path / "result.json").exists()
    broken[0] = False
    assert sweep.main(toy_config(), str(tmp_path)) == 0
    assert len(toy.CALLS) == 8
    assert not (tmp_path / "cells" / name / "failed.json").exists()
    assert (tmp_path / "result.json").is_file()


def test_a_run_without_a_result_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "run", lambda config, folder: 0)
    assert sweep.main(toy_config(), str(tmp_path)) == 1
    record = next((tmp_path / "cells").glob("*/failed.json")).read_text(encoding="utf-8")
    assert "wrote no result.json" in record


@pytest.mark.parametrize("where", ["in a deaf cell", "in a listening cell", "between cells"])
def test_signals_stop_cleanly(tmp_path, monkeypatch, where):
    def run(config, folder):
        if len(toy.CALLS) == 2 and where == "in a deaf cell":
            signal.raise_signal(signal.SIGTERM)
        if len(toy.CALLS) == 2 and where == "in a listening cell":
            return 1
        return toy.toy_run(config, folder)

    write_tables = sweep.write_tables

    def write(*args):
        write_tables(*args)
        if len(toy.CALLS) == 2:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train, "run", run)
        if where == "between cells":
            patch.setattr(sweep, "write_tables", write)
        assert sweep.main(toy_config(), str(tmp_path)) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(toy.CALLS) == 2
    assert not (tmp_path / "result.json").exists()
    assert not list(tmp_path.glob("cells/*/failed.json"))
    assert len(read_csv(tmp_path / "results.csv")) == 8
    assert sweep.main(toy_config(), str(tmp_path)) == 0
    assert len(toy.CALLS) == 8


SCRIPT = """
    import sys, time, pathlib
    from tests.experiments import toy as t
    from experiments import launch, sweep, train

    def run(config, folder):
        if config.variant == "m" and config.seed == 1 and sys.argv[2] == "hang":
            pathlib.Path(folder).mkdir(parents=True)
            (pathlib.Path(folder) / "half").touch()
            time.sleep(60)
        return t.toy_run(config, folder)

    train.run, train.check = run, lambda config: None
    try:
        sys.exit(sweep.main(t.toy_config(), sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
"""


def start(folder, mode):
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), mode],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_locked_while_it_runs_and_killed_at_any_time(tmp_path):
    first = start(tmp_path, "hang")
    half = tmp_path / "cells" / "variant=mpo,optimizer.learning_rate=0.001,seed=1" / "half"
    deadline = time.monotonic() + 60
    while not half.exists():
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    second = start(tmp_path, "go")
    _, message = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "another run is at work in" in message
    assert f"process {first.pid}" in message
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/result.json")}
    assert len(finished) == 5
    third = start(tmp_path, "go")
    _, message = third.communicate(timeout=60)
    assert third.returncode == 0, message
    assert len(list(tmp_path.glob("cells/*/result.json"))) == 8
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_the_view_on_a_terminal(tmp_path):
    console = rich.console.Console(
        file=open(tmp_path / "screen", "w", encoding="utf-8"),  # noqa: SIM115
        force_terminal=True,
        width=100,
    )
    view = live_table.LiveTable({"a": {"metric": 0.5}, "b": None, "c": None})
    assert view.remaining_seconds() is None
    with view.shown(console):
        assert not sys.stderr.isatty()  # cells log lines instead of drawing bars
        view.started("b")
        print("a line of the cell [b]")
        view.ended("b", {"metric": 0.75, "metric_name": "f1"}, 90.0, stopped=False)
    console.file.close()
    assert view.remaining_seconds() == 90.0
    assert view.progress() == "2 of 3 cells finished, about 1:30 left"
    screen = (tmp_path / "screen").read_text(encoding="utf-8")
    assert "a line of the cell [b]" in screen
    assert "f1 0.7500" in screen
    assert "1:30" in screen
