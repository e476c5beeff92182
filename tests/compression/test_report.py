"""Reports: text, Markdown, CSV, JSON, plots."""

import csv
import json
import sys

import matplotlib.image
import numpy as np
import pytest

from mpojax import compression
from mpojax.compression.report import matrix_table
from tests.io import helpers


@pytest.fixture(scope="module")
def report():
    rules = [(".*/(query|up)", {"bond": 3, "cores": 3}), ("embeddings/word", {"rank": 3})]
    return compression.compress(helpers.model(), rules)[1]


@pytest.mark.parametrize("width", [100, 120, 140])
def test_the_table_is_plain_text_that_fits(report, width):
    text = report.table(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text
    assert repr(report) == report.table()
    for row in report.rows:
        (line,) = [line for line in lines if line.lstrip().startswith(f"{row.path} ")]
        assert f"{row.in_features}x{row.out_features}" in line
        assert ",".join(map(str, row.bonds)) in line
        assert f"{row.relative_error:.4f}" in line
    if width >= 120:
        assert f"{report.rows[0].dense_parameters:,} → {report.rows[0].mpo_parameters:,}" in text
    assert "factors of 40x12: 40,1 x 1,12" in text
    assert f"{report.dense_parameters:,} → {report.parameters:,}" in " ".join(text.split())


def test_markdown_has_a_line_for_each_row(report):
    lines = report.to_markdown().splitlines()
    columns = lines[0].count("|")
    assert columns == 12
    assert all(line.count("|") == columns for line in lines[: 2 + len(report.rows)])
    for row, line in zip(report.rows, lines[2:], strict=False):
        assert line.startswith(f"| `{row.path}` |")
    assert f"{report.parameters:,}" in lines[-1]


def test_rows_read_back_from_json_make_the_same_table(report):
    rows = json.loads(json.dumps(report.to_dict()))["rows"]
    assert report.to_markdown().startswith(matrix_table(rows) + "\n\n")


def test_csv_reads_back(report, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    report.to_csv(path)
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row.path for row in report.rows]
    for read, row in zip(rows, report.rows, strict=True):
        assert int(read["mpo_parameters"]) == row.mpo_parameters
        assert float(read["relative_error"]) == row.relative_error
        assert tuple(map(int, read["bonds"].split())) == row.bonds
        assert float(read["ratio"]) == row.mpo_parameters / row.dense_parameters
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_a_file_that_cannot_be_written_is_named(report, tmp_path):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*rows\.csv.*already there were kept"):
        report.to_csv(tmp_path / "file" / "rows.csv")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_the_dict_is_json(report):
    content = json.loads(json.dumps(report.to_dict()))
    assert content["parameters"] == report.parameters
    assert content["ratio"] == pytest.approx(report.parameters / report.dense_parameters)
    assert [row["path"] for row in content["rows"]] == [row.path for row in report.rows]
    assert content["rows"][0]["bonds"] == list(report.rows[0].bonds)


def test_error_curves_fall_to_zero_and_pass_the_chosen_point(report):
    caps, errors, ratios = report.error_curve("layers/*/attention/query")
    assert np.all(np.diff(errors) <= 1e-12)
    assert np.all(np.diff(ratios) >= 0)
    assert errors[-1] == pytest.approx(0.0, abs=1e-6)
    chosen = [row.error_bound for row in report.rows if row.role == "layers/*/attention/query"]
    assert errors[list(caps).index(3)] == pytest.approx(np.mean(chosen))
    with pytest.raises(ValueError, match="no matrix has role 'pooler'; there are"):
        report.error_curve("pooler")


def test_plots_are_images(report, tmp_path):
    path = tmp_path / "plots" / "error.png"
    report.plot(path)
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 300
    assert image.std() > 0.05
    assert [p.name for p in path.parent.iterdir()] == ["error.png"]


def test_plots_name_the_extra_they_need(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"'\.\[plot\]"):
        report.plot(tmp_path / "error.png")


def test_what_no_rule_matched_is_named(report):
    left = list(helpers.model().config.matrix_sizes())
    left = [path for path in left if path not in {row.path for row in report.rows}]
    assert list(report.unmatched) == report.to_dict()["unmatched"] == left
    for text in (report.table(), report.to_markdown()):
        assert "dense, as no rule matches them: " in text
        assert "layers/*/attention/key" in text
        assert f"{len(left)} matched by no rule" in " ".join(text.split())


def test_a_budget_that_spoils_some_matrices_and_leaves_others_warns(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        compression.compress(helpers.model(), [(".*/(up|down)", {})], budget=0.75)
    assert "relative errors of 0." in caplog.text
    assert "in layers/*/feed_forward/up" in caplog.text
    assert "embeddings/word" in caplog.text.partition(", but ")[2]
    assert 'let rules match what they leave out (the pattern "all")' in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        compression.compress(helpers.model(), [("all", {})], budget=0.98)
    assert not caplog.text
