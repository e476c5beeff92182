"""Multi-task runs from end to end, on a checkpoint of toy size."""

import json
import shutil

import numpy as np
import pytest

from configs.mpobert import multitask as multitask_config
from configs.mpop import base
from experiments import train
from experiments.tasks import heads
from mpojax import io, models
from mpojax.methods.multitask import single_task
from tests import marks
from tests.experiments import toy
from tests.experiments.toy import result_of

GOOD, BAD = "good fine film", "bad poor plot"
# name -> (line of the config, labels of a good and of a bad text, examples)
TASKS = {
    "mood": ("file:train=mood.tsv,dev=mood.tsv;name=mood", ("good", "bad"), 48),
    "score": ("file:train=score.tsv,dev=score.tsv;kind=regression;name=score", ("4.5", "0.5"), 24),
    "odd": ("file:train=odd.tsv,dev=odd.tsv;name=odd;metric=f1", ("0", "1"), 12),
}
# The average is a metric of the whole; these are of the tasks.
METRICS = {"mood/accuracy", "score/spearman", "score/pearson", "odd/f1", "average"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, (_, labels, count) in TASKS.items():
        lines = [f"{(GOOD, BAD)[i % 2]}\t{labels[i % 2]}" for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return folder


@pytest.fixture
def config(checkpoint, texts):
    config = multitask_config.get_config("albert12")
    config.model, config.data_dir, config.architecture = str(checkpoint), str(texts), ""
    config.tasks = tuple(line for line, _, _ in TASKS.values())
    config.metrics = {}
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 16
    config.grad_accum_steps, config.keep_best, config.eval_every = 1, False, 0
    config.pooling, config.dropout = "mean", 0.0
    config.steps, config.checkpoint_every = 4, 0
    config.optimizer.learning_rate = 1e-2
    return config


@pytest.fixture(scope="module")
def finished(checkpoint, texts, tmp_path_factory):
    """A run that learnt its tasks, with its model."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = multitask_config.get_config("albert12")
    config.model, config.data_dir, config.architecture = str(checkpoint), str(texts), ""
    config.tasks, config.metrics = tuple(line for line, _, _ in TASKS.values()), {}
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 16
    config.grad_accum_steps, config.eval_every = 2, 10
    config.pooling, config.dropout, config.steps = "mean", 0.0, 60
    config.optimizer.learning_rate, config.save_model = 1e-2, True
    assert toy.main(config, str(folder)) == 0
    return config, folder


def test_all_tasks_are_learnt_at_once(finished):
    config, folder = finished
    result = result_of(folder)
    assert set(result["metrics"]) == METRICS
    assert result["metric_name"] == "average"
    assert result["metric"] == result["metrics"]["average"] == pytest.approx(1.0, abs=1e-6)
    assert 10 <= result["best_step"] <= 60
    tasks = result["tasks"]
    assert [task["train_examples"] for task in tasks.values()] == [48, 24, 12]
    assert [task["share"] for task in tasks.values()] == [48 / 84, 24 / 84, 12 / 84]
    assert [task["columns"] for task in tasks.values()] == [[0, 2], [2, 3], [3, 5]]
    assert [task["metric_name"] for task in tasks.values()] == ["accuracy", "spearman", "f1"]
    assert (result["train_examples"], result["dev_examples"]) == (84, 84)
    assert [task["label_names"] for task in tasks.values()] == [["bad", "good"], [], ["0", "1"]]
    assert result["label_names"] == ["mood/bad", "mood/good", "score/score", "odd/0", "odd/1"]
    saved = io.load_pretrained(folder / "model")
    assert list(saved.config.label_names) == result["label_names"]
    mood, score, _ = heads.read(folder / "model")
    assert single_task(saved, mood).config.label_names == ("bad", "good")
    assert (
        json.loads(single_task(saved, score).config.source_config)["problem_type"] == "regression"
    )
    text = (folder / "summary.txt").read_text(encoding="utf-8")
    assert "3 tasks, albert12, seed 0, after" in text
    assert "57.1%" in text
    assert not (folder / "checkpoints").exists()
    assert train.run(config, folder) == 0  # finished: nothing is done again


@pytest.mark.parametrize("name", marks.slow_but(("score",), TASKS))
def test_a_task_goes_on_alone_with_its_head(finished, texts, tmp_path, name):
    _, folder = finished
    config = base.get_config()
    # The saved folder has the tokenizer too.
    config.model = config.init_checkpoint = str(folder / "model")
    config.data_dir, config.task = str(texts), TASKS[name][0]
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 8
    config.dropout, config.steps, config.optimizer.learning_rate = 0.0, 1, 0.0
    config.save_model = True
    assert train.run(config, tmp_path / "run") == 0
    before, after = result_of(folder), result_of(tmp_path / "run")
    for metric, value in after["metrics"].items():
        assert value == pytest.approx(before["metrics"][f"{name}/{metric}"], abs=1e-5)
    (head,) = [h for h in heads.read(folder / "model") if h.task == name]
    cut = single_task(io.load_pretrained(folder / "model"), head)
    saved = models.to_arrays(io.load_pretrained(tmp_path / "run" / "model"))
    for path, array in models.to_arrays(cut).items():
        np.testing.assert_array_equal(saved[path], array)
    assert not heads.read(tmp_path / "run" / "model")


def test_the_shared_model_is_a_start_for_another_task(finished, texts, tmp_path):
    """`config.model` gives an encoder: the head is fresh, whatever the folder's head is."""
    _, folder = finished
    config = base.get_config()
    config.model, config.data_dir = str(folder / "model"), str(texts)
    config.task = "file:train=mood.tsv,dev=mood.tsv;name=other"
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 8
    config.dropout, config.steps, config.optimizer.learning_rate = 0.0, 1, 0.0
    config.save_model = True
    for name, init_checkpoint in (("model", ""), ("start", config.model)):
        config.init_checkpoint = init_checkpoint
        assert train.run(config, tmp_path / name) == 0
        saved = models.to_arrays(io.load_pretrained(tmp_path / name / "model"))
        assert saved["head/kernel"].shape == (16, 2)
        assert np.all(saved["head/bias"] == 0)


def test_several_tasks_go_on_with_their_heads(finished, tmp_path):
    config, folder = finished
    config = config.copy_and_resolve_references()
    config.init_checkpoint = str(folder / "model")
    config.steps, config.optimizer.learning_rate, config.keep_best = 1, 0.0, False
    assert train.run(config, tmp_path / "run") == 0
    assert result_of(tmp_path / "run")["metrics"] == pytest.approx(
        result_of(folder)["metrics"], abs=1e-6
    )


@pytest.mark.slow
def test_no_steps_only_evaluate(finished, tmp_path):
    config, folder = finished
    config = config.copy_and_resolve_references()
    config.init_checkpoint, config.steps, config.grad_accum_steps = str(folder / "model"), 0, 1
    assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["metrics"] == pytest.approx(result_of(folder)["metrics"])


# Batches are a function of the step (tests/data/test_mixture.py); test_finetune.py resumes them.
@pytest.mark.slow
def test_an_interrupted_run_resumes(config, tmp_path, stopped_at):
    config.save_model = True
    assert train.run(config, tmp_path / "straight") == 0
    with stopped_at(2):
        assert toy.main(config, str(tmp_path / "stopped")) == 0
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert train.run(config, tmp_path / "stopped") == 0
    straight, resumed = (result_of(tmp_path / name) for name in ("straight", "stopped"))
    assert straight["metrics"] == resumed["metrics"]
    assert straight["fit"]["metrics"]["loss"] == resumed["fit"]["metrics"]["loss"]
    arrays = [
        models.to_arrays(io.load_pretrained(tmp_path / name / "model"))
        for name in ("straight", "stopped")
    ]
    for path, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][path])


