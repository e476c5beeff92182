"""Labels of a user's own files: none empty, none unknown beside the training split's."""

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
