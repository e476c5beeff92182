"""The runs behind a table: their commands, and what they need that is not at hand."""

import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from configs.mpobert import finetune
from experiments import sources
from experiments.tables import counts, scores
from experiments.tables.schema import Column, Row, Table
from mpojax import data, files

# Commands that get data; "{task}" is a name of `mpojax.data.load_task`, DATA the folder of all.
_GLUE = (
    "hf download nyu-mll/glue --repo-type dataset --include '{task}/*.parquet' --local-dir "
    "{data}/glue"
)
_SQUAD = " && ".join(
    f"curl --create-dirs -o {{data}}/squad/{split}-v1.1.json "
    f"https://rajpurkar.github.io/SQuAD-explorer/dataset/{split}-v1.1.json"
    for split in ("train", "dev")
)
_WIKITEXT = (
    "curl -O https://wikitext.smerity.com/wikitext-2-v1.zip && unzip wikitext-2-v1.zip -d {data}"
)
MISSING = "Missing here (hf comes with pip install -e '.[hub]'):"
_OWN = "put text files (.txt or .jsonl) into {data}/{task}"
_GETTING = {"squad": _SQUAD, "wikitext2": _WIKITEXT, "news": _OWN, "imdb": _OWN}


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where runs are, and what they need.

    Attributes:
      workdir: of all runs.
      models: with checkpoint folders; empty: the hub's cache, and what configs say.
      data: with glue/, wikitext-2/, ...; empty: as `mpojax.data.load_task` finds it.
    """

    workdir: str = "runs"
    models: str = ""
    data: str = ""

    def of(self, cell: "Cell") -> pathlib.Path:
        """The folder of a run."""
        return files.at(self.workdir) / cell.name


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
      row: that it is of.
      label: of all rows that it fills.
      columns: that it fills.
      config: of the run.
      start: {field of the config: run whose saved model it names}.
      is_saved: whether another run starts from its model.
      seed: None for that of the config.
    """

    row: Row
    label: str
    columns: tuple[Column, ...]
    config: ml_collections.ConfigDict
    start: dict[str, "Cell"] = dataclasses.field(default_factory=dict)
    is_saved: bool = False
    seed: int | None = None

    @property
    def argument(self) -> str:
        """Argument of the config's file."""
        return self.row.argument(self.columns[0].task)

    @property
    def name(self) -> str:
        """Folder of the run below the workdir: albert/dense-sst2."""
        values = map(str, self.columns[0].fields.values())
        parts = [self.argument.replace(",", "-"), *values]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return f"{pathlib.PurePath(self.row.file).stem}/{'-'.join(filter(None, parts))}"

    @property
    def headers(self) -> str:
        """Headers of its columns."""
        return "all tasks" if self.row.is_joint else ", ".join(c.header for c in self.columns)

    @property
    def model(self) -> str:
        """Name of its model: the architecture, or for a model of ours the folder of its run."""
        return self.config.architecture or _name_of(self.config.model)


def of_table(table: Table) -> list[Cell]:
    """The runs of a table; each comes behind those whose models it starts from.

    Of two rows with one config, the one whose split we measure counts.
    """
    rows = _rows_to_run(table)
    starts = {label for row, _ in rows for label in row.start.values()}
    cells: list[Cell] = []
    found: dict[tuple[str, str], Cell] = {}
    # Rows that start from others come last: `found` has their starts by then.
    for row, labels in sorted(rows, key=lambda entry: bool(entry[0].start)):
        for columns in _columns_of_runs(row, table.run_columns):
            key = columns[0].run_key
            start = {field: found[label, key] for field, label in row.start.items()}
            config, is_saved = scores.load_config(row, columns[0]), bool(starts & {*labels})
            cells.append(Cell(row, ", ".join(labels), columns, config, start, is_saved))
            found |= {(label, key): cells[-1] for label in labels}
    return cells


def with_seed(cell: Cell, seed: int) -> Cell:
    """The run with another seed; so are those that it starts from."""
    start = {field: with_seed(other, seed) for field, other in cell.start.items()}
    return dataclasses.replace(cell, seed=seed, start=start)


