"""Layout of a table of scores: columns, rows, and how its runs are found and counted."""

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
# By the split that runs report; "test" is that of `mpojax.data.sources.glue_splits`.
EXAMPLES = {
    "dev": DEVELOPMENT_EXAMPLES,
    "test": {task: DEVELOPMENT_EXAMPLES[task] for task in ("sst2", "mnli", "qnli", "qqp")}
    | {task: DEVELOPMENT_EXAMPLES[task] // 2 for task in ("cola", "stsb", "mrpc", "rte")},
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of scores.

    Attributes:
      task: of the runs; of runs on plain text, the name of the texts.
      header: as shown; with an arrow where lower is better, or higher is no merit.
      metric: of the runs, by its name in their results; "a+b" is the mean of two.
      fields: of the config, where a row has several runs of one task.
      part: name of the column, where one run fills several.
      split: that the metric is of.
      scale: what the metric is multiplied with to be shown: 100 for shares of 1, which are shown in
        percent; 1 for a perplexity, and for BLEU, which is a percentage already.
    """

    task: str
    header: str
    metric: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: str = ""
    split: str = "dev"
    scale: float = 100.0

    @property
    def run_key(self) -> str:
        """Of the run: the task, and the values of the fields: `sst2-10`."""
        return "-".join([self.task, *map(str, self.fields.values())])

    @property
    def key(self) -> str:
        """Of a row's scores: the run's, and the part: `sst2-10`, `news-bleu2`."""
        return f"{self.run_key}-{self.part}" if self.part else self.run_key


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table of scores.

    Attributes:
      label: as printed.
      config, variant: the config file and the first half of its argument that run it; no config for
        a model that this library does not have.
      scores: {key of a column: what is printed}.
      trained, total: #Pr and #To in millions.
      average: over all tasks.
      note: where a published value does not follow from shapes or scores, and why.
      runner: module of `experiments` that runs it.
      joint: one run has all tasks.
      split: what the published scores are of; ours are shown where the columns are of it too.
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
    joint: bool = False
    split: str = "dev"
    tuned: tuple[str, ...] = ()

    def argument(self, task: str) -> str:
        """Argument behind the colon of the config's file."""
        return self.variant if self.joint else f"{self.variant},{task}"


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
      has_heads: counts are of classifiers for two labels.
      digits: decimals of our scores.
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
    has_heads: bool = True
    digits: int = 1
    notes: tuple[str, ...] = ()


def read_scores(columns: tuple[Column, ...], text: str) -> dict[str, str]:
    """{key: number} of a line of numbers, one for each column; "-" where nothing is printed."""
    values = text.split()
    pairs = zip(columns, values, strict=True)
    return {column.key: value for column, value in pairs if value != "-"}
