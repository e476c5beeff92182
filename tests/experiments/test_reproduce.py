"""What runs the rows of a table: selection, cost, order, resuming, sharing the folder."""

import json

import pytest
from flax import nnx

from experiments import reproduce, train
from experiments.tables import cells, schema, training_cost, work
from mpojax import claims, files, io, models
from mpojax.training import workdir
from tests.experiments.toy_encoder import SETTINGS, WORDS

TOY = """
title = "A toy table"
source = "nowhere"
columns = [
    { task = "rte", header = "RTE", metric = "accuracy" },
    { task = "mrpc", header = "MRPC", metric = "accuracy" },
]

[[rows]]
label = "student"
config = "tests/experiments/toy_rows.py:dir,{task}"
start = { init_checkpoint = "teacher" }
scores = "60.0 70.0"

[[rows]]
label = "teacher"
config = "tests/experiments/toy_rows.py:dense,{task}"
scores = "65.0 -"
total = "11.7"
note = "As it is."

[[rows]]
label = "another library's"
scores = "1.0 2.0"
"""
NAMES = [f"toy_rows/{variant}-{task}" for variant in ("dense", "dir") for task in ("rte", "mrpc")]
TIMING = {"timing": claims.Timing(0.05, 1.0), "poll": 0.01}


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """The only table is a toy, for which everything is at hand."""
    (tmp_path / "toy.toml").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    monkeypatch.setattr(schema, "PAPERS", ("toy",))
    monkeypatch.setattr(cells, "find_weights", lambda *unused: ("", ""))
    monkeypatch.setattr(cells, "find_data", lambda task, folder: "")
    schema.load.cache_clear()
    yield
    schema.load.cache_clear()


class Runner:
    """Writes results; fails or is stopped where it is told."""

    def __init__(self, bad=(), stop_at=None):
        self.bad, self.stop_at, self.seen = bad, stop_at, []

    def __call__(self, config, folder):
        run = workdir.Workdir(folder, config)
        name = "/".join(run.path.parts[-2:])
        self.seen.append((name, run.resuming))
        if name == self.stop_at:
            return 1
        if name in self.bad:
            raise ValueError("no such thing")
        result = {"task": config.task, "metric_name": "accuracy", "metric": 0.5}
        run.write_result(result | {"metrics": {"accuracy": 0.5}, "total": 1, "trained": 1})
        if config.save_model:
            (run.path / "model").mkdir()
        return 0


def run(found, where, runner):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run", runner)
        return reproduce.run(found, where, **TIMING)


def folders(tmp_path):
    return cells.Folders(str(tmp_path / "runs"))


def test_the_runs_of_a_table_in_the_order_of_their_needs(tmp_path):
    found = reproduce.select("toy")
    assert [cell.name for cell in found] == NAMES
    assert [cell.is_saved for cell in found] == [True, True, False, False]
    command = cells.command(found[2], folders(tmp_path))
    teacher = tmp_path / "runs" / "toy_rows" / "dense-rte" / "model"
    assert f"--config.init_checkpoint={teacher}" in command
    assert "--config.save_model=True" in cells.command(found[0], folders(tmp_path))
    # What a run starts from comes with it; seeds have folders of their own.
    assert [cell.name for cell in reproduce.select("toy", "*/dir-rte")] == [NAMES[0], NAMES[2]]
    seeded = reproduce.select("toy", "*/dir-rte-seed1", (0, 1))
    assert [cell.name for cell in seeded] == [f"{NAMES[0]}-seed1", f"{NAMES[2]}-seed1"]
    assert "--config.seed=1" in cells.command(seeded[1], folders(tmp_path))
    with pytest.raises(ValueError, match="unknown 'toy_rows/dense', did you mean"):
        reproduce.select("toy", "toy_rows/dense")


def test_a_stopped_run_resumes_and_finished_ones_are_kept(tmp_path):
    found, where = reproduce.select("toy"), folders(tmp_path)
    first = Runner(stop_at=NAMES[1])
    assert run(found, where, first) is None
    assert first.seen == [(NAMES[0], False), (NAMES[1], False)]
    second = Runner()
    assert run(found, where, second) == dict.fromkeys(NAMES, "done")
    assert second.seen == [(NAMES[1], True), (NAMES[2], False), (NAMES[3], False)]
    config = json.loads((where.of(found[3]) / "config.json").read_text())
    assert config["init_checkpoint"] == str(where.of(found[1]) / "model")
    assert run(found, where, third := Runner()) == dict.fromkeys(NAMES, "done")
    assert third.seen == []


def test_a_failed_run_is_recorded_and_blocks_those_that_need_it(tmp_path):
    found, where = reproduce.select("toy"), folders(tmp_path)
    states = run(found, where, Runner(bad=NAMES[:1]))
    assert [states[name] for name in NAMES] == ["failed", "done", "blocked", "done"]
    assert "no such thing" in (where.of(found[0]) / "failed.json").read_text()
    assert set(run(found, where, Runner()).values()) == {"done"}


