"""GLUE's nine tasks from its own files: layouts, classes, and errors that say where to look."""

import re

import numpy as np
import pytest

from mpojax import data
from mpojax.data.sources import glue
from tests.data import glue_files

# As TensorFlow Datasets numbers the classes of the rows of `glue_files`.
EXPECTED = {
    "cola": ([1, 0, 1], [0, 1]),
    "sst2": ([0, 1, 1], [0, 1]),
    "mrpc": ([0, 1, 1], [1, 0]),
    "stsb": ([5.0, 0.25, 3.8], [0.0, 4.75]),
    "qqp": ([0, 1, 0], [1, 0]),
    "mnli": ([1, 0, 2], [0, 1]),
    "qnli": ([0, 1], [1, 0]),
    "rte": ([0, 1], [1, 0]),
    "wnli": ([0, 1], [1, 0]),
}


@pytest.mark.parametrize("name", glue.TASKS)
def test_every_layout(tmp_path, name):
    folder = glue_files.write(tmp_path, name)
    task = data.load_task(name, tmp_path)
    kind = np.float32 if name == "stsb" else np.int32
    for split, labels in zip(("train", task.dev_split), EXPECTED[name], strict=True):
        np.testing.assert_array_equal(task[split].labels, np.array(labels, kind))
        assert task[split].labels.dtype == kind
        assert task[split].texts[0].startswith(f'{name} "{split}.tsv \u2028 é 0 ')
        assert (task[split].pairs is None) == (name in ("cola", "sst2"))
        if task[split].pairs is not None:
            assert task[split].pairs[1] != task[split].texts[1]
            assert task[split].pairs[1].startswith(f'{name} "{split}.tsv \u2028 é 1 ')
    tests = [split for split in task.splits if split.startswith("test")]
    assert tests == (["test_matched", "test_mismatched"] if name == "mnli" else ["test"])
    assert all(task[split].labels is None for split in tests)
    for data_dir in (tmp_path / "glue", folder):
        assert data.load_task(name, data_dir)["train"].texts == task["train"].texts


