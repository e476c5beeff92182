"""Pre-training runs: from a text folder to a model that fine-tunes; resume, starts, bad input."""

import json
import types

import jax
import numpy as np
import pytest

from configs.mpobert import paper, pretraining
from configs.mpop import base as finetuning
from configs.sweeps import mpobert_sharing
from experiments import cells, dry_runs, runs, tasks, train
from mpojax import data, io, models, training
from mpojax.data.corpus import building
from mpojax.training.aot import topology
from mpojax.training.aot.estimate import DoesNotFitError
from tests.data import corpora

STEPS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    text = corpora.write_text(tmp_path_factory.mktemp("text"), 20)
    folder = tmp_path_factory.mktemp("made") / "corpus"
    settings = building.CorpusSettings(vocab_size=80, valid=0.2, shards=2)
    building.build(text, folder, settings)
    return folder


def _config(corpus, **fields):
    config = pretraining.get_config()
    config.corpus = str(corpus)
    config.model.update(
        num_layers=2, hidden_size=16, num_heads=2, embedding_size=8, max_positions=32
    )
    config.update(length=32, batch_size=8, steps=STEPS, eval_batch_size=8, eval_rows=8)
    config.update(eval_every=2, samples_every=2, checkpoint_every=2, log_every=1)
    config.start.stddev = 0.2
    for name, value in fields.items():
        cells.set_field(config, name, value, "test")
    return config


def _result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory, copied_at):
    folder = tmp_path_factory.mktemp("runs") / "mpobert"
    with copied_at(2, folder, folder.parent / "killed"):
        assert train.run(_config(corpus, variant="small"), folder) == 0
    return folder


