"""Heads of several tasks in one saved model: the list of their columns next to its weights."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from mpojax import files
from mpojax.methods import multitask

_FILE = "tasks.json"


def read(folder: str | os.PathLike) -> tuple[multitask.TaskHead, ...]:
    """The columns of the tasks of a saved model; none for a model of one task.

    Raises:
      ValueError: a file that this library did not write.
    """
    path = files.at(folder) / _FILE
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(multitask.TaskHead(**entry) for entry in entries)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of tasks as this library writes it: {error}"
        ) from error


def write(folder: pathlib.Path, heads: Sequence[multitask.TaskHead]) -> None:
    """Writes the columns of the tasks next to the weights of a saved model."""
    entries = [dataclasses.asdict(head) for head in heads]
    files.write_atomic(folder / _FILE, json.dumps(entries, indent=1) + "\n")


def same_classes(known: Sequence[str], wanted: Sequence[str]) -> bool:
    """True if classes may be the same, in the same order; numbers are no names."""
    if not known or all(map(str.isdigit, known)) or all(map(str.isdigit, wanted)):
        return True
    return [name.lower() for name in known] == [name.lower() for name in wanted]


def renamed(
    tuned: Sequence[multitask.TaskHead], heads: Sequence[multitask.TaskHead]
) -> tuple[multitask.TaskHead, ...] | None:
    """Saved heads under the names that tasks have for their classes; None where they differ.

    They are the same if their columns are those of the tasks, class by class.
    """
    if [_columns(head) for head in tuned] != [_columns(head) for head in heads]:
        return None
    pairs = list(zip(tuned, heads, strict=True))
    if not all(same_classes(known.label_names, head.label_names) for known, head in pairs):
        return None
    return tuple(dataclasses.replace(known, label_names=h.label_names) for known, h in pairs)


def _columns(head: multitask.TaskHead) -> tuple:
    return head.task, head.kind, head.start, head.stop
