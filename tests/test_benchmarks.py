"""Benchmarks of accelerators, tried at tiny sizes on what is at hand."""

import json

import jax
import pytest

from mpojax import models
from tools.benchmarks import accelerator, decoders, workloads

TINY = accelerator.SIZES["tiny"]


@pytest.mark.slow
def test_every_line_of_the_accelerator(tmp_path, capsys):
    assert accelerator.run(tmp_path, TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(accelerator.cells(TINY))
    assert "tokens_per_second" in lines[-1]
    assert (tmp_path / "table.txt").read_text().count("\n") > len(lines)


def test_what_is_known_is_not_measured_again_and_failures_are_told(tmp_path, capsys, monkeypatch):
    def out_of_memory():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    todo = {"good": lambda: {"ratio": 1.5, "path": "cudnn"}, "large": out_of_memory}
    monkeypatch.setattr(accelerator, "cells", lambda sizes: todo)
    assert accelerator.run(tmp_path, TINY) == 1
    assert "failed: RESOURCE_EXHAUSTED" in capsys.readouterr().out
    todo["good"] = out_of_memory
    todo["large"] = lambda: {"ratio": 2.0}
    assert accelerator.run(tmp_path, TINY, minutes=0.0) == 1  # no time for the other
    assert accelerator.run(tmp_path, TINY) == 0
    assert json.loads((tmp_path / "good.json").read_text())["path"] == "cudnn"


def test_speeds_of_decoders_stand_over_those_of_the_first():
    found = [models.Speed(600.0, 30.0), models.Speed(750.0, 45.0)]
    dense, small = decoders.table(["dense", "small"], found).splitlines()[-2:]
    assert dense.split() == ["dense", "600", "1.00", "30.0", "1.00"]
    assert small.split() == ["small", "750", "1.25", "45.0", "1.50"]


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_workloads_are_described(name):
    work = workloads.WORKLOADS[name]
    config, shapes = work.model()
    assert set(shapes) <= set(config.matrix_sizes()) or "MPOE" in name
    assert work.with_rows(4).flops() == pytest.approx(work.flops() * 4 / work.rows)
    assert {leaf.shape[0] for leaf in work.with_rows(4).abstract_batch().values()} == {4}
