"""GLUE as the hub's data set has it: columns, class numbers, splits; and fetching it once."""

import json
import re

import numpy as np
import pytest

from mpojax import data, files
from mpojax.data.sources import glue, tfds
from mpojax.data.sources.glue import hub as glue_hub

TASKS = glue.TASKS
LABELS = {"train": (0, 1), "dev": (1, 0), "test": (-1, -1)}


def rows(name, split):
    *texts, label = glue.TASKS[name].hub_columns
    for i, value in enumerate(LABELS[split.partition("_")[0]]):
        yield {text: f'{split} "{text}" {i}' for text in texts} | {label: value, "idx": i}


def write(folder, name, suffix, split_name=glue.hub_split):
    folder.mkdir(parents=True, exist_ok=True)
    for split in glue.TASKS[name].splits:
        table = list(rows(name, split))
        path = folder / f"{split_name(split)}{suffix}"
        if suffix.endswith(".parquet"):
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(table), path)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        else:
            lines = [list(table[0]), *(row.values() for row in table)]
            path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", "-00000-of-00001.parquet"])
@pytest.mark.parametrize("name", TASKS)
def test_class_numbers_are_those_of_the_hub(tmp_path, name, suffix):
    write(tmp_path / "glue" / name, name, suffix)
    check(data.load_task(name, tmp_path), name)


@pytest.mark.parametrize("name", TASKS)
def test_in_the_folders_and_files_of_glue(tmp_path, name):
    write(tmp_path / glue.TASKS[name].folder, name, ".tsv", str)
    check(data.load_task(name, tmp_path), name)


def check(task, name):
    known = glue.TASKS[name]
    assert task.label_names == known.label_names
    assert set(task.splits) == set(known.splits)
    kind = np.int32 if known.label_names else np.float32
    for split in task.splits:
        examples = task[split]
        first = known.hub_columns[0]
        assert examples.texts == [f'{split} "{first}" {i}' for i in range(2)]
        assert (examples.pairs is None) == (len(known.hub_columns) == 2)
        if split.startswith("test"):
            assert examples.labels is None
        else:
            expected = np.array(LABELS[split.partition("_")[0]], kind)
            np.testing.assert_array_equal(examples.labels, expected)


def test_the_same_classes_whatever_they_are_read_from(tmp_path):
    """The names in GLUE's own files, and the numbers of the hub."""
    for folder, labels in (("a", ("not_entailment", "entailment")), ("b", ("1", "0"))):
        (tmp_path / folder / "RTE").mkdir(parents=True)
        for split in ("train", "dev"):
            lines = [f"{i}\tone\ttwo\t{label}\n" for i, label in enumerate(labels)]
            header = "index\tsentence1\tsentence2\tlabel\n"
            (tmp_path / folder / "RTE" / f"{split}.tsv").write_text(header + "".join(lines))
    own, hub = (data.load_task("rte", tmp_path / folder)["dev"].labels for folder in "ab")
    np.testing.assert_array_equal(own, hub)
    np.testing.assert_array_equal(own, [1, 0])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.label_names])
def test_classes_by_their_names(tmp_path, name, suffix):
    """As the data set is saved once its class numbers were turned into names."""
    names = TASKS[name].label_names
    *texts, label = TASKS[name].hub_columns
    for split in ("train", "validation", "validation_matched", "validation_mismatched"):
        rows = [
            dict.fromkeys(texts, f"a {i}") | {label: each} for i, each in enumerate(names[::-1])
        ]
        lines = [list(rows[0]), *(row.values() for row in rows)]
        if suffix == ".jsonl":
            content = "\n".join(map(json.dumps, rows))
        else:
            content = "\n".join((",", "\t")[suffix == ".tsv"].join(line) for line in lines)
        (tmp_path / f"{split}{suffix}").write_text(content + "\n")
    task = data.load_task(name, tmp_path)
    np.testing.assert_array_equal(task[task.dev_split].labels, range(len(names))[::-1])
    path = tmp_path / f"train{suffix}"
    path.write_text(re.sub(rf"\b{names[-1]}\b", "odd", path.read_text()))
    with pytest.raises(ValueError, match=rf"label is 'odd'; allowed are \['{names[0]}', "):
        data.load_task(name, tmp_path)


@pytest.mark.parametrize(("label", "name"), [(2, "sst2"), (-1, "sst2"), (3, "mnli")])
def test_a_number_that_is_no_class(tmp_path, label, name):
    write(tmp_path / name, name, ".jsonl")
    path = tmp_path / name / "train.jsonl"
    path.write_text(path.read_text().replace('"label": 1', f'"label": {label}'))
    with pytest.raises(ValueError, match=rf"train.jsonl, line 2: label is {label}; allowed are"):
        data.load_task(name, tmp_path)


