"""TensorFlow Datasets folders: converted, read back equal, and refused where they are wrong."""

import json
import sys

import numpy as np
import pytest

from mpojax import data
from mpojax.data.sources import glue
from tests.data import glue_files

pytest.importorskip("tensorflow_datasets")
prepare_tfds = pytest.importorskip("tools.prepare_tfds")


def assert_equal(one: data.TextTask, other: data.TextTask) -> None:
    assert one.splits.keys() == other.splits.keys()
    for name in ("name", "kind", "label_names", "metrics", "dev_split"):
        assert getattr(one, name) == getattr(other, name)
    for name, split in one.splits.items():
        assert type(split) is type(other[name])
        assert vars(split).keys() == vars(other[name]).keys()
        for column, value in vars(split).items():
            found = getattr(other[name], column)
            if isinstance(value, np.ndarray):
                assert value.dtype == found.dtype
                np.testing.assert_array_equal(value, found)
            else:
                assert value == found, (name, column)


def test_round_trip_of_all_tasks(tmp_path):
    for name in glue.TASKS:
        glue_files.write(tmp_path, name)
    glue_files.write_squad(tmp_path)
    out = tmp_path / "out"
    folders = prepare_tfds.convert_all(str(tmp_path), "all", str(out))
    assert len(folders) == 10
    assert out / "glue" / "mnli" / "2.0.0" in folders
    assert out / "squad" / "v1.1" / "3.0.0" in folders
    for name in (*glue.TASKS, "squad"):
        assert_equal(data.load_task(name, tmp_path), data.load_task(name, out))
    assert "tensorflow" not in sys.modules
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    # Folders of one task, and of one version, are found as well.
    for folder in (out / "glue", out / "glue" / "rte", out / "glue" / "rte" / "2.0.0"):
        assert_equal(data.load_task("rte", tmp_path), data.load_task("rte", folder))


def test_round_trip_of_real_data(data_dir, tmp_path):
    if not (data_dir / "glue" / "RTE").is_dir():
        pytest.skip("no RTE there")
    task = data.load_task("rte", data_dir)
    prepare_tfds.convert(task, tmp_path)
    assert_equal(task, data.load_task("rte", tmp_path))


def test_read_by_the_library_itself(tmp_path):
    import tensorflow_datasets

    glue_files.write(tmp_path, "rte")
    prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path / "out"))
    builder = tensorflow_datasets.builder_from_directory(tmp_path / "out/glue/rte/2.0.0")
    row = builder.as_data_source(split="validation")[1]
    assert row["sentence1"].decode() == 'rte "dev.tsv \u2028 é 1 sentence1'
    assert (row["label"], row["idx"]) == (0, 1)
    assert builder.info.features["label"].names == ["entailment", "not_entailment"]
    assert builder.as_data_source(split="test")[0]["label"] == -1


def test_examples_come_back_in_the_order_of_the_original_file(tmp_path, monkeypatch):
    """Folders prepared by TensorFlow Datasets itself are shuffled by a hash."""
    glue_files.write(tmp_path, "cola")
    task = data.load_task("cola", tmp_path)
    original = prepare_tfds._glue_example

    def mirrored(task, split, number):
        return original(task, split, len(split) - 1 - number)

    monkeypatch.setattr(prepare_tfds, "_glue_example", mirrored)
    prepare_tfds.convert(task, tmp_path / "out")
    assert_equal(task, data.load_task("cola", tmp_path / "out"))


@pytest.fixture
def prepared(tmp_path):
    glue_files.write(tmp_path, "rte")
    (folder,) = prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path / "out"))
    return folder


def test_a_folder_already_there_is_kept(tmp_path, prepared):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path / "out")) == [prepared]
    assert before == {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    glue_files.write(tmp_path, "rte")

    def interrupted(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_tfds, "_glue_example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError, match=r"no folder"):
        data.load_task("rte", tmp_path / "out")


def test_conversion_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; pass another --data_dir"):
        prepare_tfds.convert_all(str(tmp_path / "nowhere"), "all", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds the files of no task of \['cola'"):
        prepare_tfds.convert_all(str(tmp_path), "all", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*RTE"):
        prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown tasks \['mnil'\]; allowed are \['cola'"):
        prepare_tfds.convert_all(str(tmp_path), "mnil", str(tmp_path))
    task = data.from_arrays("mine", {"train": (["a"], ["b"])})
    with pytest.raises(ValueError, match="task 'mine' cannot be converted"):
        prepare_tfds.convert(task, tmp_path)
    glue_files.write(tmp_path, "rte")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a file stands where a folder is needed"):
        prepare_tfds.convert_all(str(tmp_path), "rte", str(tmp_path / "file"))


class TestWrongFolders:
    def test_another_task(self, prepared):
        message = r"2.0.0 holds the data set glue/rte, not glue/wnli; pass the data_dir of the task"
        for folder in (prepared, prepared.parent):
            with pytest.raises(ValueError, match=message):
                data.load_task("wnli", folder)

    def test_other_classes(self, prepared):
        other = prepared.parents[1] / "wnli" / "2.0.0"
        prepared.parent.rename(other.parent)
        self.change(other, configName="wnli")
        with pytest.raises(
            ValueError, match=r"classes \['entailment', 'not_entailment'\]; the tas"
        ):
            data.load_task("wnli", other)

    def test_other_features(self, prepared):
        self.change(prepared, configName="qnli")
        with pytest.raises(ValueError, match=r"no features \['question', 'sentence'\]; features a"):
            data.load_task("qnli", prepared)

    def test_tfrecord(self, prepared):
        self.change(prepared, fileFormat="tfrecord")
        with pytest.raises(ValueError, match="holds tfrecord files, which only TensorFlow reads"):
            data.load_task("rte", prepared)

    def test_missing_shard_and_split(self, prepared):
        next(prepared.glob("*validation*")).unlink()
        with pytest.raises(ValueError, match="the split 'validation' cannot be read"):
            data.load_task("rte", prepared)
        info = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))
        splits = [split for split in info["splits"] if split["name"] != "validation"]
        self.change(prepared, splits=splits)
        with pytest.raises(ValueError, match=r"no split 'validation'; has \['test', 'train'\]"):
            data.load_task("rte", prepared)

    def test_corrupt_description(self, prepared):
        (prepared / "dataset_info.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset_info.json is not valid JSON"):
            data.load_task("rte", prepared)

    def test_description_by_another_library(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "dataset_info.json").write_text('{"config_name": "rte"}')
        with pytest.raises(FileNotFoundError, match=r"no folder .*RTE"):
            data.load_task("rte", tmp_path)

    def test_labels_of_no_class(self, tmp_path, monkeypatch):
        glue_files.write(tmp_path, "stsb")
        original = prepare_tfds._glue_example
        monkeypatch.setattr(prepare_tfds, "_glue_example", lambda *a: original(*a) | {"label": 5.5})
        prepare_tfds.convert_all(str(tmp_path), "stsb", str(tmp_path / "out"))
        with pytest.raises(ValueError, match=r"'train', example 0: label is 5.5; a number from 0"):
            data.load_task("stsb", tmp_path / "out")

    def test_library_is_missing(self, prepared, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(ImportError, match=r"pip install -e '\.\[tfds\]'"):
            data.load_task("rte", prepared)

    @staticmethod
    def change(folder, **fields):
        path = folder / "dataset_info.json"
        info = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(info | fields), encoding="utf-8")
