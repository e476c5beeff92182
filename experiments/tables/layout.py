"""What a table of scores is made of: columns, rows, and how its runs are found and counted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Sizes of the development sets (matched, for MNLI; questions, for SQuAD).
DEVELOPMENT_EXAMPLES = {
    "sst2": 872,
    "mnli": 9815,
    "qnli": 5463,
    "cola": 1043,
    "stsb": 1500,
    "qqp": 40_430,
    "mrpc": 408,
    "rte": 277,
    "wnli": 71,
    "squad": 10_570,
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of scores.

    Attributes:
      task: of the runs.
      header: as shown.
      metric: of the runs, a share of 1.
      fields: of the config, where a row has several columns of one task.
    """

    task: str
    header: str
    metric: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of a row's scores: the task, and the values of the fields: `sst2-10`."""
        return "-".join([self.task, *map(str, self.fields.values())])


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table of scores.

    Attributes:
      label: as printed.
      config, variant: the config file and the first half of its argument that run it; no config for
        a model that this library does not have.
      scores: {key of a column: percent}.
      trained, total: #Pr and #To in millions.
      average: over all tasks.
      note: where a published value does not follow from shapes or scores, and why.
      runner: module of `experiments` that runs it; "multitask" has all tasks in one run.
      split: what the published scores are of; ours are of development sets always.
      tuned: fields of the config that the paper searched: the best of all settings counts.
    """

    label: str
    config: str
    variant: str
    scores: Mapping[str, str]
    trained: str | None = None
    total: str | None = None
    average: str | None = None
    note: str = ""
    runner: str = "finetune"
    split: str = "dev"
    tuned: tuple[str, ...] = ()

    def argument(self, task: str) -> str:
        """What follows the colon behind the config's file."""
        return self.variant if self.runner == "multitask" else f"{self.variant},{task}"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of scores.

    Attributes:
      name, title: of the page.
      source: the paper.
      columns, rows: in order.
      has_average: a column of means.
      has_trained: a column #Pr, and counts in millions; else #To alone, to the last digit.
      counts: of a row's variant, {"total", "trainable"}; None: by the row's config.
      notes: sentences below the table.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    has_average: bool = False
    has_trained: bool = True
    counts: Callable[[str], Mapping[str, int]] | None = None
    notes: tuple[str, ...] = ()


def read_scores(columns: tuple[Column, ...], text: str) -> dict[str, str]:
    """{key: number} of a line of numbers, one for each column; "-" where nothing is printed."""
    values = text.split()
    pairs = zip(columns, values, strict=True)
    return {column.key: value for column, value in pairs if value != "-"}
