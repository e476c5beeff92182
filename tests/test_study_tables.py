"""Tables of the studies, on results made by hand."""

import json

import pytest

from tools import plot_opdf, plot_pet, study_tables


def result(variant, seed, metric, **more):
    facts = {
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
    return facts | more


def test_means_deviations_and_pairs():
    runs = [result("kd", seed, metric) for seed, metric in ((0, 0.5), (1, 0.75))]
    others = [result("svd", seed, metric) for seed, metric in ((1, 0.5), (2, 0.25))]
    assert study_tables.spread(study_tables.percent(runs), 2) == "62.5 ± 17.7"
    assert study_tables.spread(study_tables.percent(runs), 3) == "62.5 ± 17.7 (2)"
    assert study_tables.pairs_of(runs, others) == [25.0]
    assert study_tables.difference([25.0], 2) == "+25.0 (1)"
    # t = 4.303 of two degrees of freedom, over the root of three.
    assert study_tables.difference([1.0, 2.0, 3.0], 3) == "+2.0 ± 2.5"
    assert study_tables.spread([], 2) == ""


def test_students_beside_those_without_chains_and_without_alignment():
    runs = [result("kd", seed, 0.80) for seed in (0, 1)]
    runs += [result("mpo_3", seed, metric) for seed, metric in ((0, 0.81), (1, 0.83))]
    runs += [result("opdf_3", seed, 0.84) for seed in (0, 1)]
    lines = plot_opdf.summary(runs).splitlines()
    assert lines[0].startswith("sst2, accuracy; teacher 90.0.")
    cells = {row[1]: row for row in ([c.strip() for c in line.split("|")] for line in lines[4:])}
    assert list(cells) == ["kd", "mpo_3", "opdf_3"]
    assert cells["opdf_3"][5:10] == ["3", "4.0", "84.0 ± 0.0", "+4.0 ± 0.0", "+2.0 ± 12.7"]
    assert cells["mpo_3"][8:10] == ["+2.0 ± 12.7", ""]


def test_a_sweep_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished cell"):
        study_tables.find(tmp_path)
    folder = tmp_path / "cells/one"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"metric": 1}))
    assert study_tables.find(tmp_path) == [{"metric": 1}]


def test_methods_of_one_size_beside_low_rank():
    sizes = {"updates": 500, "method": "any"}
    runs = [result("lora_1", seed, 0.50, **sizes) for seed in (0, 1)]
    runs += [result("structured_1", 0, 0.75, **sizes, adapter_bytes=2_400)]
    runs += [result("full", seed, 0.80, updates=10_000, method="any") for seed in (0, 1)]
    rows = [
        [cell.strip() for cell in line.split("|")] for line in plot_pet.summary(runs).split("\n")
    ]
    cells = [row[1:-1] for row in rows if len(row) > 2]
    assert cells[0] == ["", "parameters", "of the largest", "file", "sst2 (accuracy)"]
    assert cells[2:5] == [
        ["full", "10,000", "100.00%", "", "80.0 ± 0.0"],
        ["lora_1", "500", "5.00%", "", "50.0 ± 0.0"],
        ["structured_1", "500", "5.00%", "2 kB", "75.0 (1)"],
    ]
    assert cells[-1] == ["structured_1", "+25.0 (1)"]