def _rows_to_run(table: Table) -> list[tuple[Row, list[str]]]:
    """(row, labels of all rows with its config and split), the measured ones first."""
    rows = [row for row in table.rows if row.config and table.run_columns]
    chosen: dict[str, tuple[Row, list[str]]] = {}
    # False first: a row on the table's own split is the one that is kept.
    for row in sorted(rows, key=lambda row: row.split != table.split):
        known, labels = chosen.setdefault(row.config, (row, []))
        if known.split == row.split:
            labels.append(row.label)
    return list(chosen.values())


def _columns_of_runs(row: Row, columns: Sequence[Column]) -> list[tuple[Column, ...]]:
    """The columns that each run of a row fills."""
    if row.is_joint:
        return [tuple(columns)]
    runs: dict[str, list[Column]] = {}
    for column in columns:
        runs.setdefault(column.run_key, []).append(column)
    return list(map(tuple, runs.values()))


def overrides(cell: Cell, folders: Folders) -> dict[str, Any]:
    """{field: value} of what a run has otherwise than its config's file."""
    weights, _ = find_weights(cell.config.model, cell.model, folders, cell.row)
    fields = {"model": weights} if weights else {}
    fields |= {**cell.row.fields, **cell.columns[0].fields}
    fields |= {"save_model": True} if cell.is_saved else {}
    fields |= {name: str(folders.of(other) / "model") for name, other in cell.start.items()}
    fields |= {} if cell.seed is None else {"seed": cell.seed}
    return fields | ({"data_dir": folders.data} if folders.data else {})


def command(cell: Cell, folders: Folders) -> str:
    """The command line of a run."""
    fields = {f"config.{name}": value for name, value in overrides(cell, folders).items()}
    data_dir = {name: fields.pop(name) for name in ("config.data_dir",) if name in fields}
    flags = {"config": f"{cell.row.file}:{cell.argument}"} | fields
    flags |= {"workdir": folders.of(cell)} | data_dir
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join(["python", "-m", "experiments.train", *arguments])


def search_command(cell: Cell, folders: Folders) -> str:
    """The sweep over what the paper searched; empty where a row's settings are known."""
    if not cell.row.search:
        return ""
    config = cell.row.search.format(task=cell.columns[0].task)
    name = config.partition(":")[2].replace(",", "-")
    data_dir = f"--config.cell.data_dir={folders.data} " if folders.data else ""
    return (
        f"python -m experiments.sweep --config={config} {data_dir}"
        f"--workdir={folders.workdir}/search/{name}"
    )


def missing(cell: Cell, folders: Folders) -> dict[str, str]:
    """{what is not at hand: why, and the command that gets it}; empty for a run that can start."""
    _, weights = find_weights(cell.config.model, cell.model, folders, cell.row)
    problems = {f"weights of {cell.model}": weights}
    for column in cell.columns:
        problems[f"data of {column.task}"] = find_data(column.task, folders.data)
    return {what: problem for what, problem in problems.items() if problem}


@functools.cache
def find_data(name: str, data_dir: str) -> str:
    """Empty where a task, or plain texts in all their splits, can be loaded, else why not."""
    is_task = name in data.TASKS
    try:
        loaded = (data.load_task if is_task else data.load_texts)(name, data_dir or None)
        splits = [loaded[split] for split in (["train"] if is_task else ["train", "dev", "test"])]
    except (OSError, ValueError, ImportError) as error:
        return _with_command(error, name, data_dir)
    has_labels = not is_task or splits[0].labels is not None
    return "" if has_labels else "its training split has no labels"


def _with_command(error: Exception, task: str, data_dir: str) -> str:
    getting = _GETTING.get(task, _GLUE).format(task=task, data=data_dir or "DATA")
    then = "" if data_dir else "    (then --data_dir=DATA)"
    return f"{' '.join(str(error).split())}\n    {getting}{then}"


