"""Tasks by name."""

import os
import pathlib

from mpojax.data import glue, text_classification, vader

# A data set that is not what its users would expect keeps a name of its own.
TASKS = (*glue.TASKS, "vader_movie")


def load_task(name: str, data_dir: str | os.PathLike | None = None) -> text_classification.TextTask:
    """Loads a task by name.

    Args:
      data_dir: root folder of local data; not used by tasks that fetch their own (`vader_movie`).
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; allowed are {sorted(TASKS)}")
    if name == "vader_movie":
        return vader.load()
    return glue.load(name, find_folder(data_dir, glue.TASKS[name].folder))


def find_folder(data_dir: str | os.PathLike | None, task: str) -> pathlib.Path:
    """The folder of one task under `data_dir`, `$MPOJAX_DATA` or `../shared/data`.

    Raises:
      FileNotFoundError: names the folders that were tried.
    """
    root = pathlib.Path(data_dir or os.environ.get("MPOJAX_DATA") or "../shared/data").expanduser()
    candidates = [root / "glue" / task, root / task]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no folder {' or '.join(map(str, candidates))}; pass data_dir (or set MPOJAX_DATA) to the "
        f"folder that holds glue/{task}"
    )
