"""Tasks by name."""

import functools
import os
import pathlib

from mpojax.data import file_tasks, glue, squad, text_classification, tfds_folders, vader

# A data set that is not what its users would expect keeps a name of its own.
TASKS = (*glue.TASKS, "squad", "vader_movie")


def check_task(name: str) -> None:
    """Raises ValueError for a name that `load_task` does not know; files are not looked at."""
    if name not in TASKS and not name.startswith(file_tasks.PREFIX):
        raise ValueError(
            f"unknown task {name!r}; allowed are {sorted(TASKS)}, or your own files as "
            f"'{file_tasks.PREFIX}train=a.tsv,dev=b.tsv'"
        )


def load_task(name: str, data_dir: str | os.PathLike | None = None) -> text_classification.TextTask:
    """Loads a task by name, or one of your own files from a line of text.

    `data_dir` is a root folder (default: `$MPOJAX_DATA`, else `../shared/data`) or the folder of
    the task itself. It holds either of, found by looking:

    - GLUE's own files, e.g. `glue/RTE/train.tsv` or `RTE/train.tsv`; for SQuAD v1.1
      `squad/train-v1.1.json` and `squad/dev-v1.1.json`;
    - a TensorFlow Datasets folder in array_record format, e.g. `glue/rte/2.0.0` or
      `squad/v1.1/3.0.0` (see `tools/prepare_tfds.py`; needs the extra `tfds`, no TensorFlow).

    Where both are there, GLUE's own files are read. `vader_movie` fetches its own data.

    Your own .tsv, .csv or .jsonl files, one per split:

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
    - `name`: of the task in results, default `file`.

    Relative paths start at `data_dir` if that is given, else at the current folder.

    Raises:
      FileNotFoundError: a folder or file is missing; names what was looked for.
      ImportError: a TensorFlow Datasets folder without tensorflow-datasets installed.
      ValueError: an unknown task or option, or data that is not what it should be; names the file,
        and the line where there is one.
    """
    if name.startswith(file_tasks.PREFIX):
        return file_tasks.load(name, data_dir)
    check_task(name)
    if name == "vader_movie":
        return vader.load()
    if name == "squad":
        dataset, config, own, load = "squad", tfds_folders.SQUAD_CONFIG, "squad", squad.load
        files = tuple(squad.FILES.values())
    else:
        dataset, config, own = "glue", name, glue.TASKS[name].folder
        files = glue.TASKS[name].file_names()
        load = functools.partial(glue.load, name)
    root = pathlib.Path(data_dir or os.environ.get("MPOJAX_DATA") or "../shared/data").expanduser()
    candidates = [root / own] if own == dataset else [root / dataset / own, root / own]
    for folder in (*candidates, root):
        if any((folder / file).is_file() for file in files):
            return load(folder)
    prepared = tfds_folders.find(root, dataset, config)
    if prepared is not None:
        return tfds_folders.load(name, prepared)
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is not None:
        return load(folder)  # says which files it lacks
    raise FileNotFoundError(
        f"no folder {' or '.join(map(str, candidates))}, and no TensorFlow Datasets folder "
        f"{root / dataset / config}; pass data_dir (or set MPOJAX_DATA) to the folder that holds "
        f"{candidates[0].relative_to(root)} or {dataset}/{config}"
    )
