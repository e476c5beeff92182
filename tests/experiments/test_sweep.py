"""Sweeps with a runner that takes no time: cells, resuming, failures, signals, tables, plots."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import ml_collections
import pytest
import rich.console
from absl import logging
from ml_collections import config_dict

from configs.sweeps import bond_dims
from experiments import cells, plots, sweep, sweep_files, sweep_view

CALLS: list[str] = []


def toy_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.runner = "toy"
    config.cell = {
        "task": "sst2",
        "variant": "",
        "max_length": 8,
        "bond": config_dict.placeholder(int),
        "seed": 0,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0.1},
        "matrices": (),
    }
    config.seeds = (0, 1)
    config.axes = (
        ("variant", {"dense": {"variant": "d"}, "mpo": {"variant": "m", "matrices": (".*",)}}),
        ("optimizer.learning_rate", (1e-3, 2.8e-6)),
        ("seed", "seeds"),
    )
    config.plots = ({"x": "total", "y": "metric", "lines": "variant"},)
    return config


def toy_run(config, folder) -> int:
    """Writes a result whose numbers follow from the config."""
    folder = pathlib.Path(folder)
    CALLS.append(folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    metric = 0.5 + 0.1 * config.seed + 0.05 * (config.variant == "m")
    result = {
        "task": config.task,
        "variant": config.variant,
        "seed": config.seed,
        "metric_name": "accuracy",
        "metric": metric,
        "metrics": {"accuracy": metric, "f1": metric / 2},
        "total": 100 if config.variant == "d" else 50,
        "trained": 10,
        "relative_error": 0.0,
        "fit": {"ignored": 1},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The runner "toy", replaced by tests that need another one."""
    CALLS.clear()
    monkeypatch.setitem(sweep.RUNNERS, "toy", f"{__name__}:toy_run")


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_expansion_order_names_and_values():
    made = cells.expand(toy_config())
    assert [cell.name for cell in made[:3]] == [
        "variant=dense,optimizer.learning_rate=0.001,seed=0",
        "variant=dense,optimizer.learning_rate=0.001,seed=1",
        "variant=dense,optimizer.learning_rate=2.8e-06,seed=0",
    ]
    assert len(made) == 8
    last = made[-1].config
    assert (last.variant, last.matrices, last.seed) == ("m", (".*",), 1)
    assert last.optimizer.learning_rate == 2.8e-6
    assert last.optimizer.warmup_steps == 0.1
    assert made[-1].values == {"variant": "mpo", "optimizer.learning_rate": 2.8e-6, "seed": 1}
    assert made[0].config.matrices == ()  # cells do not share their configs


