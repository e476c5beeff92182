"""Tasks from TensorFlow Datasets folders (array_record files), read without TensorFlow.

Such a folder is `ROOT/glue/rte/2.0.0`, prepared by `tools/prepare_tfds.py` or by TensorFlow
Datasets itself. The library is imported only when a folder is read.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpojax import checks
from mpojax.data.sources import glue, squad, tables
from mpojax.data.text import classification as text_classification

SQUAD_CONFIG = "v1.1"
_CHUNK = 4096  # examples decoded at a time
_INFO = "dataset_info.json"


def find(root: pathlib.Path, dataset: str, config: str) -> pathlib.Path | None:
    """The folder of the newest prepared version of `dataset/config`, or None.

    It may stand at `root/dataset/config`, at `root/config`, or be `root` itself, with or without
    the last part, the version.

    Raises:
      ValueError: `root` itself is the folder of another data set.
    """
    for base in (root / dataset / config, root / config, root):
        described = [p for p in (base, *sorted(base.glob("*/"))) if (p / _INFO).is_file()]
        # Other libraries write files of this name too.
        versions = [path for path in described if "name" in _read_info(path)]
        if not versions:
            continue
        newest = max(versions, key=lambda path: _version(path.name))
        found = _read_info(newest)
        name = "/".join(str(found.get(key)) for key in ("name", "configName"))
        if name == f"{dataset}/{config}":
            return newest
        raise ValueError(
            f"{newest} holds the data set {name}, not {dataset}/{config}; pass the data_dir of the "
            "task, or the root folder of several"
        )
    return None


def load(name: str, folder: pathlib.Path) -> text_classification.TextTask:
    """A GLUE task or `squad` from the folder of one prepared version.

    Raises:
      ImportError: tensorflow-datasets is missing.
      ValueError: another file format than array_record, features or classes of another task, a
        needed split that is missing or empty, a label that is none.
    """
    builder = _open(folder)
    if name == "squad":
        splits = {s: _squad_split(builder, folder, s) for s in squad.FILES}
        return squad.make_task(splits)
    task = glue.TASKS[name]
    columns = task.features or task.columns
    _check_features(builder, folder, (*columns, "label"))
    if task.kind == "classification":
        names = tuple(builder.info.features["label"].names)
        if names != task.label_names:
            raise ValueError(
                f"{folder} has the classes {list(names)}; the task {name!r} has "
                f"{list(task.label_names)}, in this order"
            )
    splits = {}
    for split in task.splits:
        if glue.hub_split(split) in builder.info.splits:
            splits[split] = _glue_split(builder, folder, split, task)
        elif not split.startswith("test"):
            raise ValueError(_no_split(builder, folder, split))
    return text_classification.TextTask(
        name, splits, task.label_names, task.kind, task.metrics, task.dev_split
    )


def _open(folder: pathlib.Path) -> Any:
    found = _read_info(folder).get("fileFormat", "tfrecord")
    if found != "array_record":
        raise ValueError(
            f"{folder} holds {found} files, which only TensorFlow reads; prepare it with "
            'file_format="array_record", or convert GLUE\'s own files with tools/prepare_tfds.py'
        )
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"{folder} is a TensorFlow Datasets folder: install tensorflow-datasets to read it "
            "(pip install -e '.[tfds]')"
        ) from error
    return tensorflow_datasets.builder_from_directory(str(folder))


def _glue_split(
    builder: Any, folder: pathlib.Path, split: str, task: glue.GlueTask
) -> text_classification.Split:
    rows = _rows(builder, folder, split)
    if "idx" in builder.info.features:  # the order of the original file
        rows.sort(key=lambda row: row["idx"])
    names = (*(task.features or task.columns), "label")
    columns = {name: [_plain(row[name]) for row in rows] for name in names}
    where = f"{folder}, split {glue.hub_split(split)!r}"
    table = tables.Table(where, names, columns, list(range(len(rows))), unit="example")
    labelled = not split.startswith("test")
    return text_classification.Split(
        *glue.columns_of(task, table, names[:-1], "label", labelled=labelled)
    )


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else np.asarray(value).item()


def _squad_split(builder: Any, folder: pathlib.Path, split: str) -> squad.SpanSplit:
    _check_features(builder, folder, ("id", "question", "context", "answers"))
    if glue.hub_split(split) not in builder.info.splits:
        raise ValueError(_no_split(builder, folder, split))
    rows = [
        (
            row["question"].decode("utf-8"),
            row["context"].decode("utf-8"),
            [text.decode("utf-8") for text in row["answers"]["text"]],
            list(row["answers"]["answer_start"]),
            row["id"].decode("utf-8"),
        )
        for row in _rows(builder, folder, split)
    ]
    return squad.make_split(f"{folder}, split {glue.hub_split(split)!r}", rows)


def _rows(builder: Any, folder: pathlib.Path, split: str) -> list[dict]:
    try:
        source = builder.as_data_source(split=glue.hub_split(split))
        count = len(source)
        rows = []
        for first in range(0, count, _CHUNK):
            rows += source.__getitems__(range(first, min(first + _CHUNK, count)))
    except (RuntimeError, OSError, IndexError) as error:
        raise ValueError(
            f"{folder}: the split {glue.hub_split(split)!r} cannot be read: {error}; prepare the "
            "folder again"
        ) from error
    if not rows:
        raise ValueError(f"{folder}: the split {glue.hub_split(split)!r} holds no examples")
    return rows


def _check_features(builder: Any, folder: pathlib.Path, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in builder.info.features]
    if missing:
        raise ValueError(
            f"{folder} has no features {missing}; features are {sorted(builder.info.features)}"
        )


def _no_split(builder: Any, folder: pathlib.Path, split: str) -> str:
    return f"{folder} has no split {glue.hub_split(split)!r}; has {sorted(builder.info.splits)}"


def _read_info(folder: pathlib.Path) -> dict:
    return checks.read_json(folder / _INFO)


def _version(name: str | os.PathLike) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(name)))
