"""A user's own files as a task, from one line or from Python."""

import json
import re

import numpy as np
import pytest

from mpojax import data
from mpojax.data.sources import readers


@pytest.fixture
def folder(tmp_path):
    """Pairs with classes (.tsv, .csv, .jsonl) and with scores (.csv, .jsonl)."""
    (tmp_path / "a.tsv").write_text('\ufeffpremise\tend\tgold\nA "b\tc\tyes\r\n d \te\tno\n')
    (tmp_path / "b.csv").write_text('gold,premise,end\nno,"f, g","two\nlines"\n\nyes,h,i\n')
    rows = [{"premise": "j \u2028", "end": "k", "gold": "yes"}, {"premise": "l", "end": "m"}]
    (tmp_path / "c.jsonl").write_text(json.dumps(rows[0]) + "\n\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[1]) + "\n")
    (tmp_path / "s.csv").write_text("text,label\nbad,-1.5\ngood,2\n")
    (tmp_path / "s.jsonl").write_text('{"text": "so", "label": 0.5}\n{"text": "x", "label": 1}\n')
    return tmp_path


def test_pairs_with_classes(folder):
    line = (
        "file:train=a.tsv, dev=b.csv, test=test.jsonl; text=premise; pair=end; label=gold; "
        "metric=f1,accuracy; name=mine"
    )
    task = data.load_task(line, folder)
    assert (task.name, task.kind, task.metrics) == ("mine", "classification", ("f1", "accuracy"))
    assert task.label_names == ("no", "yes")
    assert task["train"].texts == ['A "b', "d"]
    assert task["dev"].pairs == ["two\nlines", "i"]
    np.testing.assert_array_equal(task["train"].labels, [1, 0])
    np.testing.assert_array_equal(task["dev"].labels, [0, 1])
    assert task["test"].labels is None
    assert task["test"].pairs == ["m"]


def test_scores_and_absolute_paths(folder):
    line = f"file:train={folder / 's.csv'},held_out={folder / 's.jsonl'};kind=regression"
    task = data.load_task(line + ";dev=held_out", "elsewhere")
    assert (task.name, task.kind, task.num_labels) == ("file", "regression", 1)
    assert task.metrics == ("spearman", "pearson")
    np.testing.assert_array_equal(task["train"].labels, np.array([-1.5, 2], np.float32))
    np.testing.assert_array_equal(task[task.dev_split].labels, np.array([0.5, 1], np.float32))
    assert task["train"].labels.dtype == np.float32


def test_relative_paths_start_at_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(data.load_task("file:train=s.csv,dev=s.jsonl;kind=regression")["train"]) == 2


def test_classes_in_a_given_order(folder):
    line = "file:train=a.tsv,dev=b.csv;text=premise;label=gold;labels=yes,no"
    np.testing.assert_array_equal(data.load_task(line, folder)["train"].labels, [0, 1])
    with pytest.raises(ValueError, match=r"a.tsv, line 3: gold is 'no'; allowed are \['yes'\]"):
        data.load_task(line.removesuffix(",no"), folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train=a.tsv,dev", "'dev' is not of the form name=value"),
        ("", "'' is not of the form name=value; write your own files as 'file:train="),
        ("train=a.tsv,dev=", "'dev=' is not of the form"),
        ("train=a.tsv", "no file for the split 'dev', by which models are compared; has ['train']"),
        ("train=a.tsv,train=a.tsv", "'train' is given twice"),
        ("train=s.csv,dev=s.csv;texts=a", "unknown options ['texts']; allowed are ['text', 'pair'"),
        (
            "train=s.csv,dev=s.csv;kind=ranking",
            "kind='ranking' must be one of 'classification', 'regression'",
        ),
        ("train=s.csv,dev=s.csv;metric=bleu", "metrics ['bleu'] of task 'file': a classification"),
        ("train=s.csv,dev=s.csv;metric=pearson", "a classification has ['accuracy', 'f1', 'matt"),
        ("train=s.csv,dev=s.csv;label=text;kind=regression", "s.csv, line 2: text is 'bad'; a num"),
        ("train=s.csv,dev=s.csv;pair=other", "s.csv has no column 'other'; columns are ['label'"),
    ],
)
def test_bad_lines(folder, line, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load_task("file:" + line, folder)


def test_f1_needs_two_classes(folder):
    (folder / "three.csv").write_text("text,label\na,1\nb,2\nc,3\n")
    with pytest.raises(ValueError, match=r"classes \['1', '2', '3'\]: the metric 'f1' needs two"):
        data.load_task("file:train=three.csv,dev=three.csv;metric=f1", folder)


def test_missing_file(folder):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.csv"):
        data.load_task("file:train=none.csv,dev=b.csv", folder)


GOOD = '{"text": "a", "label": 1}\n'
DEEP = "[" * 10**5 + "]" * 10**5
LONG = '{"text": "a", "label": ' + "9" * 5000 + "}"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.jsonl", '{"text": "a", "label": 1}\n\n{"text": ', "x.jsonl, line 3: not valid JSON"),
        ("x.jsonl", '["a", 1]\n', "x.jsonl, line 1: each line must hold one JSON object"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "x.jsonl, line 2: no ['label']"),
        ("x.jsonl", '{"text": 3, "label": 1}', "x.jsonl, line 1: 'text' is 3, not a string"),
        ("x.jsonl", "", "x.jsonl holds no examples"),
        ("x.jsonl", f'{GOOD}{{"a": {DEEP}}}', "x.jsonl, line 2: nested too deeply"),
        ("x.jsonl", f"{GOOD}{LONG}", "x.jsonl, line 2: not valid JSON: a number of more than 4300"),
        ("x.jsonl", '{"text": "a", "label": [1]}', "x.jsonl, line 1: label is [1]; a label must"),
        ("x.jsonl", POINTER, "x.jsonl is a pointer of Git LFS, not the file itself: run git lfs"),
        ("x.tsv", POINTER, "x.tsv is a pointer of Git LFS, not the file itself: run git lfs"),
        ("x.csv", 'text,label\n"two\nlines",1\nb\n', "x.csv, line 4: 1 fields, expected 2"),
        ("x.csv", 'text,label\na,1\n"b"c,1\n', "x.csv, line 3: not valid CSV"),
        ("x.csv", "text,label\n", "x.csv holds no examples"),
        ("x.csv", "text,text\n", "x.csv, line 1: columns must have different names"),
        ("x.tsv", "text\tlabel\na\t1\n\nb\t1\t2\n", "x.tsv, line 4: 3 fields, expected 2 (text,"),
        ("x.tsv", "", "x.tsv is empty; its first line must name the columns"),
        ("x.tsv", "sentence\tlabel\na\t1\n", "x.tsv has no column 'text'; columns are ['label',"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load_task(f"file:dev={file}", tmp_path)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("label", [[[1] * 9000], ["9" * 9000], {"a": "b" * 9000}])
def test_labels_of_any_size_are_shown_in_one_short_line(tmp_path, kind, label):
    row = {"text": "a", "label": label}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"x.jsonl, line 1: label is ") as caught:
        data.load_task(f"file:dev=x.jsonl;kind={kind}", tmp_path)
    assert len(str(caught.value)) < 500


def test_classes_of_many_digits(tmp_path):
    names = ["9" * 5000, "8" * 5000]
    (tmp_path / "x.tsv").write_text("text\tlabel\n" + "".join(f"a\t{name}\n" for name in names))
    task = data.load_task("file:dev=x.tsv", tmp_path)
    assert task.label_names == tuple(sorted(names))


def test_only_wanted_columns_are_kept(folder):
    table = readers.read(folder / "a.tsv", {"gold", "nothing"})
    assert table.header == ("premise", "end", "gold")
    assert table.columns == {"gold": ["yes", "no"]}
    assert table.lines == [2, 3]


def test_tasks_say_what_is_wrong_with_them():
    split = data.Split(["a"], np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=r"task 'mine': kind='tagging' must be one of"):
        data.TextTask("mine", {"dev": split}, ("a",), "tagging")
    with pytest.raises(ValueError, match=r"is a regression: label_names=\('a',\) must be empty"):
        data.TextTask("mine", {"dev": split}, ("a",), "regression")
    with pytest.raises(ValueError, match=r"is a classification: label_names=\(\) must name its"):
        data.TextTask("mine", {"dev": split}, ())
