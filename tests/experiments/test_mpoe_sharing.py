"""The study of what experts share: its cells are sound, and every kind of run works."""

import csv

import pytest

from configs.sweeps import mpoe_sharing
from experiments import cells, sweep, train
from tests.experiments import toy_language
from tests.experiments.toy_language import put


@pytest.mark.parametrize(
    ("size", "count"), [("base", 1), ("main", 15), ("masks", 2), ("experts", 2), ("smoke", 5)]
)
def test_cells_are_sound(size, count, tmp_path):
    config = mpoe_sharing.get_config(size if size in ("base", "smoke") else f"{size},{tmp_path}")
    config.cell.tokenizer, config.cell.data_dir = "words", "texts"
    if size not in ("base", "smoke"):
        config.cell.model = "somewhere"
    made = cells.expand(config)
    assert len(made) == count
    for cell in made:
        train.check(cell.config)
    masks = {cell.config.optimizer.central_mask.rate for cell in made}
    expected = {"main": {None, 0.875}, "masks": {0.5, 1.0}, "experts": {0.75, 0.9375}}
    assert masks == expected.get(size, {None, 0.875} if size == "smoke" else {None})


def test_unknown_parts():
    with pytest.raises(ValueError, match=r"mpoe_sharing.py:all: one of base, main"):
        mpoe_sharing.get_config("all")


@pytest.mark.slow
def test_every_kind_of_run(tmp_path):
    texts = toy_language.write(tmp_path)
    config = mpoe_sharing.get_config("smoke")
    fields = {"tokenizer": str(texts / "words"), "dataset": toy_language.TEXTS}
    fields |= {"data_dir": str(texts), "model_config": dict(toy_language.DECODER)}
    fields |= {"length": 16, "batch_size": 8, "eval_batch_size": 8, "router_every": 1}
    put(config.cell, fields)
    assert sweep.main(config, str(tmp_path / "sweep")) == 0
    with open(tmp_path / "sweep" / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(mpoe_sharing.kinds(8))
    assert {row["state"] for row in rows.values()} == {"done"}
    totals = {kind: int(row["total"]) for kind, row in rows.items()}
    assert totals["dense"] < totals["MPOE"] == totals["without mask"]
    assert totals["MPOE"] < totals["Switch"]
    assert totals["MPOE"] < totals["without sharing"]
    # All start from one model, of which experts are exact copies: two steps change little.
    losses = [float(row["metrics.loss"]) for row in rows.values()]
    assert max(losses) - min(losses) < 0.05
    for cell in (tmp_path / "sweep" / "cells").iterdir():
        assert (cell / "router.png").is_file() == ("dense" not in cell.name)
