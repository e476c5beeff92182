"""A few examples of a task, drawn so that runs can be compared."""

import hashlib

import numpy as np

from mpojax.data.text import classification as text_classification


def few_shot(
    task: text_classification.TextTask,
    split: text_classification.Split,
    shots: int,
    draw: int = 0,
) -> text_classification.Split:
    """`shots` examples of every class of a split; of a task without classes, `shots` in all.

    A pure function of the task's name, the split, `shots` and `draw`. Of one draw, more shots give
    the same examples and further ones; draws are independent.

    Args:
      task: of the split.
      split: labelled examples.
      shots: at least 1.
      draw: which draw, from 0.

    Raises:
      ValueError: a number out of range, no labels, or a class with too few examples.
    """
    if shots < 1 or draw < 0:
        raise ValueError(f"shots={shots} must be at least 1, and draw={draw} at least 0")
    if split.labels is None:
        raise ValueError(f"the split of task {task.name!r} has no labels to draw examples by")
    groups = {"all": np.arange(len(split))}
    if task.kind == "classification":
        groups = {
            name: np.flatnonzero(split.labels == number)
            for number, name in enumerate(task.label_names)
        }
    few = {name: len(places) for name, places in groups.items() if len(places) < shots}
    if few:
        raise ValueError(
            f"shots={shots}: task {task.name!r} has too few examples of {few}; ask for at most "
            f"{min(few.values())}"
        )
    word = int.from_bytes(hashlib.sha256(task.name.encode("utf-8")).digest()[:8], "big")
    chosen = [
        np.random.default_rng([word, draw, number]).permutation(places)[:shots]
        for number, places in enumerate(groups.values())
    ]
    return split.select(np.sort(np.concatenate(chosen)))
