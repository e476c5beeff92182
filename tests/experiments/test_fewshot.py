"""Few-shot runs, and runs on folders that this library saved."""

import dataclasses
import shutil

import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs.mpop import base
from experiments import sweep, train
from mpojax import io, models
from tests.experiments import toy
from tests.experiments.toy import result_of
from tests.experiments.toy_encoder import SETTINGS, WORDS, write_vocabulary

GOOD, BAD = "good fine film", "bad poor plot"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "words").mkdir()
    write_vocabulary(folder / "words")
    model = models.build(SETTINGS, rngs=nnx.Rngs(0))
    io.save_pretrained(model, folder / "model", tokenizer_from=folder / "words")
    return folder / "model"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, count in (("train", 30), ("dev", 12)):
        lines = [(f"{GOOD}\tgood", f"{BAD}\tbad", f"{BAD}\tbad")[i % 3] for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return folder


@pytest.fixture
def config(checkpoint, texts):
    config = base.get_config()
    config.model, config.data_dir = str(checkpoint), str(texts)
    config.task = "file:train=train.tsv,dev=dev.tsv"
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 8
    config.pooling, config.dropout, config.steps, config.checkpoint_every = "mean", 0.0, 2, 0
    return config


def test_a_few_shot_run(config, tmp_path, capsys):
    config.shots, config.draw = 4, 2
    assert toy.main(config, str(tmp_path)) == 0
    result = result_of(tmp_path)
    assert (result["shots"], result["draw"], result["train_examples"]) == (4, 2, 8)
    assert result["dev_examples"] == 12
    assert ", 4 shots, draw 2, seed 0" in capsys.readouterr().out


def test_held_out_examples_are_never_among_the_shots(config, tmp_path):
    config.shots, config.held_out_examples = 5, 6
    assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["train_examples"] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": -1}, "config.shots=-1"),
        ({"shots": 1, "draw": -1}, "config.draw=-1 must be an integer of at least 0"),
        ({"draw": 1}, "config.draw=1 has nothing to draw: give config.shots"),
        ({"shots": 2, "train_examples": 4}, "give one"),
        ({"shots": 11}, r"too few examples of \{'good': 10\}; ask for at most 10"),
        ({"metric": "f2"}, r"has no metric 'f2'; has \['accuracy'\]"),
    ],
)
def test_a_bad_config_leaves_nothing_behind(config, tmp_path, changes, message):
    for name, value in changes.items():
        config[name] = value
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_metric_that_counts_is_chosen(config, tmp_path):
    config.task += ";metric=accuracy,f1"
    config.metric = "f1"
    config.keep_best = True
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["metric_name"] == "f1"
    assert result["metric"] == result["metrics"]["f1"]


# Axes and repeats of sweeps: test_cells.py, test_sweep.py; runs of few shots: above.
@pytest.mark.slow
def test_a_sweep_over_shots_draws_and_seeds(config, tmp_path):
    study = ml_collections.ConfigDict()
    study.cell, study.shots = config, (2,)
    study.cell.steps = 1
    study.axes = (("shots", "shots"), ("draw", (0, 1)), ("seed", (0,)))
    study.repeats = ("draw", "seed")
    study.plots = ({"x": "shots", "y": "metric"},)
    assert sweep.main(study, str(tmp_path)) == 0
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| shots | metric_name | n | metric |" in page
    assert "Means over draws (each the mean over its seeds) ± sample standard deviation." in page
    assert (tmp_path / "plots" / "metric_vs_shots.png").is_file()


def test_the_model_folder_of_a_pre_training_run(config, tmp_path):
    """Its heads for masked words and sentence order give way to one for the task."""
    settings = dataclasses.replace(SETTINGS, masked_lm=True, num_labels=2)
    model = models.build(settings, rngs=nnx.Rngs(1))
    io.save_pretrained(model, tmp_path / "model", tokenizer_from=config.model)
    config.pooling, config.save_model, config.optimizer.learning_rate = "", True, 0.0
    for name, init_checkpoint in (("model", ""), ("start", str(tmp_path / "model"))):
        config.model, config.init_checkpoint = str(tmp_path / "model"), init_checkpoint
        assert train.run(config, tmp_path / name / "run") == 0
        tuned = io.load_pretrained(tmp_path / name / "run" / "model")
        assert isinstance(tuned, models.SequenceClassifier)
        before, after = models.to_arrays(model), models.to_arrays(tuned)
        assert set(after) == {path for path in before if not path.startswith("masked_lm/")}
        np.testing.assert_array_equal(after["pooler/kernel"], before["pooler/kernel"])
        assert not np.array_equal(after["head/kernel"], before["head/kernel"])


def test_a_model_is_saved_with_its_tokenizer_or_not_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    model = models.build(SETTINGS, rngs=nnx.Rngs(0))
    with pytest.raises(FileNotFoundError, match=r"tokenizer_from=.*empty holds none of"):
        io.save_pretrained(model, tmp_path / "model", tokenizer_from=tmp_path / "empty")
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_tokenizer(config, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").unlink()
    config.model = str(tmp_path / "model")
    with pytest.raises(
        FileNotFoundError, match=r"config.model=.*no tokenizer.json.*init_checkpoint"
    ):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.model, config.init_checkpoint = str(checkpoint), str(tmp_path / "model")  # as it advises
    assert train.run(config, tmp_path / "run") == 0


def test_a_tokenizer_of_another_model(config, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    words = [*WORDS, *(f"word{i}" for i in range(40))]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config.model = str(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has 50 tokens, the token embedding of .* 40 rows"):
        train.run(config, tmp_path / "run")
