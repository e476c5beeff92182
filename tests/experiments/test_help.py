"""What `--help` and `python -m experiments` print."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import __main__ as listing
from experiments import command_line, config_fields, help_page

ROOT = pathlib.Path(__file__).parents[2]
ENTRIES = dict(listing.entry_points("experiments"))
# Entry points without a config.
OTHERS = ("experiments.render", "experiments.reproduce", "experiments.table")
WITH_CONFIG = {
    "experiments.train": "configs/mpop/minilm.py:dense,sst2",
    "experiments.sweep": "configs/sweeps/bond_dims.py:smoke",
    "experiments.compress": "configs/compress.py",
}
LINES = [
    *[[name, "--help"] for name in ENTRIES],
    ["tools.train_tokenizer", "-h"],
    *[[name, f"--config={config}", "--help"] for name, config in WITH_CONFIG.items()],
    ["experiments.train", "--config=configs/mpop/base.py", "--config.steps=12", "--help"],
    ["experiments.train", "--config=configs/mpop/base.py", "--help_config"],
    ["experiments.train", "--help", "--config=configs/mpop/bas.py"],
]

CONFIGS = [
    file
    for file in sorted((ROOT / "configs").rglob("*.py"))
    if "def get_config(" in file.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def pages():
    """{command: (status, stdout, stderr)}."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.experiments.run_lines"],
        input="".join(json.dumps(line) + "\n" for line in LINES),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        timeout=300,
        check=True,
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {
        " ".join(line): (page["status"], page["stdout"], page["stderr"])
        for line, page in zip(LINES, found, strict=True)
    }


def _docstring(name: str) -> str:
    path = ROOT / name.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", ENTRIES)
def test_help_says_what_is_run_and_how(pages, name):
    status, page, stderr = pages[f"{name} --help"]
    assert (status, stderr) == (0, "")
    assert _docstring(name) in page
    if name not in OTHERS:
        assert "\n  --config=FILE[:ARGUMENT] " in page
        assert "\n  --workdir=FOLDER " in page
        assert "--jax_" not in page  # flags of libraries are on the page of --helpfull


def test_help_shows_the_flags_of_an_entry_point_itself(pages):
    assert "\n  --dry_run " in pages["experiments.train --help"][1]
    status, page, _ = pages["tools.train_tokenizer -h"]
    assert status == 0
    assert "\n  --out=... " in page


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_help_lists_every_field_of_a_config(pages, name):
    source = WITH_CONFIG[name]
    status, page, stderr = pages[f"{name} --config={source} --help"]
    assert (status, stderr) == (0, "")
    for field, _ in config_fields.leaves(command_line.load_config(source)):
        assert f"\n  {field}=" in page


def test_help_explains_fields(pages):
    page = pages[f"experiments.train --config={WITH_CONFIG['experiments.train']} --help"][1]
    words = " ".join(page.split())
    assert "grad_accum_steps=1 micro-batches per step [an integer of at least 1]" in words
    assert "trainable='all' a name in mpojax.methods.mpop.FILTERS" in words
    assert "optimizer.learning_rate=0.0001 peak [a finite number of at least 0]" in words
    assert page.index("\n  model=") < page.index("\n  steps=") < page.index("\n  log_every=")
    sweep = " ".join(pages[next(line for line in pages if "bond_dims" in line)][1].split())
    assert "cell.grad_accum_steps=1 micro-batches per step [an integer of at least 1]" in sweep
    assert "seeds=(0,) of the runs [a list, each an integer from 0" in sweep


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_field_of_every_config_is_explained(file):
    config = command_line.load_config(str(file.relative_to(ROOT)))
    rows = dict(help_page.entries(config, file))
    for name, _ in config_fields.leaves(config):
        (text,) = (text for left, text in rows.items() if left.startswith(f"{name}="))
        # Of many variants the first explains.
        assert text.partition("[")[0] or name.startswith("variants.")


def test_cells_are_told_from_the_study_around_them():
    file = ROOT / "configs" / "compress_minilm.py"
    config = command_line.load_config("configs/compress_minilm.py")
    rows = dict(help_page.entries(config, file))
    assert rows["budget=0.6"].startswith("to keep: a fraction, or a number of parameters")
    assert rows["cell.budget=None"].startswith("fraction of the dense parameters, or a number")
    assert rows["cell.dev_examples=0"].startswith("the whole development set")
    assert rows["heal.*"] == (
        "Of a decoder: tuning of the best by its original, on the calibration texts."
    )


def test_help_has_the_values_of_the_command_line(pages):
    page = pages["experiments.train --config=configs/mpop/base.py --config.steps=12 --help"][1]
    assert "\n  steps=12 " in page


def test_help_config_is_the_same_page(pages):
    status, page, _ = pages["experiments.train --config=configs/mpop/base.py --help_config"]
    assert status == 0
    assert "\n  steps=1000 " in page


def test_help_of_a_mistyped_config_is_one_line(pages):
    status, page, stderr = pages["experiments.train --help --config=configs/mpop/bas.py"]
    assert (status, page) == (2, "")
    assert "did you mean configs/mpop/base.py?" in stderr
    assert stderr.count("\n") == 1


def test_comments_are_found_where_a_field_is_made(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.mpop import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    # Two lines\n"
        "    # above.\n"
        "    config.mine = 1  # and behind\n"
        "    config.part = {\n"
        "        'one': 1,  # inside\n"
        "        # Above.\n"
        "        'two': (\n"
        "            2,\n"
        "        ),\n"
        "    }\n"
        "    config.grad_accum_steps = 4  # of no interest: explained in base.py\n"
        "    return config\n",
        encoding="utf-8",
    )
    found = help_page.comments(*help_page.files(file))
    assert found["mine"] == "Two lines above. and behind"
    assert (found["part.one"], found["part.two"]) == ("inside", "Above.")
    assert found["grad_accum_steps"] == "micro-batches per step"


def test_commands_in_docstrings_keep_their_backslashes():
    for folder in ("configs", "experiments", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if source.startswith('"""'):
                assert "\\\n" not in source.split('"""')[1], path


def test_the_list_of_entry_points(capsys):
    assert listing.main([]) == 0
    page = capsys.readouterr().out
    for name, summary in ENTRIES.items():
        assert f"python -m {name} " in page
        assert summary.endswith(".")
        assert summary in page
    assert listing.main(["trai"]) == 2
    assert "did you mean python -m experiments.train?" in capsys.readouterr().err
