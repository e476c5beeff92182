"""What the OPDF paper prints, against its own numbers and against counts from shapes."""

import statistics

import pytest

from configs.opdf import bert
from experiments import table, train
from experiments.tables import schema
from tests.experiments.test_table import put, read_csv

ROWS = {row.label: row for row in schema.load("opdf_table1").rows}
# (layers, L of RTE, MRPC, STS-B, CoLA, SST-2, QNLI, QQP, MNLI) of each student: tables S.3, S.4.
STUDENTS = {
    "Theseus +OPDF": (6, [task.num_inner_cores for task in bert.TASKS.values()]),
    "LGTM +OPDF": (6, (3, 3, 3, 4, 3, 3, 1, 3)),
    "DBKD +OPDF": (4, (4, 8, 7, 5, 8, 4, 8)),  # no STS-B
    "AD-KD +OPDF": (6, (8, 3, 6, 1, 3, 3, 3, 4)),
}


def mean(label):
    return statistics.fmean(map(float, ROWS[label].scores.values()))


def test_averages_are_means_of_all_printed_scores_but_for_the_teacher():
    for label, row in ROWS.items():
        assert (abs(mean(label) - float(row.average)) < 0.151) == (label != "BERT-base")
    expected = {
        "Theseus": 79.21,
        "Theseus +OPDF": 80.51,
        "AD-KD +OPDF": 83.40,
        "BERT-base": 82.60,
        "AD-KD +SVD": 82.45,
    }
    for label, value in expected.items():
        assert mean(label) == pytest.approx(value, abs=0.005)
        if value in (82.60, 82.45):
            assert f"{value:.2f}" in ROWS[label].note
    assert mean("AD-KD +OPDF") - mean("BERT-base") == pytest.approx(0.8, abs=0.01)
    assert {len(row.scores) for row in ROWS.values()} == {9, 10}


def test_counts_follow_from_the_shapes_or_a_note_says_what_does():
    numbers, found = bert.parameters, []
    for label, (layers, inner_cores) in STUDENTS.items():
        trained = statistics.fmean(numbers(layers, number) for number in inner_cores) / 1e6
        found.append(round(trained, 1))
        assert f"{trained:.1f} M" in ROWS[label].note
    assert found == [171.5, 159.5, 168.8, 183.4]
    assert round(bert.counts("theseus_opdf")["trainable"] / 1e6, 1) == 171.5
    assert "162.5 M" in ROWS["LGTM +OPDF"].note
    assert round(numbers(6, 3) / 1e6, 1) == 162.5
    assert round(numbers(4, 1) / 1e6, 1) == 84.6
    assert round(numbers(4, 0) / 1e6) == 69
    assert round(numbers(6, 0) / 1e6) == 91
    assert numbers(12, None) == 109_483_778
    assert bert.counts("theseus") == {"trainable": 66_956_546, "total": 66_956_546}


def test_runs_with_teachers_of_their_own_are_the_row_as_it_is(tmp_path):
    for seed, value in ((42, 0.64), (43, 0.68)):
        config = bert.get_config("theseus_opdf,rte")
        more = {"seed": seed, "teacher": f"runs/{seed}/model", "model": "elsewhere"}
        put(tmp_path / str(seed), config, {"accuracy": value}, **more)
    assert table.main(["opdf_table1", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    found = {(r["row"], r["task"]): r for r in read_csv(tmp_path / "out" / "opdf_table1.csv")}
    cell = found["Theseus +OPDF", "rte"]
    assert (cell["seeds"], cell["own_config"], float(cell["ours"])) == ("2", "True", 66.0)


def test_the_table_is_printed(capsys):
    assert table.main(["opdf_table1"]) == 0
    text = capsys.readouterr().out
    assert "171" in text
    assert "published only" in text
    assert table.main(["opdf_table1", "--list", "--model_dir=/no/such"]) == 0
    assert "experiments.train --config=configs/opdf/bert.py:theseus_opdf,rte" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("variant", bert.VARIANTS)
def test_configs_of_the_rows(variant):
    for task in bert.TASKS:
        config = bert.get_config(f"{variant},{task}")
        config.teacher = "somewhere"
        train.check(config)
    config = bert.get_config(f"{variant},rte")
    assert config.steps == 20 * 78
    config.teacher = "somewhere"
    settings = train.check(config)[1].settings.chains
    assert (settings is None) == (variant == "theseus")
    with pytest.raises(ValueError, match="the argument is VARIANT,TASK"):
        bert.get_config(f"{variant},wnli")
