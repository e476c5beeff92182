"""Tables of the MPOBERT paper: counts, scores from runs of every kind, costs."""

import csv
import json
import statistics

import pytest

from configs.mpobert import fewshot, finetune, multitask
from configs.sweeps import mpobert48
from experiments import cells as sweep_cells
from experiments import table
from experiments.tables import cells, costs, results, schema, scores
from mpojax.methods import mpobert, mpop
from mpojax.training import workdir

TABLES = {f"mpobert_table{n}": schema.load(f"mpobert_table{n}") for n in range(1, 6)}
GLUE = schema.load("mpobert_table6").run_columns
ROWS = {(t.name, row.label): row for t in TABLES.values() for row in t.rows}


def put(folder, config, metrics, **changes):
    """A finished run of one task, as `experiments.train` leaves it."""
    config.update(changes)
    result = {"task": config.task, "metrics": metrics, "dev_examples": 277}
    write(folder, config, result | {"total": 20_000_000, "trained": 20_000_000})


def write(folder, config, result):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(workdir.plain(config)), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def made(name, folder):
    """The records of a table by (row, column), and its text."""
    options = [name, f"--workdir={folder}", f"--out={folder / 'out'}"]
    assert table.main(options) == 0
    with open(folder / "out" / f"{name}.csv", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    text = (folder / "out" / f"{name}.md").read_text(encoding="utf-8")
    return {(r["row"], r["task"]): r for r in records}, text


@pytest.mark.parametrize("name", TABLES)
def test_parameter_columns_are_exact(name, tmp_path):
    records, text = made(name, tmp_path)
    for row in TABLES[name].rows:
        record = records[row.label, TABLES[name].columns[0].key]
        if not row.config:
            assert (record["total"], record["config"]) == ("", "")
            assert f"| {row.label} | published only |" in text
            continue
        total = finetune.counts(row.variant)["total"]
        assert record["total"] == str(total)
        assert f"| {total:,} |" in text
        assert record["published_total_millions"] == (row.total or "")


def test_averages_are_those_of_the_scores_or_the_note_says_so():
    for row in ROWS.values():
        if row.average is None:
            continue
        mean = statistics.fmean(map(float, row.scores.values()))
        if abs(mean - float(row.average)) > 0.0501:
            assert f"mean of the printed scores is {mean:.2f}" in row.note
        else:
            assert "mean of the printed scores" not in row.note


def test_notes_hold_the_numbers_they_state():
    def count(name, **changes):
        changes = {"masked_lm": False, **changes}
        return mpop.parameter_counts(mpop.abstract(*mpobert.variant(name, **changes)))["total"]

    rows = {label: row for (_, label), row in ROWS.items()}
    assert f"{count('mpobert48', adapter_rank=8):,}" in rows["MPOBERT48, dev"].note
    plus = finetune.counts("mpobert48plus_adapter8")["total"]
    assert f"{plus:,}" in rows["MPOBERT48+, dev"].note
    assert plus == count("mpobert48plus", adapter_rank=8)
    for rank in (8, 64):
        assert f"{count('mpobert12', adapter_rank=rank):,}" in rows["rank 8"].note
    assert f"{count('unshared12'):,}" in rows["w/o PS"].note
    assert f"{finetune.counts('albert12')['total']:,}" in rows["w/o PS"].note
    bert, ours = rows["BERT12, test"], rows["MPOBERT12, test"]
    glue = [column.key for column in GLUE]
    for row, nine, eight in ((bert, 80.17, 79.12), (ours, 80.80, 79.64)):
        values = {key: float(value) for key, value in row.scores.items()}
        assert statistics.fmean(values.values()) == pytest.approx(nine, abs=0.01)
        assert statistics.fmean(values[key] for key in glue) == pytest.approx(eight, abs=0.01)
    assert "79.12 without SQuAD" in bert.note
    plus_glue = [
        statistics.fmean(float(rows[f"MPOBERT48+, {split}"].scores[key]) for key in glue)
        for split in ("test", "dev")
    ]
    note = " ".join(costs.table6([]).notes)
    assert [f"{value:.2f}" for value in plus_glue] == ["81.61", "85.15"]
    assert "81.61" in note
    assert "85.15" in note


def test_dev_scores_of_albert_are_those_of_the_earlier_paper():
    earlier = next(row for row in schema.load("mpop_table3").rows if row.label == "ALBERT_rep")
    row = ROWS["mpobert_table1", "ALBERT12, dev"]
    same = {key for key, value in row.scores.items() if earlier.scores.get(key) == value}
    assert same == set(row.scores) - {"mrpc", "squad"}


def test_printed_counts_that_follow():
    for name, label in (
        *(("mpobert_table4", label) for label in ("MPOBERT12", "w/o adapter")),
        *(("mpobert_table5", f"rank {rank}") for rank in (4, 8, 64)),
    ):
        row = ROWS[name, label]
        assert f"{finetune.counts(row.variant)['total'] / 1e6:.1f}" == row.total


def test_a_run_appears_in_its_cell_alone(tmp_path):
    for seed, value in ((0, 0.70), (1, 0.74)):
        config = finetune.get_config("mpobert12,rte")
        put(tmp_path / f"rte{seed}", config, {"accuracy": value}, seed=seed, model="elsewhere")
    config = finetune.get_config("mpobert12,mrpc")
    put(tmp_path / "mrpc", config, {"accuracy": 0.8, "f1": 0.87}, steps=3)
    config = finetune.get_config("mpobert12_adapter8,rte")
    put(tmp_path / "adapter", config, {"accuracy": 0.75})
    put(tmp_path / "squad", finetune.get_config("bert12,squad"), {"f1": 0.885, "exact_match": 0.8})
    # A few-shot run of the same variant and task is no run of table 1.
    put(tmp_path / "few", fewshot.get_config("mpobert12,sst2"), {"accuracy": 0.6})
    found, text = made("mpobert_table1", tmp_path)
    rte = found["MPOBERT12, dev", "rte"]
    assert (float(rte["ours"]), rte["seeds"], rte["own_config"]) == (72.0, "2", "True")
    mrpc = found["MPOBERT12, dev", "mrpc"]
    assert (float(mrpc["ours"]), mrpc["own_config"]) == (87.0, "False")
    assert float(found["BERT12, dev", "squad"]["ours"]) == 88.5
    filled = {key for key, record in found.items() if record["ours"]}
    assert filled == {
        *(("MPOBERT12, dev", task) for task in ("rte", "mrpc")),
        ("BERT12, dev", "squad"),
    }
    assert "72.0 ± 2.8 |" in text
    assert "SQuAD's development set has 10,570" in text
    ablation, _ = made("mpobert_table4", tmp_path)
    assert float(ablation["MPOBERT12", "rte"]["ours"]) == 75.0
    assert float(ablation["w/o adapter", "rte"]["ours"]) == 72.0
    assert ablation["w/o PS", "rte"]["ours"] == ""


def test_the_best_of_a_search_counts(tmp_path):
    found = sweep_cells.expand(mpobert48.get_config("mpobert48,rte"))
    for index, cell in enumerate(found):
        put(tmp_path / cell.name, cell.config, {"accuracy": 0.5 + 0.01 * index})
    records, text = made("mpobert_table1", tmp_path)
    best = records["MPOBERT48, dev", "rte"]
    assert (float(best["ours"]), best["own_config"]) == (pytest.approx(67.0), "True")
    assert "MPOBERT48, dev, rte: the best of 18 settings on the data of the score." in text
    # Twelve layers have commands: other settings are another experiment.
    config = finetune.get_config("mpobert12,rte")
    put(tmp_path / "own", config, {"accuracy": 0.6})
    config.optimizer.learning_rate = 1e-4
    put(tmp_path / "other", config, {"accuracy": 0.9})
    records, _ = made("mpobert_table1", tmp_path)
    assert float(records["MPOBERT12, dev", "rte"]["ours"]) == pytest.approx(60.0)


def test_multi_task_runs(tmp_path):
    config = multitask.get_config("mpobert12")
    metrics = {"mrpc": "f1", "cola": "matthews", "stsb": "spearman"}
    tasks = {
        task: {"metrics": {metrics.get(task, "accuracy"): 0.5 + 0.05 * i}, "dev_examples": 277}
        for i, task in enumerate(config.tasks)
    }
    result = {"task": "+".join(config.tasks), "tasks": tasks, "metrics": {}, "total": 1}
    write(tmp_path / "all", config, result)
    found, text = made("mpobert_table2", tmp_path)
    assert float(found["MPOBERT12", "cola"]["ours"]) == pytest.approx(75.0)
    assert float(found["MPOBERT12", "mnli"]["ours"]) == pytest.approx(50.0)
    assert found["BERT12", "mnli"]["ours"] == ""
    assert "|  | ours | 67.5 |" in text
    single, _ = made("mpobert_table1", tmp_path)
    assert not any(record["ours"] for record in single.values())
    # Fewer tasks are another experiment, and marked as such.
    config.tasks = ("rte", "mrpc")
    few = {"task": "rte+mrpc", "tasks": {"rte": {"metrics": {"accuracy": 0.9}}}, "total": 1}
    write(tmp_path / "few", config, few)
    found, _ = made("mpobert_table2", tmp_path)
    assert float(found["MPOBERT12", "rte"]["ours"]) == pytest.approx(65.0)


def test_few_shot_runs_are_means_over_draws(tmp_path):
    values = {(0, 0): 0.5, (0, 1): 0.6, (1, 0): 0.65}  # (draw, seed)
    for (draw, seed), value in values.items():
        config = fewshot.get_config("mpobert12,sst2")
        metrics = {"accuracy": value}
        put(tmp_path / f"{draw}{seed}", config, metrics, shots=20, draw=draw, seed=seed)
    put(tmp_path / "ten", fewshot.get_config("mpobert12,sst2"), {"accuracy": 0.9}, shots=10)
    found, text = made("mpobert_table3", tmp_path)
    twenty = found["MPOBERT12", "sst2-20"]
    assert float(twenty["ours"]) == pytest.approx(60.0)
    assert float(twenty["ours_std"]) == pytest.approx(100 * statistics.stdev([0.55, 0.65]))
    assert (twenty["seeds"], twenty["published"]) == ("2", "65.4")
    assert float(found["MPOBERT12", "sst2-10"]["ours"]) == pytest.approx(90.0)
    assert found["MPOBERT12", "sst2-30"]["ours"] == ""
    assert "60.0 ± 7.1" in text


def test_runs_from_before_a_field_have_its_default(tmp_path):
    config = finetune.get_config("mpobert12,rte")
    put(tmp_path / "old", config, {"accuracy": 0.7})
    path = tmp_path / "old" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("adapters", "adapter_phase", "shots", "draw"):
        del content[name]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = results.score(results.find(tmp_path), config, "accuracy")
    assert (found.mean, found.differs) == (0.7, ())


def test_table_6(tmp_path):
    config = {"variant": "mpobert48plus", "architecture": "mpobert", "batch_size": 64}
    write(tmp_path / "run", config, {"task": "pretraining", "steps": 300, "seconds": 5400.0})
    for index, column in enumerate(GLUE):
        config = finetune.get_config(f"mpobert48plus,{column.task}")
        put(tmp_path / column.task, config, {column.metric: 0.8 + 0.01 * index})
    page = costs.table6(results.find(tmp_path))
    last = page.rows[-1]
    assert last == ["", "ours", "99,649,026", "48", "64x300", "1.5 h", "83.5", ""]
    ours = {row[2] for row in page.rows if row[1] == "ours"}
    assert ours == {"99,649,026", "335,143,938", "222,603,778"}
    assert costs.table6([]).rows[-1] == ["", "ours", "99,649,026", "48", "", "", "", ""]


def test_table_7_decodes_the_printed_numbers():
    records = {r["model"]: r for r in costs.table7().records}
    assert records["BERT12"]["decoded_gflops"] == pytest.approx(96.6368, abs=5e-5)
    assert records["MPOBERT12"]["decoded_gflops"] == pytest.approx(139.77, abs=5e-3)
    assert records["MPOBERT48"]["decoded_gflops"] == pytest.approx(670.0149, abs=5e-5)
    assert records["MPOBERT12"]["consistent_gflops"] == pytest.approx(182.91, abs=5e-3)
    assert records["MPOBERT48"]["consistent_gflops"] == pytest.approx(1514.6, abs=0.05)
    for record in records.values():
        assert record["decoded_gflops"] == pytest.approx(
            float(record["published_gflops"]), abs=0.035
        )


def test_costs_print_and_list(capsys, tmp_path):
    for name in ("mpobert_table6", "mpobert_table7"):
        assert table.main([name, f"--out={tmp_path}"]) == 0
        assert (tmp_path / f"{name}.csv").is_file()
        assert table.main([name, "--list"]) == 0
        assert f"python -m experiments.table {name}" in capsys.readouterr().out


def test_list_shows_every_row_that_can_run(tmp_path, capsys):
    cells.find_data.cache_clear()
    model = tmp_path / "models" / "mpobert12" / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    (model / "model.safetensors").touch()
    options = [f"--model_dir={tmp_path / 'models'}", f"--data_dir={tmp_path}", "--list"]
    assert table.main(["mpobert_table1", *options]) == 0
    printed = capsys.readouterr().out
    labels = {row.label for row in TABLES["mpobert_table1"].rows}
    shown = {line for line in printed.splitlines() if line in labels}
    assert shown == {
        f"{name}, dev"
        for name in ("ALBERT12", "ALBERT24", "MPOBERT12", "MPOBERT48", "BERT12", "MPOBERT48+")
    } | {"MobileBERT24, test", "DistilBERT6, test"}
    for name in ("mobilebert24", "distilbert6"):
        assert f"--config=configs/mpobert/finetune.py:{name},rte" in printed
    assert printed.count("Published on the test set alone") == 2
    assert (
        "python -m experiments.train --config=configs/mpobert/finetune.py:mpobert12,rte "
        f"--config.model={model} --workdir=runs/finetune/mpobert12-rte"
    ) in printed
    assert "SQuAD F1: needs weights of mpobert48 and data of squad\n" in printed
    assert (
        "--config=configs/mpobert/paper.py:mpobert48plus --workdir=runs/pretrain/mpobert48plus"
        in printed
    )
    assert "configs/sweeps/mpobert48.py:mpobert48,rte" in printed
    assert table.main(["mpobert_table2", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("experiments.train --config=configs/mpobert/multitask.py") == 4
    assert table.main(["mpobert_table3", *options]) == 0
    assert "--config.shots=20 --workdir=runs/fewshot/bert12-sst2-20" in capsys.readouterr().out


def test_commands_name_configs_that_load():
    for one in TABLES.values():
        for row in one.rows:
            for column in one.columns if row.config else ():
                config = scores.load_config(row, column)
                assert config.variant == row.variant
                assert config.shots == column.fields.get("shots", 0)
