"""Tasks by name."""

import functools
import os
import pathlib
from collections.abc import Sequence

from mpojax import checks
from mpojax.data.sources import file_tasks, glue, glue_hub, squad, vader
from mpojax.data.sources import tfds as tfds_folders
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

    `data_dir` is a root folder (default: `$MPOJAX_DATA`, else `../shared/data`) or the folder of
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
    root = pathlib.Path(data_dir or os.environ.get("MPOJAX_DATA") or "../shared/data").expanduser()
    if name == "squad":
        dataset, config, load = "squad", tfds_folders.SQUAD_CONFIG, squad.load
        own, hub, is_in, fits = [root / "squad"], [], squad.is_in, squad.is_in
    else:
        task = glue.TASKS[name]
        dataset, config, load = "glue", name, functools.partial(glue.load, name)
        is_in, fits = task.is_in, task.fits
        own = [root / "glue" / task.folder, root / task.folder]
        hub = [root / "glue" / name, root / name]
    for folder in (*own, *hub):
        if is_in(folder):
            return load(folder)
    prepared = tfds_folders.find(root, dataset, config)
    if prepared is not None:
        return tfds_folders.load(name, prepared)
    if fits(root):
        return load(root)
    folders = [folder for folder in own if folder.is_dir()]
    if data_dir and is_in(root):
        folders.append(root)
    if folders:
        return load(folders[0])  # says which files or columns it lacks
    can_fetch = name in glue.TASKS and not data_dir
    if can_fetch and glue_hub.is_installed():
        return glue_hub.load(name)
    raise FileNotFoundError(
        f"no folder {' or '.join(map(str, own))}, and no TensorFlow Datasets folder "
        f"{root / dataset / config}; pass data_dir (or set MPOJAX_DATA) to the folder that holds "
        f"{own[0].relative_to(root)} or {dataset}/{config}"
        + (", or install what fetches it: pip install 'mpojax[hub]'" if can_fetch else "")
    )
