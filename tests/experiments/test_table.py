"""Tables of the MPOP paper: published values, counts from shapes, scores from runs on disk."""

import csv
import json
import math
import statistics

import numpy as np
import pytest

from configs.mpop import albert, bert, rows
from experiments import table
from experiments.tables import analyses, cells, counts, page, results, schema, scores
from experiments.tasks import loading
from mpojax import io, models, mpo
from mpojax.training import workdir

TABLE3, *_ = TABLES = [schema.load(f"mpop_table{number}") for number in (3, 4, 5)]
ROWS = {row.label: row for t in TABLES for row in t.rows}
RTE = schema.Column("rte", "", "accuracy")


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def put(folder, config, metrics, more=None, **changes):
    """A finished run, as `experiments.train` leaves it."""
    for name, value in changes.items():
        config[name] = value
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(workdir.plain(config)), encoding="utf-8")
    result = {
        "task": config.task,
        "variant": config.variant,
        "seed": config.seed,
        "metric_name": "accuracy",
        "metric": metrics["accuracy"],
        "metrics": metrics,
        "total": 9_000_000,
        "trained": 1_000_000,
        "dev_examples": 277,
    }
    (folder / "result.json").write_text(json.dumps(result | (more or {})), encoding="utf-8")


def our_counts(label):
    row = ROWS[label]
    column = schema.Column(next(iter(row.scores)), "", "")
    found, _ = counts.planned(scores.load_config(row, column))
    return (
        counts.in_millions(found["trainable"], row.trained),
        counts.in_millions(found["total"], row.total),
    )


@pytest.mark.parametrize("label", ["MPOP_full", "MPOP_full+LFA"])
def test_counts_of_table_3_as_printed(label):
    row = ROWS[label]
    assert our_counts(label) == (row.trained, row.total)


def test_dense_counts_of_table_3_are_cut_off_instead_of_rounded():
    config = albert.get_config("dense,sst2")
    found, _ = counts.planned(config)
    without_classifier = found["total"] - (768 * 2 + 2)
    assert without_classifier == 11_683_584
    assert math.floor(without_classifier / 1e5) / 10 == 11.6 == float(ROWS["ALBERT_rep"].total)
    assert our_counts("ALBERT_rep") == ("11.7", "11.7")
    assert "cut off instead of rounded" in ROWS["ALBERT_rep"].note


@pytest.mark.parametrize("layers", ["10-12", "11-12", "12"])
def test_counts_of_table_5_as_printed(layers):
    label = f"BERT layer{'s' if '-' in layers else ''} {layers}"
    assert our_counts(label)[0] == ROWS[label].trained


def test_notes_hold_the_numbers_they_state():
    found = [albert.squeezed_counts(task) for task in albert.SQUEEZED_CAPS]
    assert f"{statistics.fmean(c['trainable'] for c in found) / 1e6:.2f} M" in ROWS["MPOP"].note
    assert f"{statistics.fmean(c['total'] for c in found) / 1e6:.2f} M" in ROWS["MPOP"].note
    released, _ = counts.planned(albert.get_config("released,sst2"))
    assert f"{released['trainable'] / 1e6:.1f} M trained" in ROWS["MPOP"].note
    assert f"of {released['total'] / 1e6:.1f} M" in ROWS["MPOP"].note
    direct, _ = counts.planned(albert.get_config("dir,sst2"))
    assert f"{direct['total'] / 1e6:.1f} M in all" in ROWS["MPOP_dir"].note
    lightweight, _ = counts.planned(bert.get_config("full_lfa,rte"))
    assert f"{lightweight['trainable'] / 1e6:.2f} M" in ROWS["MPOP_B"].note
    for label in ("BERT", "DistilBERT", "MobileBERT"):
        dense, _ = counts.planned(scores.load_config(ROWS[label], RTE))
        assert f"{dense['total']:,}" in ROWS[label].note


