"""Distillation from end to end, on a checkpoint of toy size."""

import shutil

import numpy as np
import pytest

from configs.mpop import base as finetune_base
from configs.opdf import base, minilm
from experiments import runs, train
from mpojax import compression, io, models, training
from mpojax.methods import opdf
from tests.experiments import toy_encoder
from tests.experiments.toy import result_of


def common(config, checkpoint, texts):
    config = toy_encoder.config(config, checkpoint, texts)
    config.pooling, config.steps, config.checkpoint_every = "", 6, 0
    return config


@pytest.fixture(scope="module")
def teacher(checkpoint, texts, tmp_path_factory):
    config = common(finetune_base.get_config(), checkpoint, texts)
    config.pooling, config.save_model, config.steps = "mean", True, 20
    folder = tmp_path_factory.mktemp("teacher")
    assert train.run(config, folder) == 0
    return folder / "model"


def make_config(checkpoint, texts, teacher):
    config = common(base.get_config(), checkpoint, texts)
    config.teacher, config.student_layers = str(teacher), (0,)
    config.weights.task, config.weights.hidden = 0.5, 0.1
    return config


@pytest.fixture
def config(checkpoint, texts, teacher):
    return make_config(checkpoint, texts, teacher)


@pytest.fixture(scope="module")
def finished(checkpoint, texts, teacher, tmp_path_factory):
    """The run of `config`, with its model."""
    config = make_config(checkpoint, texts, teacher)
    config.save_model = True
    folder = tmp_path_factory.mktemp("finished")
    assert train.run(config, folder) == 0
    return folder


