"""Benchmarks whose flags have names in common, each in a process of its own."""

import csv
import subprocess
import sys

STEPS = """
import jax
from absl import flags
from flax import nnx
from mpojax import models
from mpojax.training.dry_run import program_flops
from tools.benchmarks import pretraining as bench

flags.FLAGS(["bench", "--layers=2", "--hidden=32", "--batch=1", "--length=16"])
chains, dense = (
    bench._Steps(*bench._settings(kind, 2), bench._batch()) for kind in ("MPOBERT", "unshared")
)
rebuild = jax.make_jaxpr(lambda model: nnx.state(models.merged(model)))(chains.chains)
print(chains.rebuilding_flops, dense.rebuilding_flops, program_flops(rebuild))
"""
ROWS = """
import pathlib
import sys
from tools.benchmarks import data_aware

rows = [{"matrix": "a", "bonds": "2 3"}, {"matrix": "b", "bonds": "4"}]
data_aware.save(pathlib.Path(sys.argv[1]), "page", rows)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_rebuilding_is_what_chains_add_to_the_program_of_a_step():
    chains, dense, once = map(int, run(STEPS).split())
    # Forward, remat, then for the backward pass the matrix, its partial products, two gradients.
    assert chains == 6 * once
    assert dense == 0


def test_rows_of_data_aware_fits_become_a_page_and_a_csv_file(tmp_path):
    run(ROWS, str(tmp_path))
    assert (tmp_path / "data_aware.md").read_text() == "page"
    with open(tmp_path / "data_aware.csv") as file:
        assert [row["bonds"] for row in csv.DictReader(file)] == ["2 3", "4"]