def find_weights(
    model: str, name: str, folders: Folders, row: Row | None = None
) -> tuple[str, str]:
    """(value of --config.model, or "" for the config's own; what is missing, or "").

    Nothing is downloaded: of hub ids only those in the local cache are there.

    Args:
      model: folder or hub id in a config.
      name: that its folder in `folders.models` may have: the architecture.
      row: that it is of, maybe one whose model we pre-train.
    """
    pretraining = pretraining_command(row, folders) if row else ""
    made = files.at(folders.workdir) / "pretrain" / name / "model"
    if folders.models:
        return _in_folder(model, name, folders.models, pretraining)
    if pretraining:
        if _is_model(made):
            return str(made), ""
        return "", f"there is no folder {made}; pre-train it\n    {pretraining}"
    try:
        # A hub id is OWNER/NAME, with one slash.
        is_path = model.count("/") != 1 or files.is_remote(model) or files.at(model).exists()
        if is_path or _in_hub_cache(model):
            sources.locate(model)
            return "", ""
    except (OSError, ValueError, ImportError) as error:
        return "", str(error)
    return "", f"{model} is not in the local hub cache\n    hf download {model}"


def _in_folder(model: str, name: str, folder: str, pretraining: str) -> tuple[str, str]:
    root, own = files.at(folder), _name_of(model)
    tried = [root / name, root / name / "model", root / own, root]
    for path in tried:
        # A folder of one model, without others in it, fits rows of that model alone.
        if (path != root or root.name in (name, own)) and _is_model(path):
            return str(path), ""
    get = pretraining or f"hf download {model} --local-dir {tried[0]}"
    return "", f"no config.json and safetensors in {tried[0]} or {tried[2]}\n    {get}"


def pretraining_command(row: Row, folders: Folders) -> str:
    """The command that makes the model of a row; empty for one that others released."""
    variant = finetune.VARIANTS.get(row.variant) if counts.is_mpobert(row) else None
    if variant is None or not variant.pretraining:
        return ""
    options = variant.pretraining.replace("=runs/", f"={folders.workdir}/")
    return f"python -m experiments.train {options} --config.corpus=CORPUS"


def _name_of(model: str) -> str:
    """NAME of `runs/pretrain/NAME/model`; else the last part of a path or hub id."""
    path = pathlib.PurePath(model)
    return path.parent.name if path.name == "model" else path.name


def _is_model(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _in_hub_cache(model: str) -> bool:
    try:
        import huggingface_hub
    except ImportError:
        return False
    names = ("config.json", "model.safetensors")
    return all(isinstance(huggingface_hub.try_to_load_from_cache(model, n), str) for n in names)


def listing(table: Table, folders: Folders) -> Iterator[str]:
    """Lines with the command of every run, and whether data and weights for it are at hand."""
    yield table.title
    problems: dict[str, str] = {}
    label = ""
    for cell in of_table(table):
        if cell.label != label:
            label = cell.label
            yield from ("", label, *_remarks(cell, table, folders))
        needs = missing(cell, folders)
        problems |= needs
        yield f"  {cell.headers}: {'needs ' + ' and '.join(needs) if needs else 'can run'}"
        yield f"    {command(cell, folders)}"
        if search := search_command(cell, folders):
            yield f"    the search: {search}"
    if problems:
        yield from ("", MISSING, *(f"  {what}: {why}" for what, why in problems.items()))
    yield from ("", f"The table: python -m experiments.table {table.name} {_options(table)}")


def _remarks(cell: Cell, table: Table, folders: Folders) -> Iterator[str]:
    if cell.row.split != table.split:
        yield (
            f"  Published on the {cell.row.split} set alone, whose labels are not public: the "
            "commands give scores that the table has no place for."
        )
    if made := pretraining_command(cell.row, folders):
        yield f"  The model: {made}"
    for field, other in cell.start.items():
        yield f"  config.{field}: the model of {other.label}, tuned on the same task."


def _options(table: Table) -> str:
    if table.name == "mpop_figure2":
        return "--model=FOLDER"
    return "--workdir=runs" if table.run_columns else ""