def test_metrics_and_sizes_of_heads(tmp_path):
    tasks = {}
    for name in glue.TASKS:
        glue_files.write(tmp_path, name)
        tasks[name] = data.load_task(name, tmp_path)
    assert {name: task.metrics for name, task in tasks.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("spearman", "pearson"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }
    heads = {name: task.num_labels for name, task in tasks.items()}
    assert heads == dict.fromkeys(glue.TASKS, 2) | {"mnli": 3, "stsb": 1}
    assert tasks["mnli"].dev_split == "dev_matched"
    assert tasks["stsb"].kind == "regression"


def test_class_orders_are_those_of_tensorflow_datasets():
    text = pytest.importorskip("tensorflow_datasets.text.glue")
    configs = {config.name: config for config in text.Glue.BUILDER_CONFIGS}
    for name, task in glue.TASKS.items():
        assert tuple(configs[name].label_classes or ()) == task.label_names, name
        assert tuple(configs[name].text_features) == (task.features or task.columns), name


class TestOtherLayouts:
    def test_public_cola(self, tmp_path):
        folder = tmp_path / "CoLA"
        folder.mkdir()
        for number, name in enumerate(("in_domain_train", "in_domain_dev", "out_of_domain_dev")):
            (folder / f"{name}.tsv").write_text(f"gj04\t{number % 2}\t*\tfrom {name}")
        task = data.load_task("cola", tmp_path)
        assert task["train"].texts == ["from in_domain_train"]
        assert task["dev"].texts == ["from in_domain_dev", "from out_of_domain_dev"]
        np.testing.assert_array_equal(task["dev"].labels, [1, 0])
        (folder / "out_of_domain_dev.tsv").unlink()
        with pytest.raises(
            FileNotFoundError,
            match=r"needs dev.tsv, or in_domain_dev.tsv and out_of_domain_dev.tsv for the split "
            r"'dev'; found \['in_domain_dev.tsv', 'in_domain_train.tsv'\]",
        ):
            data.load_task("cola", tmp_path)

    def test_original_paraphrase_corpus(self, tmp_path):
        folder = tmp_path / "MRPC"
        folder.mkdir()
        rows = [f"{i % 2}\t{i}\t{i + 10}\tleft {i}\tright {i}\r" for i in range(4)]
        text = "\n".join(["\ufeff" + glue_files.MRPC.replace(";", "\t") + "\r", *rows])
        (folder / "msr_paraphrase_train.txt").write_text(text)
        with pytest.raises(FileNotFoundError, match=r"msr_paraphrase_train.txt and dev_ids.tsv"):
            data.load_task("mrpc", tmp_path)
        (folder / "dev_ids.tsv").write_text("3\t13\n1\t11\n0\t99\n")
        (folder / "msr_paraphrase_test.txt").write_text(text)
        task = data.load_task("mrpc", tmp_path)
        assert task["train"].texts == ["left 0", "left 2"]
        assert task["dev"].pairs == ["right 1", "right 3"]
        np.testing.assert_array_equal(task["dev"].labels, [1, 1])
        np.testing.assert_array_equal(task["test"].labels, [0, 1, 0, 1])

    def test_first_release_of_qqp_has_broken_rows(self, tmp_path, caplog):
        folder = glue_files.write(tmp_path, "qqp")
        path = folder / "train.tsv"
        lines = path.read_text(encoding="utf-8").split("\n")
        path.write_text("\n".join([*lines[:2], "7\t8", "", *lines[2:]]), encoding="utf-8")
        with caplog.at_level("WARNING"):
            task = data.load_task("qqp", tmp_path)
        np.testing.assert_array_equal(task["train"].labels, [0, 1, 0])
        assert "rows on lines [3] have missing fields" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("sst2", "train.tsv", "no tab", r"train.tsv, line 5: 1 fields, expected 2 (sentence, "),
        ("sst2", "dev.tsv", "fine\t2", r"dev.tsv, line 4: label is '2'; allowed are ['0', '1']"),
        ("sst2", "dev.tsv", "fine\t", r"dev.tsv, line 4: label is ''; allowed are ['0', '1']"),
        ("cola", "train.tsv", "gj04\t3\t\tx", r"train.tsv, line 4: label is '3'; allowed are"),
        ("rte", "dev.tsv", "7\ta\tb\t1", r"dev.tsv, line 4: label is '1'; allowed are ['entail"),
        ("stsb", "dev.tsv", "-\t" * 9 + "5.1", r"dev.tsv, line 4: score is '5.1'; a number from 0"),
        ("stsb", "dev.tsv", "-\t" * 9 + "nan", r"line 4: score is 'nan'; a number from 0 to 5 is"),
        ("stsb", "train.tsv", "-\t" * 9 + "high", r"train.tsv, line 5: score is 'high'; a number"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, file, line, message):
    path = glue_files.write(tmp_path, name) / file
    with open(path, "a", encoding="utf-8") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load_task(name, tmp_path)


class TestBadFolders:
    def test_missing(self, tmp_path):
        with pytest.raises(
            FileNotFoundError,
            match=r"no folder .*glue/RTE or .*/RTE, and no TensorFlow Datasets folder .*glue/rte; "
            r"pass data_dir \(or set MPOJAX_DATA\)",
        ):
            data.load_task("rte", tmp_path)
        folder = glue_files.write(tmp_path, "mnli")
        (folder / "dev_mismatched.tsv").unlink()
        with pytest.raises(FileNotFoundError, match=r"needs dev_mismatched.tsv for the split"):
            data.load_task("mnli", tmp_path)

    @pytest.mark.parametrize("content", ["", "index\tsentence1\tsentence2\tlabel\n"])
    def test_empty(self, tmp_path, content):
        (glue_files.write(tmp_path, "rte") / "dev.tsv").write_text(content)
        with pytest.raises(ValueError, match=r"dev.tsv (is empty; its first|holds no examples)"):
            data.load_task("rte", tmp_path)

    def test_files_of_another_task(self, tmp_path):
        glue_files.write(tmp_path, "rte").rename(tmp_path / "glue" / "SST-2")
        with pytest.raises(ValueError, match=r"no column 'sentence'; columns are \['index', 'lab"):
            data.load_task("sst2", tmp_path)
        (tmp_path / "glue" / "SST-2").rename(tmp_path / "glue" / "CoLA")
        with pytest.raises(ValueError, match=r"train.tsv, line 1: label is 'sentence1'; allowed"):
            data.load_task("cola", tmp_path)

    def test_training_file_without_labels(self, tmp_path):
        folder = glue_files.write(tmp_path, "rte")
        (folder / "test.tsv").replace(folder / "train.tsv")
        with pytest.raises(ValueError, match=r"train.tsv has no column 'label'"):
            data.load_task("rte", tmp_path)

    def test_not_utf_8(self, tmp_path):
        (glue_files.write(tmp_path, "rte") / "dev.tsv").write_bytes(b"index\xff\n")
        with pytest.raises(ValueError, match=r"dev.tsv is not UTF-8 text"):
            data.load_task("rte", tmp_path)


# Published sizes, and what the first dev example is.
REAL = {
    "cola": ({"train": 8551, "dev": 1043}, "The sailors rode the breeze clear of the rocks.", 1),
    "sst2": (
        {"train": 67349, "dev": 872, "test": 1821},
        "it 's a charming and often affecting journey .",
        1,
    ),
    "mrpc": ({"train": 3576, "dev": 500, "test": 1725}, "Stocks have rallied sharply for more", 1),
    "rte": ({"train": 2490, "dev": 277, "test": 3000}, "Dana Reeve, the widow of the actor", 1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(data_dir, name):
    if not (data_dir / "glue" / glue.TASKS[name].folder).is_dir():
        pytest.skip(f"no {name} there")
    sizes, text, label = REAL[name]
    task = data.load_task(name, data_dir)
    assert {split: len(task[split]) for split in task.splits} == sizes
    assert task["dev"].texts[0].startswith(text)
    assert task["dev"].labels[0] == label
    # The majority class of RTE's dev set is entailment, 52.7 %; of CoLA's acceptable, 69.1 %.
    shares = {"cola": 719 / 1043, "sst2": 444 / 872, "mrpc": 346 / 500, "rte": 131 / 277}
    assert task["dev"].labels.mean() == pytest.approx(shares[name])
