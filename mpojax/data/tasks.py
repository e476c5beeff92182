"""Tasks by name."""

import os
from collections.abc import Callable

from mpojax.data import glue, text_classification, vader

# Name -> loader(data_dir). A data set that is not what its users would expect keeps a name of its
# own.
TASKS: dict[str, Callable[[str | os.PathLike | None], text_classification.TextTask]] = {
    "sst2": glue.load_sst2,
    "vader_movie": lambda data_dir: vader.load(),
}


def load_task(name: str, data_dir: str | os.PathLike | None = None) -> text_classification.TextTask:
    """Loads a task by name.

    Args:
      data_dir: root folder of local data; not used by tasks that fetch their own (`vader_movie`).
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; allowed are {sorted(TASKS)}")
    return TASKS[name](data_dir)