def test_what_another_process_runs_is_waited_for(tmp_path):
    found, where = reproduce.select("toy", "*/dense-*"), folders(tmp_path)
    runner = Runner()

    def elsewhere(name):
        """While this process runs the first one, another one finishes the second."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "run", runner)
            return reproduce._run(found[1], where)

    class Both(Runner):
        def __call__(self, config, folder):
            other = work.Work(
                [NAMES[1]],
                tmp_path / "runs" / "claims",
                elsewhere,
                lambda name: reproduce.is_done(found[1], where),
                **TIMING,
            )
            assert isinstance(
                claims.take(tmp_path / "runs" / "claims" / NAMES[0], TIMING["timing"]), claims.Held
            )
            assert other.share() == {NAMES[1]: "done"}
            return super().__call__(config, folder)

    both = Both()
    assert set(run(found, where, both).values()) == {"done"}
    assert [both.seen, runner.seen] == [[(NAMES[0], False)], [(NAMES[1], False)]]


def test_a_finished_run_without_the_model_that_others_start_from(tmp_path):
    found, where = reproduce.select("toy"), folders(tmp_path)
    run(found[:1], where, Runner())
    assert not reproduce.missing(found[2], where)
    (where.of(found[0]) / "model").rmdir()
    [(what, why)] = reproduce.missing(found[2], where).items()
    assert what == f"the model of {NAMES[0]}"
    assert "remove its folder to run it again" in why


def test_the_dry_run_says_what_it_costs_and_what_is_missing(tmp_path, capsys, monkeypatch):
    run(reproduce.select("toy", "*/dense-rte"), folders(tmp_path), Runner())
    lack = "no folder\n    hf download"

    def find_data(task, folder):
        assert not files.may_fetch()
        return lack * (task == "mrpc")

    monkeypatch.setattr(cells, "find_data", find_data)
    options = [f"--workdir={tmp_path / 'runs'}", "--device=h100", "--utilisation=0.5"]
    assert reproduce.main(["toy", "--dry_run", *options]) == 0
    printed = capsys.readouterr().out
    assert "4 runs: 1 finished, 1 can run, 2 need what is missing" in printed
    assert "(h100, 989 TFLOP/s at 50% utilisation; change it with --device" in printed
    assert f"python -m experiments.reproduce toy --workdir={tmp_path}/runs --only={NAMES[2]}\n" in (
        printed
    )
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert lines[NAMES[0]][1] == "finished"
    assert lines[NAMES[2]][1:4] == ["can", "run", "100"]
    assert lines[NAMES[1]][1:5] == ["needs", "data", "of", "mrpc"]
    assert "data of mrpc: no folder\n    hf download" in printed
    cell = reproduce.select("toy")[0]
    text = models.model_flops(models.PRESETS["albert-base-v2"], 1, 128)
    expected = 100 * 8 * text + 277 * text / 3
    assert training_cost.flops(cell) == pytest.approx(expected)
    hours = expected / (989e12 * 0.5 * 3600)
    assert lines[NAMES[0]][3:] == [f"{expected:.1e}", f"{hours:.2g}"]


def test_it_ends_with_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "run", Runner())
    assert reproduce.main(["toy", f"--workdir={tmp_path / 'runs'}"]) == 0
    printed = capsys.readouterr().out
    assert "A toy table" in printed
    assert "As it is." in printed
    assert (tmp_path / "runs" / "toy.csv").is_file()
    frame = (tmp_path / "runs" / "toy.md").read_text()
    assert "| ours | 50.0 | 50.0 |" in frame
    assert "50.0*" not in frame


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toys"], "unknown 'toys', did you mean 'toy'"),
        (["toy"], "--workdir='' must be the folder of all runs"),
        (["toy", "--dry_run", "--device=abacus"], "--device='abacus' must be one of 'tpu-v4'"),
        (["toy", "--dry_run", "--utilisation=2"], "--utilisation=2.0 must be a finite number"),
    ],
)
def test_mistakes_are_explained(capsys, arguments, message):
    assert reproduce.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_tables_are_listed(capsys):
    assert reproduce.main([]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["toy", "A", "toy", "table", "4"]


@pytest.mark.slow
def test_real_runs(tmp_path, monkeypatch, capsys):
    """A dense run by `experiments.train`, and a compressed one that starts from its model."""
    fields = "{ steps = 3, max_length = 8, lengths = [8], batch_size = 8, dropout = 0.0 }"
    text = TOY.replace("config = ", f"fields = {fields}\nconfig = ")
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    for split, count in (("train", 24), ("dev", 12)):
        rows = [("good fine", "bad poor", "entailment"), ("bad", "good", "not_entailment")]
        lines = ["\t".join((str(i), *rows[i % 2])) for i in range(count)]
        path = tmp_path / "data" / "glue" / "RTE" / f"{split}.tsv"
        files.write_atomic(path, "\n".join(["index\tsentence1\tsentence2\tlabel", *lines, ""]))
    model = tmp_path / "toy"
    io.export_huggingface(models.build(SETTINGS, rngs=nnx.Rngs(0)), model)
    (model / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    monkeypatch.setattr(cells, "find_weights", lambda *unused: (str(model), ""))
    runs = tmp_path / "runs"
    options = [f"--workdir={runs}", "--only=*/dir-rte", f"--data_dir={tmp_path / 'data'}"]
    assert reproduce.main(["toy", *options]) == 0
    printed = capsys.readouterr().out
    assert "measured on 12 examples" in printed
    results = [json.loads((runs / name / "result.json").read_text()) for name in NAMES[::2]]
    assert [result["steps"] for result in results] == [3, 3]
    config = json.loads((runs / NAMES[2] / "config.json").read_text())
    assert config["init_checkpoint"] == str(runs / NAMES[0] / "model")
    assert reproduce.main(["toy", *options]) == 0  # nothing is left to run
