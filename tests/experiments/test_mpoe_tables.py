"""Tables of the MPOE paper: published values, counts, scores from runs of both kinds, commands."""

import csv
import json

import pytest

from configs.mpoe import base, gpt2, multitask, t5
from experiments import table
from experiments.tables import cells, results, schema, scores
from mpojax.training import workdir

TABLES = {name: schema.load(name) for name in schema.find("mpoe")}


def write(folder, config, result):
    """A finished run, as the runners leave it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(workdir.plain(config)), encoding="utf-8")
    common = {"variant": config.variant, "seed": config.seed, "total": 1, "trained": 1}
    (folder / "result.json").write_text(json.dumps(common | result), encoding="utf-8")


def text_run(folder, argument, metrics, **changes):
    config = gpt2.get_config(argument)
    config.update(changes)
    write(folder, config, {"task": config.dataset, "metrics": metrics, "metric_name": "perplexity"})


def task_run(folder, argument, metrics, examples, **changes):
    config = t5.get_config(argument)
    config.update(changes)
    result = {"task": config.task, "metrics": metrics, "metric_name": "accuracy", "metric": 0.1}
    write(folder, config, result | {"dev_examples": 5, "test_examples": examples})


def made(name, folder):
    """The records of a table by (row, column), and its text."""
    options = [name, f"--workdir={folder}", f"--out={folder / 'out'}"]
    assert table.main(options) == 0
    with open(folder / "out" / f"{name}.csv", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    text = (folder / "out" / f"{name}.md").read_text(encoding="utf-8")
    return {(r["row"], r["task"]): r for r in records}, text


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_its_values_and_an_exact_count(name, tmp_path):
    records, text = made(name, tmp_path)
    columns = TABLES[name].columns
    for row in TABLES[name].rows:
        published = {column.key: row.scores.get(column.key, "") for column in columns}
        assert {c.key: records[row.label, c.key]["published"] for c in columns} == published
        if row.label.startswith("+Switch (quoted"):
            assert not row.scores
        else:
            missing = {key for key, value in published.items() if not value}
            assert missing <= {"wikitext2-word_perplexity"}
        record = records[row.label, columns[0].key]
        assert record["published_total_millions"] == row.total
        if row.config:
            total = row.module.counts(row.variant)["total"]
            assert record["total"] == str(total)
            assert f"| {total:,} |" in text
            assert f"| {row.total} M |" in text
        else:
            assert f"| {row.label} | published only |" in text
        for note in (row.note, *TABLES[name].notes):
            assert note in text


def test_runs_on_text(tmp_path):
    for seed, value in ((0, 20.5), (1, 21.5)):
        metrics = {
            "perplexity": 99.0,
            "test_perplexity": value,
            "test_word_perplexity": 30.0,
            "bleu2": 28.5,
            "bleu4": 9.5,
        }
        changes = {"seed": seed, "model": "elsewhere", "remat": True}
        text_run(tmp_path / f"wt{seed}", "mpoe8,wikitext2", metrics, **changes)
    text_run(tmp_path / "short", "dense,wikitext2", {"test_perplexity": 40.0}, steps=3)
    samples = {"test_perplexity": 1.0, "sample_bleu2": 66.0, "self_bleu2": 80.25}
    text_run(tmp_path / "news", "mpoe8,news", samples)
    found, text = made("mpoe_table1_gpt2", tmp_path)
    cell = found["+MPOE", "wikitext2-perplexity"]
    assert (float(cell["ours"]), cell["seeds"], cell["own_config"]) == (21.0, "2", "True")
    assert cell["published"] == "20.72"
    assert float(found["+MPOE", "wikitext2-word_perplexity"]["ours"]) == 30.0
    assert float(found["+MPOE", "news-bleu2"]["ours"]) == 66.0
    assert float(found["+MPOE", "news-self_bleu2"]["ours"]) == 80.25
    short = found["GPT-2", "wikitext2-perplexity"]
    assert (float(short["ours"]), short["own_config"]) == (40.0, "False")
    assert "21.00 ± 0.71 | 30.00 ± 0.00 | 28.50 ± 0.00 | 9.50 ± 0.00 | 66.00 | 80.25 |" in text
    assert "40.00* |" in text
    assert "steps: 876 in the row, 3 in the run" in text
    assert "Perplexities as they are, other scores in percent" in text
    filled = {key for key, record in found.items() if record["ours"]}
    assert len(filled) == 7
    ablation, _ = made("mpoe_table3", tmp_path)
    assert float(ablation["MPOE", "wikitext2-perplexity"]["ours"]) == 21.0
    assert ablation["w/o GM", "wikitext2-perplexity"]["ours"] == ""
    cores, _ = made("mpoe_table4", tmp_path)
    assert float(cores["m = 5", "wikitext2-bleu4"]["ours"]) == 9.5


def test_runs_on_tasks_report_the_test_split(tmp_path):
    metrics = {"accuracy": 0.99, "test_accuracy": 0.75}
    for seed in (0, 1, 2):
        task_run(tmp_path / f"rte{seed}", "mpoe8,rte", metrics, 138, seed=seed)
    task_run(tmp_path / "large", "large_mpoe8,rte", {"test_accuracy": 0.8}, 30)
    task_run(tmp_path / "cola", "mpoe8,cola", {"test_matthews": 0.5}, 521)
    # Another probability of the mask is another experiment.
    half = {"central_mask": {"rate": 0.5}}
    task_run(tmp_path / "half", "mpoe8,rte", {"test_accuracy": 0.1}, 138, optimizer=half)
    found, text = made("mpoe_table1_t5", tmp_path)
    rte = found["+MPOE", "rte"]
    assert (float(rte["ours"]), rte["seeds"], rte["own_config"]) == (75.0, "3", "True")
    assert (rte["split"], rte["examples"]) == ("test", "138")
    assert float(found["+MPOE (large)", "rte"]["ours"]) == 80.0
    assert float(found["+MPOE", "cola"]["ours"]) == 50.0
    assert "75.00 ± 0.00 |" in text
    assert "measured on 30 examples; the test split of the paper has 138" in text
    assert "rte: measured on 138" not in text
    together, _ = made("mpoe_table2", tmp_path)
    assert not any(record["ours"] for record in together.values())


def test_multi_task_runs(tmp_path):
    config = multitask.get_config("mpoe4")
    metrics = {"cola": "matthews", "stsb": "pearson"}
    found = {
        f"{split}{task}/{metrics.get(task, 'accuracy')}": 0.5 + 0.05 * index + offset
        for index, task in enumerate(config.tasks)
        for split, offset in (("", 0.01), ("test_", 0.0))
    }
    write(tmp_path / "all", config, {"task": "+".join(config.tasks), "metrics": found})
    found, text = made("mpoe_table2", tmp_path)
    assert float(found["+MPOE", "stsb"]["ours"]) == pytest.approx(85.0)
    assert found["T5-Base", "stsb"]["ours"] == ""
    assert "|  | ours | 67.50 | 50.00 |" in text
    single, _ = made("mpoe_table1_t5", tmp_path)
    assert not any(record["ours"] for record in single.values())


def test_how_experts_are_computed_is_no_other_experiment(tmp_path):
    config = gpt2.get_config("mpoe8,wikitext2")
    row = gpt2.get_config("mpoe8,wikitext2")
    config.experts.update({"dispatch": "block", "structure": "rebuild", "remat": False})
    write(tmp_path / "a", config, {"task": "wikitext2", "metrics": {"test_perplexity": 20.0}})
    # From before a field came.
    path = tmp_path / "a" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["z_weight"]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = results.score(results.find(tmp_path), row, "test_perplexity")
    assert (found.mean, found.differs) == (20.0, ())
    row.experts.share_bias = True
    found = results.score(results.find(tmp_path), row, "test_perplexity")
    assert len(found.differs) == 1


def test_table_1_is_two(tmp_path, capsys):
    assert table.main(["mpoe_table1", f"--out={tmp_path}"]) == 0
    names = {f"mpoe_table1_{kind}.{end}" for kind in ("t5", "gpt2") for end in ("md", "csv")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "MPOE table 1: GPT-2" in capsys.readouterr().out
    assert table.main(["mpoe_table9"]) == 2
    assert "mpobert_table7, mpoe_table1_gpt2, mpoe_table1_t5" in capsys.readouterr().err


def test_list_shows_the_command_of_every_row(tmp_path, capsys):
    cells.find_data.cache_clear()
    model = tmp_path / "models" / "gpt2"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    (model / "model.safetensors").touch()
    texts = tmp_path / "data" / "wikitext-2"
    texts.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (texts / f"{split}.txt").write_text("some words\n", encoding="utf-8")
    options = [f"--model_dir={model.parent}", f"--data_dir={tmp_path / 'data'}", "--list"]
    assert table.main(["mpoe_table1", *options]) == 0
    printed = capsys.readouterr().out
    # Six rows of T5 with eight tasks, five of GPT-2 with three texts.
    assert printed.count("experiments.train --config=configs/mpoe/t5.py") == 7 * 8
    assert printed.count("experiments.train --config=configs/mpoe/gpt2.py") == 5 * 3
    assert "MNLI: needs weights of t5-large and data of mnli\n" in printed
    assert "WT PPL ↓, WT PPL/word ↓, WT B-2 ↑, WT B-4 ↑: can run\n" in printed
    assert "News B-2 ↑, News SB-2 ↓: needs data of news\n" in printed
    assert (
        "python -m experiments.train --config=configs/mpoe/gpt2.py:mpoe8,wikitext2 "
        f"--config.model={model} --workdir=runs/gpt2/mpoe8-wikitext2 "
        f"--config.data_dir={tmp_path / 'data'}\n"
    ) in printed
    assert table.main(["mpoe_table2", *options]) == 0
    printed = capsys.readouterr().out
    assert "all tasks: needs weights of t5-base and data of mnli and data of qnli" in printed
    assert "configs/mpoe/multitask.py:mpoe4 --workdir=runs/multitask/mpoe4" in printed
    assert printed.count("experiments.train") == 2
    for name, count in (("mpoe_table3", 4), ("mpoe_table4", 5)):
        assert table.main([name, *options]) == 0
        assert capsys.readouterr().out.count(": can run") == count


def test_texts_without_a_training_split_are_missing(tmp_path):
    cells.find_data.cache_clear()
    (tmp_path / "wikitext-2").mkdir()
    for split in ("valid", "test"):
        (tmp_path / "wikitext-2" / f"{split}.txt").write_text("words\n", encoding="utf-8")
    assert "no train.txt" in cells.find_data("wikitext2", str(tmp_path))


def test_commands_name_configs_that_load():
    for one in TABLES.values():
        for row in one.rows:
            for column in one.columns if row.config else ():
                config = scores.load_config(row, column)
                assert config.variant == row.variant
                assert column.task in (config.task, config.dataset, *config.tasks)
                assert set(config) == set(base.get_config())
