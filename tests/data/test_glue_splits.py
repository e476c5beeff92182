"""GLUE with labels in all splits: nothing is chosen by what is reported."""

import dataclasses

import numpy as np
import pytest

from mpojax import data
from mpojax.data.sources import glue
from mpojax.data.sources.glue import splits as glue_splits


def make(name, train=30, **devs):
    splits = {
        split: data.Split([f"{split} {n}" for n in range(count)], np.zeros(count, np.int32))
        for split, count in {"train": train, **devs}.items()
    }
    names = glue.TASKS[name].label_names
    kind = glue.TASKS[name].kind
    return data.TextTask(name, splits, names, kind, glue.TASKS[name].metrics, next(iter(devs)))


@pytest.mark.parametrize("name", glue_splits.HALVED)
def test_small_tasks_halve_dev(name):
    task = make(name, dev=9, test=3)
    made = glue_splits.paper_splits(task)
    assert {split: len(part) for split, part in made.splits.items()} == {
        "train": 30,
        "dev": 5,
        "test": 4,
    }
    both = sorted([*made["dev"].texts, *made["test"].texts])
    assert both == sorted(task["dev"].texts)
    assert glue_splits.paper_splits(task)["test"].texts == made["test"].texts
    assert made.dev_split == "dev"
    assert made.metrics[0] == {"stsb": "pearson", "cola": "matthews"}.get(name, "accuracy")


@pytest.mark.parametrize("name", glue_splits.HELD_OUT)
def test_large_tasks_take_dev_from_train(name):
    task = make(name, dev=9)
    made = glue_splits.paper_splits(task, held_out=10)
    assert made["test"].texts == task["dev"].texts
    assert len(made["dev"]) == 10
    both = sorted([*made["dev"].texts, *made["train"].texts])
    assert both == sorted(task["train"].texts)
    with pytest.raises(ValueError, match="cannot split 1000 examples off 30"):
        glue_splits.paper_splits(task)


def test_mnli():
    task = make("mnli", dev_matched=4, dev_mismatched=5)
    made = glue_splits.paper_splits(task)
    assert made["dev"].texts == task["dev_mismatched"].texts
    assert made["test"].texts == task["dev_matched"].texts
    assert set(made.splits) == {"train", "dev", "test"}
    assert made.dev_split == "dev"


def test_other_tasks():
    with pytest.raises(ValueError, match="'mine' has no splits of the paper"):
        glue_splits.paper_splits(dataclasses.replace(make("rte", dev=4), name="mine"))


def test_all_of_glue_is_covered():
    assert {*glue_splits.HALVED, *glue_splits.HELD_OUT, "mnli"} == set(glue.TASKS)


def test_real_tasks(data_dir):
    task = data.load_text_to_text("rte", data_dir)
    sizes = {split: len(pairs) for split, pairs in task.splits.items()}
    assert sizes == {"train": 2490, "dev": 139, "test": 138}
    task = data.load_text_to_text("sst2", data_dir)
    sizes = {split: len(pairs) for split, pairs in task.splits.items()}
    assert sizes == {"train": 66349, "dev": 1000, "test": 872}
