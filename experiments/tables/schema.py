"""Published tables as data: `published/<name>.toml`, one file a table.

A file has `title`, `source`, `columns`, `[[rows]]` and, where they differ from the defaults, the
other fields of `Table`, `Column` and `Row`. Values are texts, so that the digits are the paper's.
"""

import dataclasses
import functools
import importlib
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from mpojax import checks
from mpojax.data.sources.glue import hub, splits

FOLDER = pathlib.Path(__file__).parent / "published"
PAPERS = ("mpop", "mpobert", "mpoe", "opdf")
# Sizes of the development sets (matched, for MNLI; questions, for SQuAD).
_DEVELOPMENT = {
    task: sizes.get("dev", sizes.get("dev_matched")) for task, sizes in hub.SIZES.items()
} | {"squad": 10_570}
# By the split that runs report; "test" is that of `mpojax.data.sources.glue.splits`.
EXAMPLES = {
    "dev": _DEVELOPMENT,
    "test": {
        # The whole development set, or half of it where the other half selects, as `splits` says.
        task: size if task in splits.HELD_OUT or task == "mnli" else size // 2
        for task, size in _DEVELOPMENT.items()
        if task not in ("wnli", "squad")
    },
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of scores.

    Attributes:
      task: of the runs; of runs on plain text, the name of the data set.
      header: as shown; with an arrow where lower is better, or higher is no merit.
      metric: of the runs, by its name in their results; "a+b" is the mean of two.
      fields: of the config, where a row has several runs of one task.
      part: name of the column, where one run fills several.
      split: that the metric is of.
      scale: factor between the metric and what is shown: 100 for fractions, shown in percent; 1 for
        a perplexity, and for BLEU, which is a percentage already.
    """

    task: str
    header: str
    metric: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: str = ""
    split: str = "dev"
    scale: float = 100.0

    @property
    def run_key(self) -> str:
        """Key of the run: the task, and the values of the fields: `sst2-10`."""
        return "-".join([self.task, *map(str, self.fields.values())])

    @property
    def key(self) -> str:
        """Key of a row's score: the run's, and the part: `sst2-10`, `news-bleu2`."""
        return f"{self.run_key}-{self.part}" if self.part else self.run_key


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      label: as printed.
      config: the config that runs it, `FILE:ARGUMENT` with `{task}` in the place of a column's
        task; without it, one run has all tasks. Empty for a model that this library does not have.
      scores: {key of a column: what is printed}.
      trained, total: #Pr and #To in millions.
      average: over all tasks.
      note: where a published value does not follow from shapes or scores, and why.
      split: that the published scores are of; ours are shown where the columns are of it too.
      tuned: fields of the config that the paper searched: the best of all settings counts.
      search: the sweep over them, as `config`.
      start: {field of the config: label of the row whose saved model it names}.
      fields: of the config, for all its runs.
    """

    label: str
    config: str = ""
    scores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained: str | None = None
    total: str | None = None
    average: str | None = None
    note: str = ""
    split: str = "dev"
    tuned: tuple[str, ...] = ()
    search: str = ""
    start: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """Path of the config's file."""
        return self.config.partition(":")[0]

    @property
    def variant(self) -> str:
        """Variant with which the argument of the config begins."""
        return self.config.partition(":")[2].partition(",")[0]

    @property
    def module(self) -> ModuleType:
        """The config's file, imported."""
        return importlib.import_module(self.file.removesuffix(".py").replace("/", "."))

    @property
    def is_joint(self) -> bool:
        """True if one run has all tasks."""
        return "{task}" not in self.config

    def argument(self, task: str) -> str:
        """Argument of the config, behind its colon."""
        return self.config.partition(":")[2].format(task=task)


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      name: of the file and of the page.
      title, source: of the page.
      columns, rows: in order.
      run_columns: those that are filled by runs, where the columns are not scores.
      split, scale: defaults of columns and rows.
      num_labels: of the classifier in our counts; 0: models without one.
      model: whose weights are analysed, where a table is not of runs.
      notes: sentences below the table.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    run_columns: tuple[Column, ...]
    split: str = "dev"
    scale: float = 100.0
    num_labels: int = 0
    model: str = ""
    notes: tuple[str, ...] = ()

    @property
    def has_average(self) -> bool:
        return any(row.average is not None for row in self.rows)

    @property
    def has_trained(self) -> bool:
        """A column #Pr, and counts in millions; else #To alone, to the last digit."""
        return any(row.trained is not None for row in self.rows)

    @property
    def digits(self) -> int:
        """Decimals of the printed scores, which ours are given, too."""
        return max(
            (len(s.partition(".")[2]) for row in self.rows for s in row.scores.values()), default=1
        )

    def row(self, label: str) -> Row:
        """The row of a label."""
        return next(row for row in self.rows if row.label == label)


def names() -> list[str]:
    """Names of all tables, paper by paper."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=_by_paper)


def find(name: str) -> list[str]:
    """The tables of a name: one, its parts (`mpoe_table1`), or all of a paper (`mpoe`).

    Raises:
      ValueError: there is none.
    """
    found = [known for known in names() if known == name or known.startswith(f"{name}_")]
    if not found:
        checks.check_names([name], names(), "tables of papers")
    return found


@functools.cache
def load(name: str) -> Table:
    """A table by its name.

    Raises:
      FileNotFoundError, ValueError: no such file, or one that is not as this module says.
    """
    path = FOLDER / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return _table(name, content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def _table(name: str, content: dict) -> Table:
    shared = {key: content[key] for key in ("split", "scale") if key in content}
    columns = _columns(content.pop("columns"), shared)
    run_columns = content.pop("run_columns", None)
    split = {"split": content.get("split", "dev")}
    rows = tuple(_row(split | row, columns) for row in content.pop("rows"))
    notes = tuple(content.pop("notes", ()))
    used = columns if run_columns is None else _columns(run_columns, shared)
    return Table(name, columns=columns, rows=rows, run_columns=used, notes=notes, **content)


def _columns(entries: Sequence[dict], shared: dict) -> tuple[Column, ...]:
    return tuple(Column(**shared, **entry) for entry in entries)


def _row(content: dict, columns: Sequence[Column]) -> Row:
    """Scores are a list, or one text with - where nothing is printed; one for each column."""
    scores = content.pop("scores")
    scores = scores.split() if isinstance(scores, str) else scores
    pairs = zip(columns, scores, strict=True)
    printed = {column.key: score for column, score in pairs if score not in ("", "-")}
    return Row(scores=printed, tuned=tuple(content.pop("tuned", ())), **content)


def _by_paper(name: str) -> tuple[int, str]:
    return PAPERS.index(name.partition("_")[0]), name
