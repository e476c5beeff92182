"""GLUE from the hub's data set nyu-mll/glue: fetched once, checked by its sizes, kept."""

import importlib.util
import pathlib

from absl import logging

from mpojax import files
from mpojax.data.sources.glue import files as glue
from mpojax.data.text import classification

REPOSITORY = "nyu-mll/glue"
# Examples of every split, as published.
SIZES = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst2": {"train": 67349, "dev": 872, "test": 1821},
    "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "qqp": {"train": 363846, "dev": 40430, "test": 390965},
    "mnli": {
        "train": 392702,
        "dev_matched": 9815,
        "dev_mismatched": 9832,
        "test_matched": 9796,
        "test_mismatched": 9847,
    },
    "qnli": {"train": 104743, "dev": 5463, "test": 5463},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "wnli": {"train": 635, "dev": 71, "test": 146},
}


def is_installed() -> bool:
    """True if the packages that fetch and read the data set are there."""
    return all(map(importlib.util.find_spec, ("huggingface_hub", "pyarrow")))


def load(name: str) -> classification.TextTask:
    """A task of the hub, from the cache or fetched.

    Raises:
      ConnectionError: it cannot be fetched; says where to put the files by hand.
      ValueError: another number of examples than GLUE has.
    """
    folder = files.cache_dir() / "glue" / name
    if not _is_complete(name, folder):
        fetch(name, folder.parent)
    if not _is_complete(name, folder):
        raise ConnectionError(_by_hand(name, folder, "it does not have all files"))
    task = glue.load(name, folder)
    found = {split: len(task[split]) for split in task.splits}
    if found != SIZES[name]:
        raise ValueError(
            f"{folder} holds {found} examples, GLUE has {SIZES[name]}: the download was cut off or "
            "changed. Remove the folder and start again."
        )
    return task


def fetch(name: str, folder: pathlib.Path) -> None:
    """Downloads the Parquet files of one task into `folder`/`name`.

    Raises:
      ConnectionError: the hub cannot be reached, or does not give them.
    """
    if not files.may_fetch():
        raise ConnectionError(_by_hand(name, folder / name, "it was not asked: a run would"))
    import huggingface_hub

    logging.info("fetching task %s from the hub, %s (once)", name, REPOSITORY)
    try:
        huggingface_hub.snapshot_download(
            REPOSITORY,
            repo_type="dataset",
            allow_patterns=f"{name}/*.parquet",
            local_dir=folder,
        )
    except Exception as error:  # of whatever the hub's client is built on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConnectionError(_by_hand(name, folder / name, reason)) from error


def _is_complete(name: str, folder: pathlib.Path) -> bool:
    return all(glue.TASKS[name].source(folder, split) for split in SIZES[name])


def _by_hand(name: str, folder: pathlib.Path, reason: str) -> str:
    task = glue.TASKS[name]
    splits = [split for split in task.splits if not split.startswith("test")]
    own = " and ".join(task.splits[split][0].files[0] for split in splits)
    return (
        f"no data for task {name!r}, and the hub did not give {REPOSITORY} ({reason}). Without a "
        f"network, put the files of {name}/ from there into {folder}, or GLUE's own {own} into "
        f"FOLDER/{task.folder} and pass FOLDER as data_dir."
    )
