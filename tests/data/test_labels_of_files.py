"""Labels of a user's own files: none empty, none unknown to the training split's."""

import json

import numpy as np
import pytest

from mpojax import data


def write(folder, name, labels):
    lines = ["text\tlabel", *[f"words\t{label}" for label in labels]]
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_an_empty_label_is_named_with_its_line(tmp_path):
    write(tmp_path, "train", ["x", "", "y"])
    write(tmp_path, "dev", ["x"])
    with pytest.raises(ValueError, match=r"train.tsv, line 3: label is empty"):
        data.load_task("file:train=train.tsv,dev=dev.tsv", tmp_path)


def test_a_missing_label_of_json_is_no_class(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": null}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: label is empty"):
        data.load_task("file:train=train.jsonl;dev=train", tmp_path)


def test_a_label_that_training_does_not_know_is_an_error(tmp_path):
    write(tmp_path, "train", ["x", "y"])
    write(tmp_path, "dev", ["x", "X"])
    with pytest.raises(ValueError, match=r"dev.tsv, line 3: label is 'X'; allowed"):
        data.load_task("file:train=train.tsv,dev=dev.tsv", tmp_path)


def write_rows(folder, name, labels):
    rows = [json.dumps({"text": "words", "label": label}) for label in labels]
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>"])
def test_what_stands_for_a_missing_label_is_no_class(tmp_path, label):
    write(tmp_path, "train", ["x", label, "y"])
    line = "file:train=train.tsv;dev=train"
    with pytest.raises(ValueError, match=r"train.tsv, line 3: label is .*, which stands for a mis"):
        data.load_task(line, tmp_path)
    named = data.load_task(f"{line};labels=x,y,{label}", tmp_path)  # a class all the same
    assert named["train"].labels.tolist() == [0, 2, 1]


def test_not_a_number_in_json_is_no_class(tmp_path):
    write_rows(tmp_path, "train", [0, float("nan"), 1])
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: label is 'nan'"):
        data.load_task("file:train=train.jsonl;dev=train", tmp_path)


@pytest.mark.parametrize("label", [float("nan"), np.float32("nan"), None, "", " ", "NaN", "<NA>"])
def test_a_missing_label_of_arrays_is_no_class(label):
    splits = {"train": (["a"], [1]), "dev": (["a", "b", "c"], [0, label, 1])}
    with pytest.raises(
        ValueError, match=r"task 'x', split 'dev': labels\[1\] is (empty|.*missing)"
    ):
        data.from_arrays("x", splits)


def test_labels_of_arrays_are_read_like_those_of_files():
    task = data.from_arrays("x", {"train": (["a", "b", "c"], [1.0, 0, "1 "])})
    assert task.label_names == ("0", "1")
    assert task["train"].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("train", [[0.0, 1.0], [0, 1], ["0.00", "1"]])
@pytest.mark.parametrize("dev", [[1.0, 0.0], [1, 0], ["1", "0.0"]])
def test_whole_numbers_may_have_a_point(tmp_path, train, dev):
    write_rows(tmp_path, "train", train)
    write_rows(tmp_path, "dev", dev)
    task = data.load_task("file:train=train.jsonl,dev=dev.jsonl", tmp_path)
    assert task.label_names == ("0", "1")
    assert (task["train"].labels.tolist(), task["dev"].labels.tolist()) == ([0, 1], [1, 0])


def test_names_that_only_look_like_numbers_are_kept(tmp_path):
    for labels, names in (
        (["1.0", "1.5", "2.0"], ("1.0", "1.5", "2.0")),
        (["²", "³"], ("²", "³")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["01", "1"], ("01", "1")),
    ):
        write(tmp_path, "train", labels)
        task = data.load_task("file:train=train.tsv;dev=train", tmp_path)
        assert task.label_names == names
        assert [names[i] for i in task["train"].labels] == labels


def test_a_test_split_may_have_minus_one_for_labels(tmp_path):
    write(tmp_path, "train", ["0", "1"])
    write(tmp_path, "test", ["-1", "-1"])
    task = data.load_task("file:train=train.tsv,dev=train.tsv,test=test.tsv", tmp_path)
    assert task["test"].labels is None
    with pytest.raises(ValueError, match=r"test.tsv, line 2: label is '-1'; allowed are"):
        data.load_task("file:train=train.tsv,dev=test.tsv", tmp_path)


@pytest.mark.parametrize("count", [0, -3, 2.5])
def test_a_count_that_is_none(count):
    split = data.Split(["a", "b"], None)
    with pytest.raises(ValueError, match=rf"count={count} must be an integer of at least 1 or one"):
        split.take(count)
    with pytest.raises(ValueError, match=rf"count={count} must be"):
        data.TextPairs(["a"], None).take(count)


def test_minus_one_takes_all():
    assert data.Split(["a", "b", "c"], None).take(-1).texts == ["a", "b", "c"]


def test_what_looks_like_a_mistake_in_the_labels_is_said(tmp_path, caplog):
    write(tmp_path, "train", [f"{n / 100:.2f}" for n in range(1, 30)])
    write(tmp_path, "dev", ["4.42"])
    with pytest.raises(ValueError, match="numbers that are scores want kind=regression"):
        data.load_task("file:train=train.tsv,dev=dev.tsv", tmp_path)
    assert "column 'label' holds 29 different numbers" in caplog.text
    caplog.clear()
    write(tmp_path, "train", [*["good", "bad"] * 12, "god"])
    data.load_task("file:train=train.tsv,dev=train.tsv", tmp_path)
    assert "only one training example of class 'god' (of bad, god, good)" in caplog.text
    caplog.clear()
    write(tmp_path, "train", ["good", "bad"] * 12)
    data.load_task("file:train=train.tsv,dev=train.tsv", tmp_path)
    assert not caplog.text


def test_a_file_with_other_separators_says_so(tmp_path):
    (tmp_path / "a.csv").write_text("id;text;label\n1;good;x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no column .*separated by ';', save it with commas"):
        data.load_task("file:train=a.csv,dev=a.csv", tmp_path)
    (tmp_path / "b.csv").write_text("txt,label\ngood,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"columns are \['label', 'txt'\], did you mean 'txt'"):
        data.load_task("file:train=b.csv,dev=b.csv", tmp_path)
