"""Batches of several tasks: shares, orders, and what several processes read of them."""

import collections
import itertools

import numpy as np
import pytest

from mpojax import data

SIZES = {"large": 600, "middle": 90, "small": 30}


def examples(count, first=0, length=8, labels=None):
    mask = (np.arange(length)[None] < 1 + np.arange(count)[:, None] % length).astype(np.int32)
    ids = first + np.arange(count, dtype=np.int32)
    return {
        "input_ids": ids[:, None] * mask,
        "attention_mask": mask,
        "labels": np.arange(count, dtype=np.int32) % 2 if labels is None else labels,
        "index": ids,
    }


def tasks(**changes):
    firsts = [0, *itertools.accumulate(SIZES.values())]
    made = {n: examples(c, f) for (n, c), f in zip(SIZES.items(), firsts, strict=False)}
    return made | changes


def counts(mixture, steps):
    found = np.concatenate([mixture[step]["task"] for step in range(steps)])
    return np.bincount(found, minlength=len(SIZES))


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_shares_follow_the_sizes_at_every_length(exponent):
    mixture = data.Mixture(tasks(), 16, seed=0, exponent=exponent)
    weights = np.float64(list(SIZES.values())) ** exponent
    shares = weights / weights.sum()
    np.testing.assert_allclose(list(mixture.shares.values()), shares)
    assert mixture.sizes == SIZES
    for steps in (1, 7, 90):
        rows = steps * 16
        # Shares are kept as whole numbers of which the least is 100: exact to a hundredth.
        assert np.all(np.abs(counts(mixture, steps) - rows * shares) <= 2 + 0.01 * rows * shares)


def test_every_task_has_epochs_of_its_own():
    mixture = data.Mixture(tasks(), 16, seed=0, exponent=0.0)
    seen = collections.defaultdict(list)
    for step in range(60):
        batch = mixture[step]
        for task, index in zip(batch["task"], batch["index"], strict=True):
            seen[task].append(index)
    small = seen[2]
    epochs = [small[i : i + 30] for i in range(0, 300, 30)]
    assert all(sorted(epoch) == list(range(690, 720)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in another order
    assert len(set(seen[0])) == len(seen[0])  # not one epoch yet: nothing twice


def test_rows_belong_to_their_task():
    scores = np.linspace(0, 5, 90, dtype=np.float32)
    mixture = data.Mixture(tasks(middle=examples(90, 600, labels=scores)), 16, seed=0)
    for step in range(20):
        batch = mixture[step]
        assert batch["task"].dtype == np.int32
        assert batch["labels"].dtype == np.float32
        first = np.array([0, 600, 690])[batch["task"]]
        assert np.all(np.searchsorted([600, 690], batch["index"], side="right") == batch["task"])
        wanted = np.where(
            batch["task"] == 1, scores[(batch["index"] - 600) % 90], (batch["index"] - first) % 2
        )
        np.testing.assert_array_equal(batch["labels"], wanted.astype(np.float32))


def test_pure_function_of_seed_and_step():
    one, other = (data.Mixture(tasks(), 5, seed=3) for _ in range(2))
    forward = [one[step] for step in range(30)]
    for step in reversed(range(30)):  # as after a restore: nothing was read before
        for name, array in other[step].items():
            np.testing.assert_array_equal(array, forward[step][name])
    third = data.Mixture(tasks(), 5, seed=4)
    assert not np.array_equal(third[0]["index"], forward[0]["index"])


def test_rows_of_processes_make_the_batch():
    mixture = data.Mixture(tasks(), 6, seed=0, lengths=(4,))
    for step in range(12):
        whole = mixture[step]
        parts = [mixture.rows(step, slice(p * 2, p * 2 + 2)) for p in range(3)]
        assert {part["input_ids"].shape[1] for part in parts} == {whole["input_ids"].shape[1]}
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)


def test_batches_are_cropped_to_the_least_length_that_holds_them():
    mixture = data.Mixture(tasks(), 2, seed=0, lengths=(3, 5))
    widths = set()
    for step in range(60):
        batch = mixture[step]
        width = batch["attention_mask"].shape[1]
        real = batch["attention_mask"].sum(1)
        first = np.array([0, 600, 690])[batch["task"]]
        np.testing.assert_array_equal(real, 1 + (batch["index"] - first) % 8)  # no token is lost
        assert width == min(n for n in (3, 5, 8) if n >= real.max())
        widths.add(width)
    assert widths == {3, 5, 8}


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: data.Mixture({}, 2, seed=0), "at least one task"),
        (
            lambda: data.Mixture(tasks(), 2, seed=0, exponent=1.5),
            "exponent=1.5 must be a finite number",
        ),
        (lambda: data.Mixture(tasks(), 2, seed=0, exponent=-0.1), "exponent=-0.1"),
        (lambda: data.Mixture(tasks(), 0, seed=0), "batch_size=0"),
        (
            lambda: data.Mixture(tasks(small=without(examples(3), "labels")), 2, seed=0),
            "task 'small' has no labels",
        ),
        (
            lambda: data.Mixture(
                tasks(small=examples(3, labels=np.zeros((3, 2), np.int32))), 2, seed=0
            ),
            r"task 'small' has labels of shape \(3, 2\).*train on spans alone",
        ),
        (lambda: data.Mixture(tasks(small=examples(0)), 2, seed=0), "'small' holds no examples"),
        (
            lambda: data.Mixture(tasks(small=without(examples(3), "index")), 2, seed=0),
            "task 'small' has the arrays .* need the same",
        ),
        (
            lambda: data.Mixture(tasks(small=examples(3, length=9)), 2, seed=0),
            "encode all with one max_length",
        ),
        (lambda: data.Mixture(tasks(), 2, seed=0)[-1], "step=-1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