def test_published_averages():
    for row in TABLE3.rows:
        if row.average:
            mean = statistics.fmean(map(float, row.scores.values()))
            # One printed average is a misprint, as the note of its row says.
            expected = 0.25 if "misprint" in row.note else 0.1
            assert abs(mean - float(row.average)) < expected


def test_budgets_are_met_by_the_largest_cap_that_fits():
    config = bert.get_config("mpop,rte")
    found, cap = counts.planned(config)
    assert found["total"] <= 70.4e6 < rows.counts(config, cap + 1)["total"]
    assert found == rows.counts(config, cap)
    config.squeeze.budget = 70.4e6 / 109_483_778
    fraction, _ = counts.planned(config)
    assert fraction == found


class TestOtherModels:
    """Runs of a config with weights of another model than its own."""

    SMALL = loading.sizes(models.EncoderConfig(100, 64, 4, 4, 128, max_positions=64))
    OWN = loading.sizes(models.PRESETS["albert-base-v2"])

    def cell(self, folder):
        assert table.main(["mpop_table3", f"--workdir={folder}"]) == 0
        text = (folder / "mpop_table3.md").read_text(encoding="utf-8")
        records = read_csv(folder / "mpop_table3.csv")
        [found] = [r for r in records if (r["row"], r["task"]) == ("ALBERT_rep", "rte")]
        return found, text

    def test_are_starred_and_named(self, tmp_path):
        more = {"model": self.SMALL}
        put(tmp_path / "a", albert.get_config("dense,rte"), {"accuracy": 0.5}, more)
        found, text = self.cell(tmp_path)
        assert (found["ours"], found["own_config"]) == ("50.0", "False")
        assert "50.0* |" in text
        assert "hidden_size: 768 in the row, 64 in the run" in text
        assert "num_layers: 12 in the row, 4 in the run" in text

    def test_give_way_to_the_model_of_the_row(self, tmp_path):
        for seed, (sizes, value) in enumerate(
            [(self.SMALL, 0.9), (self.SMALL, 0.8), (self.OWN, 0.7)]
        ):
            config = albert.get_config("dense,rte")
            put(tmp_path / str(seed), config, {"accuracy": value}, {"model": sizes}, seed=seed)
        found, text = self.cell(tmp_path)
        assert (found["ours"], found["seeds"], found["own_config"]) == ("70.0", "1", "True")
        assert "in the run" not in text

    @pytest.mark.parametrize(
        ("total", "own"), [(11_685_122, True), (11_685_891, True), (300_000, False)]
    )
    def test_older_results_are_compared_by_their_counts(self, tmp_path, total, own):
        more = {"counts": {"total": total}}
        put(tmp_path / "a", albert.get_config("dense,rte"), {"accuracy": 0.5}, more)
        found, text = self.cell(tmp_path)
        assert found["own_config"] == str(own)
        assert ("parameters: 11,685,122 in the row, 300,000 in the run" in text) != own

    def test_older_and_newer_results_of_one_row_are_one_kind(self, tmp_path):
        config, older = albert.get_config("dense,rte"), {"counts": {"total": 11_685_122}}
        for seed, more in enumerate((older, {}, {**older, "model": self.OWN})):
            put(tmp_path / f"run{seed}", config, {"accuracy": 0.6 + seed / 10}, more, seed=seed)
        found, text = self.cell(tmp_path)
        assert (found["ours"], found["seeds"], found["own_config"]) == ("70.0", "3", "True")
        assert "in the run" not in text

    def test_of_unknown_sizes_are_kept_apart(self, tmp_path):
        """The row's are unknown, too: by its config, all are alike."""
        config = albert.get_config("dense,rte")
        for seed, (value, more) in enumerate(
            [(0.9, {"model": self.SMALL}), (0.5, {"model": self.OWN}), (0.7, {"model": self.OWN})]
        ):
            put(tmp_path / f"run{seed}", config, {"accuracy": value}, more, seed=seed)
        found = results.score(results.find(tmp_path), config, "accuracy")
        assert (found.mean, found.seeds) == (pytest.approx(0.6), 2)
        put(tmp_path / "older", config, {"accuracy": 0.1}, seed=9)  # of either
        assert results.score(results.find(tmp_path), config, "accuracy").seeds == 2


