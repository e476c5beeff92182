"""Tasks by name."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

from mpojax import checks, files
from mpojax.data.sources import file_tasks, glue, squad, vader
from mpojax.data.sources import tfds as tfds_folders
from mpojax.data.sources.glue import hub as glue_hub
from mpojax.data.text import classification as text_classification

# A data set that is not what its users would expect keeps a name of its own.
TASKS = (*glue.TASKS, "squad", "vader_movie")


def check_task(name: str, also: Sequence[str] = ()) -> None:
    """Checks the name of a task; files are not looked at.

    Args:
      also: names that are known besides those of `load_task`.

    Raises:
      ValueError: an unknown name; says which is the nearest.
    """
    known = sorted((*TASKS, *also))
    if name not in known and not name.startswith(file_tasks.PREFIX):
        raise ValueError(
            f"unknown task {name!r}; allowed are {known}, or your own files as "
            f"'{file_tasks.PREFIX}train=a.tsv,dev=b.tsv'{checks.did_you_mean(name.lower(), known)}"
        )


def load_task(name: str, data_dir: str | os.PathLike | None = None) -> text_classification.TextTask:
    """Loads a task by name, or one of your own files from a line of text.

    `data_dir` is a root folder (default: `$MPOJAX_DATA`, else `data`) or the folder of
    the task itself. It holds either of, found by looking:

    - GLUE's own files, e.g. `glue/RTE/train.tsv` or `RTE/train.tsv`; for SQuAD v1.1
      `squad/train-v1.1.json` and `squad/dev-v1.1.json`;
    - files of the hub's nyu-mll/glue, e.g. `rte/validation-00000-of-00001.parquet`, or saved as
      `glue/rte/validation.csv` or `glue/RTE/dev.tsv` (see `glue`; Parquet needs pyarrow);
    - a TensorFlow Datasets folder in array_record format, e.g. `glue/rte/2.0.0` or
      `squad/v1.1/3.0.0` (see `tools/prepare_tfds.py`; needs the extra `tfds`, no TensorFlow).

    Where several are there, the first of them is read, in folders that are named after the task
    before those that are `data_dir` itself. There, files count only if they have the columns of the
    task: your own `train.csv` may stand in the root folder. Without `data_dir`, a GLUE task that is
    not found is fetched from the hub once, where the extra `hub` is installed. `vader_movie`
    fetches its own data.

    Your own .tsv, .csv, .jsonl or .parquet files, one per split:

        file:train=a.tsv,dev=b.tsv
        file:train=a.csv,dev=b.csv,test=c.csv;text=premise;pair=hypothesis;label=gold;metric=f1
        file:train=a.jsonl,dev=b.jsonl;label=score;kind=regression

    After `file:` come the splits, then, each after a semicolon, any of

    - `text`, `pair`, `label`: columns; default `text`, no second text, `label`;
    - `kind`: `classification` (default) or `regression`;
    - `labels`: the classes in the order of their numbers, e.g. `labels=no,yes`; default: all that
      occur, sorted;
    - `metric`: one or more of accuracy, f1, matthews (classification) or spearman, pearson
      (regression), the main one first; default accuracy, or both correlations;
    - `dev`: the split by which models are compared, default `dev`;
    - `name`: of the task in results, default `file`;
    - `quoting`: of .tsv files, default `auto`: fields in quotes, as csv.writer and pandas write
      those with quotes, tabs or line breaks inside, are read as what stands in them where the file
      can only have been written so; `on` or `off` says it for every field.

    Relative paths start at `data_dir` if that is given, else at the current folder.

    Raises:
      FileNotFoundError: a folder or file is missing; names what was looked for.
      ConnectionError: a task is to be fetched and cannot be; says which file to put where.
      ImportError: a TensorFlow Datasets folder without tensorflow-datasets installed, or a Parquet
        file without pyarrow.
      ValueError: an unknown task or option, or data that is not what it should be; names the file,
        and the line where there is one.
    """
    if name.startswith(file_tasks.PREFIX):
        return file_tasks.load(name, data_dir)
    check_task(name)
    if name == "vader_movie":
        return vader.load()
    root = files.at(data_dir or files.data_dir())
    source = _source(name)
    own, hub = ([root / folder for folder in some] for some in (source.own, source.hub))
    for folder in (*own, *hub):
        if source.is_in(folder):
            return source.load(folder)
    prepared = tfds_folders.find(root, source.dataset, source.config)
    if prepared is not None:
        return tfds_folders.load(name, files.local(prepared))
    if source.fits(root):
        return source.load(root)
    folders = [folder for folder in own if folder.is_dir()]
    if data_dir and source.is_in(root):
        folders.append(root)
    if folders:
        return source.load(folders[0])  # says which files or columns it lacks
    can_fetch = name in glue.TASKS and not data_dir
    if can_fetch and glue_hub.is_installed():
        return glue_hub.load(name)
    raise FileNotFoundError(
        f"no folder {' or '.join(map(str, own))}, and no TensorFlow Datasets folder "
        f"{root / source.dataset / source.config}; pass data_dir (or set MPOJAX_DATA) to the "
        f"folder that holds {source.own[0]} or {source.dataset}/{source.config}"
        + (", or install what fetches it: pip install -e '.[hub]'" if can_fetch else "")
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """Folders of a task below a root, and how they are read.

    Attributes:
      dataset, config: its names in TensorFlow Datasets.
      own, hub: folders of its own files, and of those of the hub.
      is_in, fits: folder -> whether it holds files of the task, by their names; by their columns.
      load: folder -> the task.
    """

    dataset: str
    config: str
    own: tuple[str, ...]
    hub: tuple[str, ...]
    is_in: Callable[[pathlib.Path], bool]
    fits: Callable[[pathlib.Path], bool]
    load: Callable[[pathlib.Path], text_classification.TextTask]


def _source(name: str) -> _Source:
    if name == "squad":
        config = tfds_folders.SQUAD_CONFIG
        return _Source(name, config, (name,), (), squad.is_in, squad.is_in, squad.load)
    task = glue.TASKS[name]
    own, hub = ((f"glue/{folder}", folder) for folder in (task.folder, name))
    return _Source(
        "glue", name, own, hub, task.is_in, task.fits, functools.partial(glue.load, name)
    )
