"""Studies: what is kept of finished runs, tables and figures of it."""

import json
import shutil

import pytest

from experiments.render import __main__ as command
from experiments.render import frames, studies


def result(variant, seed, metric, **more):
    content = {
        "task": "sst2",
        "metric_name": "accuracy",
        "variant": variant,
        "seed": seed,
        "metric": metric,
        "metrics": {"accuracy": metric},
        "unmerged_metrics": {"accuracy": metric},
        "teacher_metrics": {"accuracy": 0.9},
        "train_parameters": 2_000,
        "inference_parameters": 1_000,
        "training_bytes": 3e6,
        "fit": {"steps_per_second": 2.0 if variant == "kd" else 0.5},
    }
    return content | more


def report(name, results, folder):
    """{first cells of a row: row} of the table of a study with these results."""
    for index, content in enumerate(results):
        path = folder / "runs" / "cells" / str(index) / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    study = studies.load()[name]
    studies.collect(study, folder / "runs", folder / "out")
    lines = [line for line in studies.report(study, folder / "out").splitlines() if "|" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {tuple(row[: len(study.by)]): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_students_beside_those_without_chains_and_without_alignment(tmp_path):
    runs = [result("opdf_3", seed, 0.84) for seed in (0, 1)]
    runs += [result("kd", seed, 0.80) for seed in (0, 1)]
    runs += [result("mpo_3", seed, metric) for seed, metric in ((0, 0.81), (1, 0.83))]
    rows = report("opdf_minilm", runs, tmp_path)
    assert list(rows) == [("kd",), ("mpo_3",), ("opdf_3",)]
    opdf, mpo = rows["opdf_3",], rows["mpo_3",]
    assert (opdf["training MB"], opdf["time of a step / kd"]) == ("3", "4.0")
    assert opdf["metric, %"] == "84.0 ± 0.0"
    assert opdf["against kd, paired"] == "+4.0 ± 0.0"
    assert opdf["against MPO without alignment, paired"] == "+2.0 ± 12.7"
    assert mpo["against kd, paired"] == "+2.0 ± 12.7"
    assert mpo["against MPO without alignment, paired"] == ""
    assert opdf["merging moves the metric by"] == "0"


def test_methods_of_one_size_beside_low_rank(tmp_path):
    sizes = {"updates": 500, "method": "any"}
    runs = [result("lora_1", seed, 0.50, **sizes) for seed in (0, 1)]
    kept = [{"layer": 0, "module": "query", "kept": 5, "total": 10}]
    found = {"search": {"kept": kept}, "adapter_bytes": 2_400, "method": "structured"}
    runs += [result("structured_1", 0, 0.75, **sizes | found)]
    runs += [result("full", seed, 0.80, updates=10_000, method="full") for seed in (0, 1)]
    rows = report("pet_minilm", runs, tmp_path)
    structured = rows["sst2", "structured", "structured_1"]
    assert (structured["parameters"], structured["file"]) == ("500", "2 kB")
    assert structured["metric, %"] == "75.0 (1)"
    assert structured["against low rank of the size, paired"] == "+25.0 (1)"
    assert rows["sst2", "any", "lora_1"]["against low rank of the size, paired"] == ""
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.csv", "summary.csv", "summary.md", "quality.png", "kept.pdf"} <= names


def test_a_study_is_drawn_again_from_its_means(tmp_path, capsys):
    report("opdf_minilm", [result("kd", seed, 0.80) for seed in (0, 1)], tmp_path)
    out = tmp_path / "out"
    picture = (out / "quality.png").read_bytes()
    for name in ("results.csv", "quality.png"):
        (out / name).unlink()
    shutil.rmtree(tmp_path / "runs")
    assert command.main(["opdf_minilm", f"--out={out}"]) == 0
    assert (out / "quality.png").read_bytes() == picture
    assert "| kd | 2 |" in capsys.readouterr().out


def test_curves_are_means_over_seeds(tmp_path):
    for seed in (0, 1):
        content = {"metrics": {"perplexity": 9.0}, "tokens": 200, "steps": 2, "total": 10}
        folder = tmp_path / "main" / "cells" / str(seed)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result("MPOE", seed, 0.0) | content))
        lines = [{"step": s, "dev/perplexity": 10.0 + seed - s} for s in (0, 1, 2)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    study = studies.load()["mpoe_sharing"]
    studies.collect(study, tmp_path, tmp_path / "out")
    studies.report(study, tmp_path / "out")
    curves = frames.read(tmp_path / "out" / "curves.csv")
    assert curves[curves["seed"] == 1][["x", "perplexity"]].to_numpy().tolist() == [
        [0, 11],
        [100, 10],
        [200, 9],
    ]
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_study_without_results(tmp_path, capsys):
    for arguments, message in (
        ([f"--runs={tmp_path}"], "no finished cell"),
        ([], "neither results.csv nor summary.csv"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(["opdf_minilm", f"--out={tmp_path}", *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", studies.load())
def test_what_is_kept_of_every_study_can_be_drawn(name, tmp_path):
    kept = command._RESULTS / name
    for path in (*kept.glob("*.csv"), *kept.glob("*.md")):
        shutil.copy(path, tmp_path)
    study = studies.load()[name]
    studies.report(study, tmp_path)
    for plot in study.plots:
        assert (tmp_path / f"{plot['name']}.png").stat().st_size > 10_000