OWN_FILES = {
    "train.csv": "text,label\na,0\n",
    "validation.tsv": "text\tlabel\na\t0\n",
    "test.jsonl": '{"text": "a", "label": 0}\n',
    "train.jsonl": "no JSON",
    "train.tsv": "sentence1\tgold\na\t0\n",
    "dev.tsv": "two\tfields\n",
    "train.txt": "Some text.\n",
    "train.parquet": "no Parquet",
}


@pytest.mark.parametrize("file", OWN_FILES)
@pytest.mark.parametrize("name", ["cola", "mrpc", "rte"])
def test_files_of_your_own_in_the_root_folder_hide_nothing(tmp_path, monkeypatch, hub, file, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / file).write_text(OWN_FILES[file])
    monkeypatch.setenv("MPOJAX_DATA", str(root))
    check(data.load_task(name), name)
    assert hub == [name]
    prepared = root / "glue" / name / "2.0.0"
    monkeypatch.setattr(tfds, "find", lambda *_: prepared)
    monkeypatch.setattr(tfds, "load", lambda *found: found)
    assert data.load_task(name, root) == (name, prepared)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", "-00000-of-00001.parquet"])
@pytest.mark.parametrize("name", TASKS)
def test_the_folder_of_the_task_itself(tmp_path, monkeypatch, hub, name, suffix):
    write(tmp_path / "data", name, suffix)
    check(data.load_task(name, tmp_path / "data"), name)
    monkeypatch.setenv("MPOJAX_DATA", str(tmp_path / "data"))
    check(data.load_task(name), name)
    assert not hub


def test_a_folder_that_was_given_and_has_other_columns(tmp_path):
    (tmp_path / "train.csv").write_text("premise,label\na,0\n")
    (tmp_path / "validation.csv").write_text("premise,label\na,0\n")
    with pytest.raises(ValueError, match=r"train.csv has no column 'sentence1'; columns are"):
        data.load_task("rte", tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No data but what `fetch` writes; the number of calls."""
    calls = []

    def fetch(name, folder):
        calls.append(name)
        write(folder / name, name, "-00000-of-00001.parquet")

    sizes = {name: dict.fromkeys(task.splits, 2) for name, task in TASKS.items()}
    monkeypatch.setattr(glue_hub, "fetch", fetch)
    monkeypatch.setattr(glue_hub, "SIZES", sizes)
    monkeypatch.setattr(glue_hub, "is_installed", lambda: True)
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPOJAX_DATA", str(tmp_path / "none"))
    return calls


def test_a_task_that_is_nowhere_is_fetched_once(hub, tmp_path):
    for _ in range(2):
        check(data.load_task("mnli"), "mnli")
    assert hub == ["mnli"]
    (tmp_path / "cache/glue/mnli/validation_matched-00000-of-00001.parquet").unlink()
    data.load_task("mnli")
    assert hub == ["mnli", "mnli"]


def test_a_folder_that_was_given_is_never_replaced_by_the_hub(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*SST-2"):
        data.load_task("sst2", tmp_path)
    assert not hub


def test_what_is_fetched_is_counted(hub, monkeypatch):
    monkeypatch.setitem(glue_hub.SIZES["rte"], "train", 2490)
    with pytest.raises(ValueError, match=r"'train': 2.*GLUE has .*'train': 2490.*Remove the folde"):
        data.load_task("rte")


def test_an_incomplete_download_says_what_to_put_where(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(glue_hub, "fetch", lambda name, folder: None)
    with pytest.raises(ConnectionError, match=r"put the files of sst2/ from there into .*/sst2,"):
        data.load_task("sst2")


def test_without_a_network_one_line_says_what_to_put_where(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(ConnectionError) as caught:
        glue_hub.fetch("mnli", tmp_path)
    message = str(caught.value)
    assert "(OSError: no route)" in message
    assert f"into {tmp_path / 'mnli'}, or GLUE's own train.tsv and dev_matched.tsv and" in message
    assert "FOLDER/MNLI" in message
    assert "\n" not in message


def test_where_nothing_is_fetched_the_hub_is_not_asked(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", None)
    with files.nothing_fetched(), pytest.raises(ConnectionError, match="was not asked: a run"):
        glue_hub.load("rte")
    assert files.may_fetch()


def test_without_the_packages_the_error_names_the_extra(hub, monkeypatch):
    monkeypatch.setattr(glue_hub, "is_installed", lambda: False)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[hub\]'"):
        data.load_task("sst2")


def test_published_sizes_are_those_of_tensorflow_datasets_and_the_recipes():
    recipes = pytest.importorskip("configs.mpobert.recipes")
    train = {name: sizes["train"] for name, sizes in glue_hub.SIZES.items() if name != "wnli"}
    assert train == recipes.EXAMPLES


def test_parquet_that_cannot_be_read(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(ValueError, match=r"a.parquet is not a Parquet file that can be read"):
        data.load_task("file:dev=a.parquet", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"install pyarrow .*'\.\[hub\]'"):
        data.load_task("file:dev=a.parquet", tmp_path)
