"""GLUE with labels in all three splits, so that models are never chosen by what they report.

The test sets of GLUE have no public labels. As in "Parameter-Efficient Mixture-of-Experts
Architecture for Pre-trained Language Models" (Gao et al. 2022, section 4.1) and its code:

    RTE, MRPC, STS-B, CoLA (and WNLI)   the development set, cut in half: dev and test
    QQP, QNLI, SST-2                    1,000 training examples as dev, the development set as test
    MNLI                                dev_mismatched as dev, dev_matched as test

Results are not comparable with GLUE's leaderboard.
"""

import dataclasses

from mpojax.data.sources.glue import files as glue
from mpojax.data.text import classification

HALVED = ("rte", "mrpc", "stsb", "cola", "wnli")
HELD_OUT = ("qqp", "qnli", "sst2")


def paper_splits(
    task: classification.TextTask, held_out: int = 1000, seed: int = 0
) -> classification.TextTask:
    """The task with the splits train, dev and test of the module, all with labels.

    STS-B is judged by Pearson's correlation first, as in the paper.

    Args:
      task: a GLUE task as `load_task` gives it.
      held_out: training examples that become dev.
      seed: of what is sampled; the same for all runs that are compared.

    Raises:
      ValueError: not a GLUE task, or too few examples.
    """
    if task.name not in glue.TASKS:
        raise ValueError(
            f"task {task.name!r} has no splits of the paper; allowed are {list(glue.TASKS)}"
        )
    train = task["train"]
    if task.name == "mnli":
        dev, test = task["dev_mismatched"], task["dev_matched"]
    elif task.name in HALVED:
        dev, test = task["dev"].split_off(len(task["dev"]) // 2, seed)
    else:
        test = task["dev"]
        train, dev = train.split_off(held_out, seed)
    metrics = ("pearson", "spearman") if task.name == "stsb" else task.metrics
    return dataclasses.replace(
        task, splits={"train": train, "dev": dev, "test": test}, metrics=metrics, dev_split="dev"
    )