def test_a_compressed_model_with_equal_shares(config, tmp_path):
    config.matrices, config.budget, config.exponent = (".*/(query|up|down)",), 0.8, 0.0
    config.trainable, config.grad_accum_steps = "lightweight", 2
    config.train_examples, config.dev_examples = 10, 8
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["trained"] < result["total"]
    assert 0 < result["relative_error"] < 1
    assert [task["share"] for task in result["tasks"].values()] == [pytest.approx(1 / 3)] * 3
    assert (result["train_examples"], result["dev_examples"]) == (30, 24)


def test_a_few_shots_of_every_task(config, tmp_path):
    config.shots, config.draw = 3, 1
    config.tasks = (",".join(config.tasks),)  # as a command line gives it
    assert train.run(config, tmp_path) == 0
    tasks = result_of(tmp_path)["tasks"]
    assert [task["train_examples"] for task in tasks.values()] == [6, 3, 6]


MOOD = TASKS["mood"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "config.tasks is empty"),
        ({"tasks": ("sst2", "rte", "sst2")}, r"names \['sst2'\] twice"),
        ({"tasks": (MOOD, MOOD + ";label=label")}, "two tasks called 'mood'"),
        ({"tasks": ("sst2", "squad")}, "'squad', whose answers are spans"),
        ({"tasks": ("sst2", "imdb")}, "unknown task 'imdb'"),
        ({"tasks": ("sst2,imdb",)}, "unknown task 'imdb'"),
        ({"train_examples": -1}, "config.train_examples=-1 must be an integer of at least 0"),
        ({"exponent": 2.0}, "config.exponent=2.0 must be a finite number from 0 to 1"),
        ({"metrics": {"rte": "f1"}}, r"config.metrics is about \['rte'\]"),
        ({"metrics": {"mood": "matthews"}}, "task 'mood' has no metric 'matthews'"),
        ({"held_out_examples": 4}, "config.held_out_examples=4 has no meaning"),
        ({"calibration_examples": 4, "matrices": ("pooler",)}, "config.calibration_examples=4"),
        ({"dev_split": "train"}, "config.dev_split='train'"),
        ({"shots": -1}, "config.shots=-1"),
        ({"shots": 7}, "shots=7: task 'odd' has too few examples"),
        ({"steps": -1}, "config.steps=-1"),
        ({"trainable": "some"}, "unknown trainable set"),
    ],
)
def test_a_bad_config_leaves_nothing_behind(config, tmp_path, changes, message):
    for name, value in changes.items():
        config[name] = value
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_broken_list_of_tasks(finished, config, tmp_path):
    shutil.copytree(finished[1] / "model", tmp_path / "model")
    (tmp_path / "model" / "tasks.json").write_text('[{"name": "mood"}]', encoding="utf-8")
    config.init_checkpoint = str(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tasks.json is no list of tasks as this library"):
        train.run(config, tmp_path / "run")