def test_names_are_safe_short_and_different():
    labels = {"task": "a/b: c", "seed": "0"}
    assert cells.cell_name(labels) == "task=a_b_c,seed=0"
    long = [cells.cell_name({"x": "y" * 300 + end}) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200
    config = toy_config()
    config.axes = (("task", ("a/b", "a:b")),)
    with pytest.raises(ValueError, match="share the folder"):
        cells.expand(config)


def test_skip_leaves_combinations_out():
    config = toy_config()
    config.skip = ({"variant": "dense", "seed": (1,)}, {"optimizer.learning_rate": 2.8e-6})
    assert [cell.name for cell in cells.expand(config)] == [
        "variant=dense,optimizer.learning_rate=0.001,seed=0",
        "variant=mpo,optimizer.learning_rate=0.001,seed=0",
        "variant=mpo,optimizer.learning_rate=0.001,seed=1",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": (("stesp", (1,)),)}, r"no field 'stesp'; has \["),
        ({"axes": (("max_lenght", (1,)),)}, r"no field 'max_lenght'; did you mean 'max_length'"),
        ({"axes": (("optimizer.learning_rat", (1.0,)),)}, r"mean 'optimizer.learning_rate'"),
        ({"axes": (("v", {"a": {"tsak": "x"}}),)}, r"axis 'v', value 'a': .* mean 'task'"),
        ({"axes": (("max_length", ("long",)),)}, r"'max_length' is of type int; 'long' does not"),
        ({"axes": (("max_length", (1, True)),)}, r"is of type int; True does not fit"),
        ({"axes": (("task", (None,)),)}, r"is of type str; None does not fit"),
        ({"axes": (("bond", ("x",)),)}, r"'bond' is of type int"),
        ({"axes": (("optimizer", (3,)),)}, r"'optimizer' is of type dict; 3 does not fit"),
        ({"axes": ()}, r"must be a non-empty tuple of pairs"),
        ({"axes": (("seed", ()),)}, r"'seed' has no values"),
        ({"axes": (("seed", (1, 1)),)}, r"names a value twice"),
        ({"axes": (("seed", "sedes"),)}, r"'sedes' must be a tuple of values or name a field"),
        ({"axes": (("seed", 3),)}, r"must be a tuple of values, or a dict"),
        ({"axes": (("v", {"a": 3}),)}, r"label 'a': 3 must be a dict"),
        ({"axes": (("seed", (1,)), ("seed", (2,)))}, r"names 'seed' twice"),
        ({"axes": (("seed", (1,)), ("v", {"a": {"seed": 2}}))}, r"both set 'seed'"),
        ({"skip": ({"varaint": "dense"},)}, r"skip names varaint.* the axes are variant: dense"),
        ({"skip": ({"variant": "no"},)}, r"skip names variant=\['no'\]"),
        ({"skip": ({"seed": (0, 1)},)}, r"no cells"),
        ({"runner": "finetnue"}, r"config.runner='finetnue' must be one of finetune, toy"),
        ({"plots": ({"x": "a", "z": "b"},)}, r"unknown fields \['z'\]"),
        ({"plots": ({"x": "a"},)}, r"needs x and y"),
        ({"plots": ({"x": "a", "y": "b", "lines": "seed"},)}, r"lines='seed' must be one of"),
        ({"plots": ({"x": "a", "y": "b"}, {"x": "a", "y": "b"})}, r"two plots are called"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, message):
    config = toy_config()
    if "skip" in changes:
        config.skip = ()
    with config.unlocked():
        config.update(changes)
    with pytest.raises(ValueError, match=message):
        sweep.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not CALLS


def test_a_table_value_replaces_the_whole_table():
    config = toy_config()
    config.lock()
    config.axes = (("optimizer", {"x": {"optimizer": {"name": "adam"}}}),)
    (cell,) = cells.expand(config)
    assert cell.config.optimizer.to_dict() == {"name": "adam"}
    assert config.cell.optimizer.learning_rate == 1e-3


def test_the_checks_of_a_runner_come_first(tmp_path, monkeypatch):
    def refuse(config):
        if config.variant == "m":
            raise ValueError("no such matrix")

    monkeypatch.setattr(sys.modules[__name__], "check", refuse, raising=False)
    with pytest.raises(ValueError, match=r"cell variant=mpo,.*: no such matrix"):
        sweep.main(toy_config(), str(tmp_path))
    assert not CALLS


def test_tables_and_plots(tmp_path):
    assert sweep.main(toy_config(), str(tmp_path / "run")) == 0
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert len(rows) == len(CALLS) == 8
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


def test_points_are_means_over_seeds_with_deviations():
    rows = [
        {"cell": "", "state": "done", "form": form, "bond": bond, "seed": seed, "y": bond + seed}
        for form in "ab"
        for bond in (4, 2)
        for seed in (0, 2)
    ]
    plot = plots.Plot(x="bond", y="y", lines="form")
    found = plots.points([r for r in rows if r["form"] == "a"], plot, ["form", "bond", "seed"])
    assert found == [(2, 3, 2**0.5), (4, 5, 2**0.5)]
    figure = plots.draw(plot, rows, ["form", "bond", "seed"])
    (axes,) = figure.axes
    assert len(axes.lines) == len(axes.collections) == 2  # a line and a band for each form


def test_a_plot_without_numbers_is_reported_and_left_out(tmp_path, caplog):
    config = toy_config()
    config.plots = ({"x": "accuracy", "y": "metric"}, {"x": "seed", "y": "metrics.f1"})
    logging.use_absl_handler()
    assert sweep.main(config, str(tmp_path / "run")) == 0
    drawn = [path.name for path in (tmp_path / "run" / "plots").iterdir()]
    assert drawn == ["metrics.f1_vs_seed.png"]


def test_finished_cells_are_kept_and_axes_may_grow(tmp_path):
    config = toy_config()
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(CALLS) == 8
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(CALLS) == 8
    config.seeds = (0, 1, 2)
    assert sweep.main(config, str(tmp_path)) == 0
    assert len(CALLS) == 12
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


def test_a_failing_cell_is_recorded_and_tried_again(tmp_path, monkeypatch):
    broken = [True]

    def run(config, folder):
        assert not pathlib.Path(folder).exists() or not list(pathlib.Path(folder).iterdir())
        if config.variant == "m" and config.seed == 0 and broken[0]:
            raise RuntimeError("out of luck")
        return toy_run(config, folder)

    monkeypatch.setattr(sys.modules[__name__], "failing_run", run, raising=False)
    monkeypatch.setitem(sweep.RUNNERS, "toy", f"{__name__}:failing_run")
    assert sweep.main(toy_config(), str(tmp_path)) == 1
    assert len(CALLS) == 6
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
    assert len(CALLS) == 8
    assert not (tmp_path / "cells" / name / "failed.json").exists()
    assert (tmp_path / "result.json").is_file()


def test_a_runner_without_a_result_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "lazy_run", lambda c, f: 0, raising=False)
    monkeypatch.setitem(sweep.RUNNERS, "toy", f"{__name__}:lazy_run")
    assert sweep.main(toy_config(), str(tmp_path)) == 1
    record = next((tmp_path / "cells").glob("*/failed.json")).read_text(encoding="utf-8")
    assert "wrote no result.json" in record


@pytest.mark.parametrize("where", ["in a deaf cell", "in a listening cell", "between cells"])
def test_signals_stop_cleanly(tmp_path, monkeypatch, where):
    def run(config, folder):
        if len(CALLS) == 2 and where == "in a deaf cell":
            signal.raise_signal(signal.SIGTERM)
        if len(CALLS) == 2 and where == "in a listening cell":
            return 1
        return toy_run(config, folder)

    write_tables = sweep_files.write_tables

    def write(*args):
        write_tables(*args)
        if len(CALLS) == 2:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "stopped_run", run, raising=False)
        patch.setitem(sweep.RUNNERS, "toy", f"{__name__}:stopped_run")
        if where == "between cells":
            patch.setattr(sweep_files, "write_tables", write)
        assert sweep.main(toy_config(), str(tmp_path)) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(CALLS) == 2
    assert not (tmp_path / "result.json").exists()
    assert not list(tmp_path.glob("cells/*/failed.json"))
    assert len(read_csv(tmp_path / "results.csv")) == 8
    assert sweep.main(toy_config(), str(tmp_path)) == 0
    assert len(CALLS) == 8


SCRIPT = """
    import sys, time, pathlib
    from tests.experiments import test_sweep as t
    from experiments import launch, sweep

    def run(config, folder):
        if config.variant == "m" and config.seed == 1 and sys.argv[2] == "hang":
            pathlib.Path(folder).mkdir(parents=True)
            (pathlib.Path(folder) / "half").touch()
            time.sleep(60)
        return t.toy_run(config, folder)

    t.slow_run = run
    sweep.RUNNERS["toy"] = "tests.experiments.test_sweep:slow_run"
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
    assert "another sweep is running in" in message
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
    view = sweep_view.View(["a", "b", "c"], {"a": {"metric": 0.5}, "b": None, "c": None})
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


def test_bond_dims_expands():
    made = cells.expand(bond_dims.get_config())
    assert len(made) == 20
    assert made[0].name == "form=mpo,bond=8,seed=0"
    assert made[-1].config.settings.form == "low_rank"
    smoke = cells.expand(bond_dims.get_config("sst2,smoke"))
    assert [cell.config.bond for cell in smoke] == [16, 64, 16, 64]
    assert {cell.config.task for cell in smoke} == {"sst2"}
    with pytest.raises(ValueError, match="only ',smoke' is allowed"):
        bond_dims.get_config("sst2,smok")