def test_scores_are_means_over_seeds_and_kinds_are_not_mixed(tmp_path):
    for seed, value in ((42, 0.70), (43, 0.74)):
        config = albert.get_config("dense,rte")
        metrics = {"accuracy": value}
        put(tmp_path / f"deep/er/{seed}", config, metrics, seed=seed, data_dir="elsewhere")
    for seed in (1, 2, 3):
        config = albert.get_config("dense,rte")
        put(tmp_path / f"short{seed}", config, {"accuracy": 0.1}, seed=seed, steps=3)
    put(tmp_path / "sst2", albert.get_config("dense,sst2"), {"accuracy": 0.9}, steps=3)
    put(tmp_path / "stsb", albert.get_config("mpop,stsb"), {"accuracy": 0, "spearman": 0.85})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text('{"cells": []}', encoding="utf-8")

    assert table.main(["mpop_table3", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    found = {(r["row"], r["task"]): r for r in read_csv(tmp_path / "out" / "mpop_table3.csv")}
    rte = found["ALBERT_rep", "rte"]
    assert (rte["seeds"], rte["published"], rte["own_config"]) == ("2", "71.1", "True")
    assert float(rte["ours"]) == pytest.approx(72.0)
    assert float(rte["ours_std"]) == pytest.approx(4 / 2**0.5)
    sst2 = found["ALBERT_rep", "sst2"]
    assert (float(sst2["ours"]), sst2["own_config"]) == (90.0, "False")
    assert float(found["MPOP", "stsb"]["ours"]) == 85.0
    assert found["MPOP", "stsb"]["total"] == "9000000"  # squeezed: as the run came out
    assert found["MPOP_full", "rte"]["ours"] == ""
    text = (tmp_path / "out" / "mpop_table3.md").read_text(encoding="utf-8")
    assert "72.0 ± 2.8 |" in text
    assert "90.0* |" in text
    assert "ALBERT_rep, sst2: not the row's config: steps: 6315 in the row, 3 in the run" in text
    assert "measured on 277 examples; GLUE's development set has 872" in text
    assert "rte: measured on" not in text


def test_no_results_print_counts_and_say_so(tmp_path, capsys):
    assert table.main(["mpop_table5", f"--workdir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert f"No finished runs of this table below {tmp_path}" in printed
    assert "45.7" in printed
    assert (tmp_path / "mpop_table5.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mpop_table9"],
            "unknown 'mpop_table9', did you mean 'mpop_table5'? (known: mpop_figure2, mpop",
        ),
        (["mpop_table3", "--workdir=/no/such"], "--workdir=/no/such: there is no such folder"),
        (["mpop_figure2", "--model=/no/such"], "/no/such"),
    ],
)
def test_mistakes_are_explained(capsys, arguments, message):
    assert table.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_list_says_what_can_run(tmp_path, capsys, monkeypatch):
    cells.find_data.cache_clear()
    data = tmp_path / "data" / "glue" / "RTE"
    data.mkdir(parents=True)
    for name in ("train", "dev"):
        text = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
        (data / f"{name}.tsv").write_text(text, encoding="utf-8")
    weights = tmp_path / "models" / "bert-base-uncased"
    weights.mkdir(parents=True)
    (weights / "config.json").touch()
    (weights / "model.safetensors").touch()
    options = [f"--model_dir={weights.parent}", f"--data_dir={tmp_path / 'data'}", "--list"]
    assert table.main(["mpop_table4", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("RTE acc: can run") == 2  # BERT and MPOP_B
    assert "MRPC acc: needs data of mrpc\n" in printed
    assert "RTE acc: needs weights of distilbert-base-uncased\n" in printed
    assert (
        "python -m experiments.train --config=configs/mpop/bert.py:mpop,rte "
        f"--config.model={weights} --workdir=runs/bert/mpop-rte "
        f"--config.data_dir={tmp_path / 'data'}"
    ) in printed
    assert "Missing here" in printed
    for name in ("mpop_table1", "mpop_table2", "mpop_figure2"):
        assert table.main([name, "--list"]) == 0
        assert f"python -m experiments.table {name}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints of a toy encoder, the second slightly changed."""
    settings = models.EncoderConfig(
        vocab_size=60, hidden_size=24, num_layers=2, num_heads=2, intermediate_size=48
    )
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.1
        for name, shape in models.array_shapes(settings).items()
    }
    changed = {name: array.copy() for name, array in arrays.items()}
    changed["embeddings/word/table"][:15] += 5e-4  # a quarter
    for name in changed:
        if "/attention/" in name and name.endswith("kernel"):
            changed[name] += 5e-3
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, content in (("before", arrays), ("after", changed)):
        io.save_pretrained(models.from_arrays(settings, {}, content), folder / name)
    return folder


def test_table_1_counts_changes(checkpoints, tmp_path):
    shares = analyses.change_fractions(str(checkpoints / "before"), str(checkpoints / "after"))
    assert shares["word embedding"] == pytest.approx((0.75, 0.25, 0.0, 0.75))
    assert shares["feed-forward"] == (1.0, 0.0, 0.0, 1.0)
    assert shares["self-attention"] == pytest.approx((0.0, 0.0, 1.0, 0.0))
    arguments = [f"--{name}={checkpoints / name}" for name in ("before", "after")]
    assert table.main(["mpop_table1", *arguments, f"--out={tmp_path}"]) == 0
    first = read_csv(tmp_path / "mpop_table1.csv")[0]
    assert (first["published"], float(first["ours"])) == ("0.66", 0.75)


def test_table_1_from_a_run_that_saved_its_model(checkpoints, tmp_path):
    config = bert.get_config("dense,sst2")
    put(tmp_path / "run", config, {"accuracy": 0.9}, model=str(checkpoints / "before"))
    io.save_pretrained(io.load_pretrained(checkpoints / "after"), tmp_path / "run" / "model")
    made = analyses.table1(results.find(tmp_path), "", "")
    assert made.rows[1] == ["", "ours", "0.75", "0.25", "0.00", "0.75"]
    assert analyses.table1([], "", "").rows[1] == ["", "ours", "", "", "", ""]


def test_table_2_counts_as_the_planner():
    shape = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))
    _, rebuild = analyses.multiply_adds(shape)
    assert rebuild == 227_377_152
    contract, rebuild = analyses.multiply_adds(shape.with_bonds(8))
    assert contract < 768 * 768 < rebuild
    made = analyses.table2()
    stated = [row.scores["stated"] for row in schema.load("mpop_table2").rows]
    assert [row[2] for row in made.rows[:4]] == stated


def test_figure_2_of_a_small_table(checkpoints, tmp_path):
    model = str(checkpoints / "before")
    assert table.main(["mpop_figure2", f"--model={model}", f"--out={tmp_path}"]) == 0
    rows = [r for r in read_csv(tmp_path / "mpop_figure2.csv") if r["bond"]]
    norm = np.linalg.norm(models.to_arrays(io.load_pretrained(model))["embeddings/word/table"])
    for cores in ("2", "3", "5", "7"):
        curve = [r for r in rows if r["cores"] == cores]
        errors = [float(r["error"]) for r in curve]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-4 * norm
        shares = [float(r["share"]) for r in curve]
        assert shares == sorted(shares)
        assert sum(share <= 1 for share in shares) > 2
    assert (tmp_path / "mpop_figure2.png").stat().st_size > 10_000


def test_pages_hold_bars(tmp_path):
    made = page.Page(TABLE3, ["a", "b"], [["|x|", "1"]], [{"a": 1}])
    assert "\\|x\\|" in page.markdown(made)