# Without chains beside the student's matrices: test_a_compressed_teacher_learns_back_what_it_lost.
@pytest.mark.parametrize("enabled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_student_is_a_plain_model(config, finished, tmp_path, teacher, enabled):
    if enabled:  # the default
        tmp_path = finished
    else:
        config.opdf.enabled, config.save_model = False, True
        assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    saved = io.load_pretrained(tmp_path / "model")
    assert not saved.shapes
    assert saved.config.num_layers == 1
    total = sum(models.count_parameters(saved).values())
    assert result["inference_parameters"] == result["total"] == total
    assert (result["train_parameters"] > total) == enabled
    assert result["metrics"] == result["unmerged_metrics"]
    assert result["teacher_metrics"]["accuracy"] >= 0.9
    known = models.to_arrays(io.load_pretrained(teacher))
    # The teacher stays as it was; the student has moved away from its layer.
    arrays = models.to_arrays(saved)
    name = "layers/0/feed_forward/up/kernel"
    assert np.any(arrays[name] != known[name])


def test_a_compressed_teacher_learns_back_what_it_lost(config, tmp_path, teacher):
    """The student stays in MPO form and as small as it is; only what is asked for learns."""
    config.opdf.enabled, config.student_layers, config.save_model = False, (), True
    config.matrices, config.bond, config.trainable = (".*/(query|up)",), 2, "lightweight"
    config.grad_accum_steps = 2
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    saved, known = (io.load_pretrained(f) for f in (tmp_path / "model", teacher))
    assert saved.config.num_layers == known.config.num_layers
    assert set(saved.shapes) == {
        f"layers/{layer}/{name}"
        for layer in range(known.config.num_layers)
        for name in ("attention/query", "feed_forward/up")
    }
    assert all(max(shape.bond_dims) <= 2 for shape in saved.shapes.values())
    counts = [sum(models.count_parameters(model).values()) for model in (saved, known)]
    assert result["train_parameters"] == result["inference_parameters"] == counts[0] < counts[1]
    assert 0 < result["trained"] < counts[0]
    assert set(result["start_metrics"]) == set(result["metrics"])
    before = models.to_arrays(compression.compress(known, [(config.matrices[0], {})], bond=2)[0])
    moved = {
        name.rpartition("/")[2]
        for name, array in models.to_arrays(saved).items()
        if "/query/cores/" in name and np.any(array != before[name])
    }
    central = saved.shapes["layers/0/attention/query"].central
    assert moved == {str(k) for k in range(5)} - {str(central)}
    assert "compressed, not yet trained: accuracy" in (tmp_path / "summary.txt").read_text()
    assert (tmp_path / "compression.csv").is_file()


@pytest.mark.slow
def test_the_alignment_is_in_the_metrics_and_falls(config, tmp_path):
    config.log_every, config.steps, config.opdf.alignment_weight = 1, 12, 10.0
    config.opdf.layer_map = (1,)  # not what the student starts as
    assert train.run(config, tmp_path) == 0
    values = [m["alignment"] for m in training.metrics.read(tmp_path / "metrics.jsonl")]
    assert 0 < values[-1] < values[0]


@pytest.mark.parametrize(("start", "mapped", "layer"), [((), (), 1), ((), (0,), 0), ((0,), (), 0)])
def test_the_student_starts_where_it_is_pulled_to(config, teacher, start, mapped, layer):
    config.student_layers, config.opdf.layer_map = start, mapped
    setup = runs.set_up(*runs.read(config))
    arrays, known = (
        models.to_arrays(compression.merge(setup.model)),
        models.to_arrays(setup.extra.model),
    )
    for name in ("attention/query/kernel", "feed_forward/up/kernel", "feed_forward/up/bias"):
        same = arrays[f"layers/0/{name}"], known[f"layers/{layer}/{name}"]
        np.testing.assert_allclose(*same, rtol=0, atol=1e-6)
    assert setup.extra.targets
    assert float(opdf.alignment_loss(setup.model, setup.extra.targets, "procrustes_core")) < 1e-20


# The teacher is read again and has no state; that a run resumes: test_finetune.py.
@pytest.mark.slow
def test_a_run_that_is_stopped_resumes(config, finished, tmp_path, stopped_at):
    with stopped_at(2):
        assert train.run(config, tmp_path) == 1
    assert train.run(config, tmp_path) == 0
    straight, resumed = result_of(finished), result_of(tmp_path)
    assert straight["metrics"] == resumed["metrics"]
    assert straight["fit"]["metrics"]["loss"] == resumed["fit"]["metrics"]["loss"]


def test_layers_replace_those_of_the_teacher(config, tmp_path, teacher):
    config.distillation, config.log_every, config.save_model = "theseus", 1, True
    config.replacement.start, config.replacement.growth = 0.5, 0.1
    config.optimizer.weight_decay = 0.01
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["host"] == "theseus"
    assert result["trained"] < result["train_parameters"]  # embeddings, pooler and head are frozen
    rates = [m["replacement_rate"] for m in training.metrics.read(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(rates, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], rtol=1e-5)
    saved, known = (models.to_arrays(io.load_pretrained(f)) for f in (tmp_path / "model", teacher))
    for name, array in saved.items():  # embeddings and head are the teacher's
        if not name.startswith("layers/"):
            np.testing.assert_array_equal(array, known[name])
    assert np.any(
        saved["layers/0/feed_forward/up/kernel"] != known["layers/0/feed_forward/up/kernel"]
    )


# The distances themselves: tests/methods/test_distillation.py.
@pytest.mark.slow
def test_layers_and_attention_are_compared(config, tmp_path):
    config.weights.layers, config.weights.attention, config.log_every = 1.0, 1.0, 1
    assert train.run(config, tmp_path) == 0
    last = list(training.metrics.read(tmp_path / "metrics.jsonl"))[-1]
    assert last["layers"] > 0
    assert last["attention"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": "lgtm"}, "config.distillation='lgtm' must be one of 'kd', 'theseus'"),
        ({"distillation": "theseus", "opdf__layer_map": (0,)}, "must grow and end with"),
        ({"teacher": ""}, "config.teacher is empty"),
        ({"student_layers": (7,)}, r"layers=\(7,\) must name layers of the teacher"),
        ({"opdf__alignment": "cosine"}, "alignment='cosine' must be one of"),
        ({"opdf__layer_map": (5,)}, "layer_map has 5; the teacher's layers are"),
        ({"weights__logits": -1.0}, "logits=-1.0 must be a finite number of at least 0"),
        ({"trainable": "head"}, "config.trainable='head': a student of layers is trained as a"),
        ({"keep_best": True}, "config.keep_best=True: a student starts from config.teacher"),
        ({"init_checkpoint": "folder"}, "config.init_checkpoint='folder': a student starts from"),
        (
            {"squeeze": {"steps": 2}},
            "config.squeeze={'steps': 2} has no meaning with",
        ),
        ({"matrices": (".*/query",)}, "set config.opdf.enabled=False"),
        (
            {"rate_exponent": -1.0},
            "config.rate_exponent=-1.0 must be a finite number of at least 0",
        ),
    ],
)
def test_a_bad_config_leaves_nothing_behind(config, tmp_path, changes, message):
    for name, value in changes.items():
        first, _, last = name.partition("__")
        if last:
            config[first][last] = value
        else:
            config[first] = value
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_tuned_head(config, tmp_path, checkpoint):
    config.teacher = str(checkpoint)
    with pytest.raises(ValueError, match="has no head that was tuned for"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Also seen in test_compress.py.
@pytest.mark.slow
def test_a_signal_in_the_last_step_is_passed_on(config, tmp_path, stopped_at):
    with stopped_at(config.steps):
        assert train.run(config, tmp_path) == 1
    assert (tmp_path / "result.json").is_file()
    assert train.run(config, tmp_path) == 0


def test_a_teacher_of_another_vocabulary(config, tmp_path, checkpoint, teacher):
    for folder, target in ((checkpoint, "model"), (teacher, "teacher")):
        shutil.copytree(folder, tmp_path / target)
    words = (tmp_path / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config.model = str(tmp_path / "model")
    with pytest.raises(ValueError, match="has other words than that of"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_variant_of_minilm_is_a_config():
    for variant in (*minilm.VARIANTS, minilm.HEALED):
        config = minilm.get_config(f"{variant},sst2")
        config.teacher = "somewhere"
        train.check(config)
    with pytest.raises(ValueError, match="the argument is VARIANT,TASK"):
        minilm.get_config("opdf_9,sst2")