def test_a_run_leaves_numbers_samples_and_a_model(finished, corpus):
    result = _result(finished)
    assert result["tokens"] == STEPS * 8 * 32
    assert set(result["metrics"]) == {"mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy"}
    assert result["counts"]["central"] > 0
    model = io.load_pretrained(finished / "model")
    assert isinstance(model, models.PretrainingModel)
    assert sum(models.count_parameters(model).values()) == result["total"]
    assert model.config.vocab_size == data.Corpus(corpus).vocab_size
    samples = (finished / "samples.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in samples] == ["step 2", "step 2", "step 4", "step 4"]
    assert "parameters" in (finished / "summary.txt").read_text(encoding="utf-8")
    assert not (finished / "checkpoints").exists()
    assert train.run(_config(corpus, variant="small"), finished) == 0  # nothing left to do


def test_a_killed_run_resumes_to_the_same_numbers(finished, corpus):
    killed = finished.parent / "killed"
    assert train.run(_config(corpus, variant="small"), killed) == 0
    assert _result(killed)["fit"]["steps_run"] == STEPS - 2
    assert _result(killed)["metrics"] == _result(finished)["metrics"]
    whole, parts = (
        models.to_arrays(io.load_pretrained(folder / "model")) for folder in (finished, killed)
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)


def test_a_pre_trained_model_is_fine_tuned(finished, tmp_path):
    lines = "text\tlabel\n" + "".join(f"the river {i}\t{i % 2}\n" for i in range(8))
    (tmp_path / "a.tsv").write_text(lines, encoding="utf-8")
    config = finetuning.get_config()
    config.model, config.task = str(finished / "model"), "file:train=a.tsv,dev=a.tsv"
    config.data_dir, config.steps, config.batch_size = str(tmp_path), 2, 8
    config.max_length, config.lengths, config.eval_batch_size = 16, (16,), 8
    assert train.run(config, tmp_path / "tuned") == 0
    counts = _result(tmp_path / "tuned")["counts"]
    assert counts["central"] == _result(finished)["counts"]["central"]


@pytest.mark.slow
def test_a_deeper_model_starts_from_a_shared_one(corpus, tmp_path):
    shared = _config(corpus, architecture="shared", steps=2)
    assert train.run(shared, tmp_path / "shared") == 0
    teacher = io.load_pretrained(tmp_path / "shared" / "model")
    config = _config(corpus)
    config.start.kind, config.start.teacher = "teacher", str(tmp_path / "shared" / "model")
    config.model.num_layers, config.model.hidden_size = 4, 768  # the teacher's width is taken
    task = tasks.read(config)
    planned = task.plan(data.Corpus(corpus))
    assert planned.config.hidden_size == 16
    model = task.build(planned, config.seed)
    ids = np.arange(5, 25, dtype=np.int32)[None]
    repeated = models.reconfigure(teacher, num_layers=4)
    for found, expected in zip(model(ids), repeated(ids), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rows_longer_than_the_teacher_reads_are_refused(finished, corpus, tmp_path):
    config = _config(corpus, length=64)
    config.start.kind, config.start.teacher = "teacher", str(finished / "model")
    config.model.max_positions = 512  # the default, which leaves it to the teacher
    with pytest.raises(ValueError, match=r"length=64 is more than model\.max_positions=32"):
        train.run(config, tmp_path / "run")


@pytest.mark.slow
def test_accumulation(corpus, tmp_path):
    config = _config(corpus, grad_accum_steps=2, batch_size=16, sop=False)
    assert train.run(config, tmp_path / "run") == 0
    result = _result(tmp_path / "run")
    assert result["steps"] == STEPS
    assert set(result["metrics"]) == {"mlm_loss", "mlm_accuracy"}


def test_a_dry_run_tells_sizes_without_a_folder(corpus):
    config = _config(corpus)
    config.mesh.fsdp = 4
    report = runs.dry_run(config)
    assert report.total == sum(report.parameters.values())
    assert report.mesh["fsdp"] == 4
    assert report.mesh["data"] == jax.device_count() // 4
    assert "central" in report.text()


class TestDryRunsOfTopologies:
    def test_names_are_checked_first(self, corpus):
        with pytest.raises(ValueError, match=r"--topology='v9:2x4' must be CHIP:AxB .* v5e:4x8"):
            list(dry_runs.texts(_config(corpus), "v5e:2x4,v9:2x4"))

    def test_what_does_not_fit_says_what_would(self, corpus, monkeypatch):
        tried = []

        def of_topology(config, name):
            tried.append((config.remat, config.mesh.fsdp))
            if tried[-1] != (True, -1):
                raise DoesNotFitError(17 * 2**30, 16 * 2**30)
            estimate = types.SimpleNamespace(peak_bytes=5 * 2**30)
            return types.SimpleNamespace(estimate=estimate)

        monkeypatch.setattr(dry_runs, "of_topology", of_topology)
        (text,) = dry_runs.texts(_config(corpus, remat=False), "v5e:2x4")
        assert tried == [(False, 1), (True, 1), (False, -1), (True, -1)]
        assert "needs 17.00 GiB of the 16.00 GiB of a chip, 1.00 GiB too much" in text
        assert (
            "It fits with --config.remat=True --config.mesh.data=1 --config.mesh.fsdp=-1: " in text
        )
        assert "5.00 GiB" in text

    @pytest.mark.slow
    @pytest.mark.skipif(
        not topology.is_installed(), reason="libtpu is not installed: the extra tpu"
    )
    def test_a_step_compiled_for_a_slice(self, corpus):
        config = _config(corpus, **{"mesh.fsdp": 2, "model.num_layers": 1})
        report = dry_runs.of_topology(config, "v5e:2x2")
        assert report.estimate.chip == "v5e"
        assert 0 < report.estimate.peak_bytes < 2**30
        assert report.estimate.unknown_loops == 0
        for words in ("ESTIMATE for 4 x v5e", "tokens/s", "MFU", "all-reduce"):
            assert words in report.text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": ""}, "config.corpus is empty"),
        ({"architecture": "bert"}, "config.architecture='bert' must be one of 'mpobert', 'shared'"),
        ({"start.scaling": "half"}, "config.start.scaling='half' must be one of 'none'"),
        ({"start.kind": "teacher"}, "needs config.start.teacher"),
        ({"length": 64}, "config.length=64 is more than model.max_positions=32"),
        ({"model.groups": 3}, "num_layers=2 cannot be divided into layer_groups=3"),
        ({"model.vocab_size": 99}, "the model has vocab_size=99, the corpus"),
        ({"mesh.fsdp": 3}, "mesh sizes"),
        ({"batch_size": 6}, "batch_size=6 cannot be split"),
        ({"grad_accum_steps": 2}, "in config.grad_accum_steps=2 micro-batches cannot be split"),
        ({"steps": 0}, "config.steps=0 must be an integer of at least 1"),
        (
            {"grad_accum_steps": 3},
            "batch_size=8 rows cannot be split into config.grad_accum_steps=3",
        ),
        (
            {"start.adapter_stddev": 0.0},
            "start.adapter_stddev=0.0 must be a finite number above 0",
        ),
        ({"start.central": "last"}, "config.start.central='last' must be 'mean', or the number"),
        ({"optimizer.name": "adam", "optimizer.weight_decay": 0.1}, "weight_decay=0.1 has no"),
        (
            {"start.num_teacher_layers": -1},
            "config.start.num_teacher_layers=-1 must be an integer of at least 0",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_made(corpus, tmp_path, fields, message):
    config = _config(corpus)
    for name, value in fields.items():
        cells.set_field(config, name, value, "test")
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=message):
        runs.dry_run(config)


def test_a_workdir_of_another_architecture_is_refused(finished, corpus):
    config = _config(corpus, **{"variant": "small", "model.num_layers": 4})
    with pytest.raises(ValueError, match=r"another experiment; it differs in:\n  .*num_layers"):
        train.run(config, finished)


@pytest.mark.parametrize("name", ["mpobert12", "mpobert24", "mpobert48", "mpobert48plus"])
def test_configs_of_the_paper_are_sound(name, corpus):
    config = paper.get_config(name)
    config.corpus = str(corpus)
    train.check(config)
    config = paper.get_config(f"{name},scratch")
    config.corpus = str(corpus)
    planned = tasks.read(config).plan(data.Corpus(corpus))
    assert planned.config.num_layers == config.model.num_layers
    assert planned.config.layer_groups == config.model.groups
    model = planned.abstract()
    training.make_optimizer(config.optimizer.to_dict(), training.roles(model), config.steps)


@pytest.mark.parametrize("size", mpobert_sharing.SIZES)
def test_cells_of_the_study_are_sound(size, corpus):
    sweep = mpobert_sharing.get_config(size)
    for cell in cells.expand(sweep):
        cell.config.corpus = str(corpus)
        if cell.config.start.kind == "teacher":
            cell.config.start.teacher = "somewhere"
        train.check(cell.config)
        cell.config.start.kind = "scratch"
        tasks.read(cell.config).plan(data.Corpus(corpus))
