"""A run resumes with the data that it began with, or says what changed."""

import json

import ml_collections
import numpy as np
import pytest

from experiments import runs
from mpojax import data, training

PARTS = {
    "train": {"input_ids": np.arange(12).reshape(4, 3), "labels": np.arange(4)},
    "dev": {"input_ids": np.arange(6).reshape(2, 3)},
}
CONFIG = ml_collections.ConfigDict({"steps": 1})


def described(**changes):
    arrays = {name: part | changes.get(name, {}) for name, part in PARTS.items()}
    train = data.TrainData(arrays["train"], 2, seed=0)
    dev = {"a": data.EvalData(arrays["dev"], 2), "b": data.EvalData(arrays["dev"], 1)}
    return runs.fingerprints({"train": train, "dev": dev, "test": None})


def test_the_same_data_go_on(tmp_path):
    training.Workdir(tmp_path, CONFIG).check_data(described())
    noted = json.loads((tmp_path / "data.json").read_text())
    assert {name: part["examples"] for name, part in noted.items()} == {
        "train": 4,
        "dev/a": 2,
        "dev/b": 2,
    }
    training.Workdir(tmp_path, CONFIG).check_data(described())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"labels": np.arange(4)[::-1]}},
            r"train \(4 examples then, 4 examples now\)\. ",
        ),
        ({"train": {"labels": np.arange(4, dtype=np.int32)}}, "began: train"),
        ({"dev": {"input_ids": np.zeros((3, 3), int)}}, r"dev/a \(2 .* then, 3 .* now\), dev/b"),
        ({"dev": {"more": np.zeros(2)}}, "Put the files of the data .*another --workdir"),
    ],
)
def test_changed_data_are_refused(tmp_path, changes, message):
    training.Workdir(tmp_path, CONFIG).check_data(described())
    for _ in range(2):  # whoever starts the same command again is told again
        with pytest.raises(ValueError, match=message):
            training.Workdir(tmp_path, CONFIG).check_data(described(**changes))
    training.Workdir(tmp_path, CONFIG).check_data(described())


def test_a_run_of_an_older_version_resumes(tmp_path):
    run = training.Workdir(tmp_path, CONFIG)
    assert not (tmp_path / "data.json").exists()
    run.check_data(described())
    assert (tmp_path / "data.json").exists()


def test_parts_that_come_and_go(tmp_path):
    run = training.Workdir(tmp_path, CONFIG)
    run.check_data({"train": {"examples": 1, "fingerprint": "a"}})
    with pytest.raises(ValueError, match=r"test \(absent then, 2 examples now\)"):
        run.check_data(
            {
                "train": {"examples": 1, "fingerprint": "a"},
                "test": {"examples": 2, "fingerprint": "b"},
            }
        )


def test_streams_of_text_differ_by_their_tokens():
    one, two = (data.TokenStream(np.arange(start, start + 40), 20) for start in (0, 1))
    train, other = (data.LanguageModelData(stream, 4, 2, seed=0) for stream in (one, two))
    dev = data.LanguageModelEvalData(one, 4, 2)
    assert train.fingerprint() == dev.fingerprint() != other.fingerprint()
