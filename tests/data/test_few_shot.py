"""Few-shot draws: stratified, nested, a function of task, shots and draw alone."""

import numpy as np
import pytest

from mpojax import data


def task(count=60, name="mine", kind="classification", metrics=()):
    labels = np.arange(count, dtype=np.int32) % 7 % 3
    if kind == "regression":
        labels = np.linspace(0, 5, count, dtype=np.float32)
    names = ("a", "b", "c") if kind == "classification" else ()
    split = data.Split([f"text {i}" for i in range(count)], labels, ["pair"] * count)
    return data.TextTask(name, {"train": split}, names, kind, metrics)


def sampled(task_, shots, draw=0):
    return data.few_shot(task_, task_["train"], shots, draw)


@pytest.mark.parametrize("shots", [1, 4, 9])
def test_every_class_has_its_shots(shots):
    few = sampled(task(), shots)
    assert np.bincount(few.labels).tolist() == [shots] * 3
    assert len(set(few.texts)) == len(few) == len(few.pairs) == 3 * shots
    whole = task()["train"]
    for text, label in zip(few.texts, few.labels, strict=True):
        assert whole.labels[whole.texts.index(text)] == label


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_fewer_shots_are_a_part_of_more(kind):
    for draw in range(3):
        sets = [set(sampled(task(kind=kind), shots, draw).texts) for shots in (2, 5, 9)]
        assert sets[0] < sets[1] < sets[2]


def test_the_same_draw_is_the_same_whenever_it_is_made():
    again = [sampled(task(), 5, 2).texts for _ in range(2)]
    assert again[0] == again[1]
    # Fixed for good: results of runs months apart are compared.
    assert sampled(task(), 1, 0).texts == ["text 12", "text 24", "text 50"]


def test_draws_and_tasks_differ():
    draws = [tuple(sampled(task(), 5, draw).texts) for draw in range(4)]
    draws += [tuple(sampled(task(name="other"), 5).texts)]
    assert len(set(draws)) == 5


def test_of_a_regression_the_shots_are_all():
    assert len(sampled(task(kind="regression"), 10)) == 10


def test_of_questions_the_shots_are_all():
    texts = [f"question {i}" for i in range(9)]
    spans = np.tile(np.int32([[0, 4]]), (9, 1))
    split = data.SpanSplit(texts, spans, ["some context"] * 9, [("some",)] * 9, [(0,)] * 9, texts)
    few = data.few_shot(data.TextTask("q", {"train": split}, (), "span"), split, 4)
    assert len(few) == len(few.answers) == 4
    assert few.texts == list(few.ids)


@pytest.mark.parametrize(
    ("shots", "draw", "message"),
    [
        (0, 0, "shots=0 must be an integer of at least 1"),
        (-3, 0, "shots=-3"),
        (2, -1, "subset_seed=-1 must be an integer of at least 0"),
        (18, 0, r"shots=18: task 'mine' has too few .*\{'b': 17, 'c': 17\}; ask for at most 17"),
    ],
)
def test_bad_numbers(shots, draw, message):
    with pytest.raises(ValueError, match=message):
        sampled(task(), shots, draw)


def test_labels_are_needed():
    split = data.Split(["a", "b"], None)
    with pytest.raises(ValueError, match="task 'mine' has no labels"):
        data.few_shot(task(), split, 1)
