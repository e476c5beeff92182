"""The command of every row of a table, and whether it can run with what is at hand."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

from configs.mpobert import finetune
from experiments import sources
from experiments.tables import layout, scores
from mpojax import data

OTHERS = {
    "mpop_table1": (
        "python -m experiments.finetune --config=configs/mpop/bert.py:dense,sst2 "
        "--config.save_model=True --workdir=runs/bert/dense-sst2",
        "python -m experiments.table mpop_table1 --workdir=runs",
        "python -m experiments.table mpop_table1 --before=FOLDER --after=FOLDER",
    ),
    "mpop_table2": ("python -m experiments.table mpop_table2",),
    "mpop_figure2": ("python -m experiments.table mpop_figure2 --model=FOLDER",),
    "mpobert_table6": (
        f"python -m experiments.pretrain {finetune.VARIANTS['mpobert48plus'].pretraining} "
        "--config.corpus=CORPUS",
        "python -m experiments.table mpobert_table1 --list    # the runs of GLUE dev",
        "python -m experiments.table mpobert_table6 --workdir=runs",
    ),
    "mpobert_table7": ("python -m experiments.table mpobert_table7",),
}


def lines(
    name: str,
    tables: Mapping[str, layout.Table],
    model_dir: str,
    data_dir: str,
    workdir: str,
) -> list[str]:
    """Lines that `--list` prints for one table; `tables` are those of scores."""
    if name in OTHERS:
        return [f"{name}:", *(f"  {command}" for command in OTHERS[name])]
    found, problems = [], {}
    for row in _rows_to_run(tables[name]):
        found.append(f"\n{row.label}")
        if not _is_measured(row, tables[name]):
            found.append(
                f"  Published on the {row.split} set alone, whose labels are not public: the "
                "commands give scores that the table has no place for."
            )
        made_by = _pretraining(row)
        for columns in _runs_of(row, tables[name].columns):
            config = scores.load_config(row, columns[0])
            what = config.architecture or _made_name(config.model)
            model, weights = find_weights(config.model, what, model_dir)
            reasons = {f"weights of {what}": weights}
            find = find_texts if row.runner == "language_model" else find_data
            reasons |= {f"data of {c.task}": find(c.task, data_dir) for c in columns}
            missing = [what for what, reason in reasons.items() if reason]
            problems |= {what: reasons[what] for what in missing}
            command = scores.command(row, columns[0], model, workdir or "runs")
            command += f" --config.data_dir={data_dir}" if data_dir else ""
            state = "can run" if not missing else "needs " + " and ".join(missing)
            header = "all tasks" if row.joint else ", ".join(c.header for c in columns)
            found.append(f"  {header}: {state}\n    {command}")
            if row.tuned:
                found.append(f"    the search: {_search(row, columns[0], data_dir, workdir)}")
        found += [f"  The model: {made_by}"] if made_by else []
        if row.runner == "distill":
            found.append(
                "  Its teacher: run the first row with --config.save_model=True before, and add "
                "--config.teacher=ITS_WORKDIR/model."
            )
        if row.variant == "dir":
            found.append(
                "  As in the paper: run the dense row with --config.save_model=True before, and "
                "add --config.init_checkpoint=ITS_WORKDIR/model."
            )
    if problems:
        found += ["\nMissing here:", *(f"  {what}: {why}" for what, why in problems.items())]
    return [tables[name].title, *found]


def _rows_to_run(table: layout.Table) -> Sequence[layout.Row]:
    """One row for each config: of two published rows, the one whose split we measure."""
    measured = [row for row in table.rows if row.config and _is_measured(row, table)]
    others = [row for row in table.rows if row.config and not _is_measured(row, table)]
    # The last of equal keys counts; the keys stand in the order of the measured rows.
    chosen = {(row.config, row.variant): row for row in measured}
    return [*chosen.values(), *(r for r in others if (r.config, r.variant) not in chosen)]


def _is_measured(row: layout.Row, table: layout.Table) -> bool:
    return row.split == table.columns[0].split


def _runs_of(row: layout.Row, columns: Sequence[layout.Column]) -> list[Sequence[layout.Column]]:
    """The columns that each run of a row fills."""
    if row.joint:
        return [columns]
    runs: dict[str, list[layout.Column]] = {}
    for column in columns:
        runs.setdefault(column.run_key, []).append(column)
    return list(runs.values())


def _pretraining(row: layout.Row) -> str:
    """The command that makes the model of an MPOBERT row; empty for others."""
    variant = finetune.VARIANTS.get(row.variant) if "mpobert" in row.config else None
    if variant is None or not variant.pretraining:
        return ""
    return f"python -m experiments.pretrain {variant.pretraining} --config.corpus=CORPUS"


def _made_name(model: str) -> str:
    """What to call a model that is no preset: of `runs/pretrain/NAME/model`, the name."""
    path = pathlib.PurePath(model)
    return path.parent.name if path.name == "model" else path.name


def _search(row: layout.Row, column: layout.Column, data_dir: str, workdir: str) -> str:
    argument = row.argument(column.task)
    return (
        f"python -m experiments.sweep --config=configs/sweeps/mpobert48.py:{argument} "
        + (f"--config.cell.data_dir={data_dir} " if data_dir else "")
        + f"--workdir={workdir or 'runs'}/search/{argument.replace(',', '-')}"
    )


@functools.cache
def find_data(task: str, data_dir: str) -> str:
    """Empty where the task can be loaded, else why not."""
    try:
        loaded = data.load_task(task, data_dir or None)
    except (OSError, ValueError, ImportError) as error:
        return " ".join(str(error).split())
    return "" if loaded["train"].labels is not None else "its training split has no labels"


@functools.cache
def find_texts(name: str, data_dir: str) -> str:
    """Empty where texts can be loaded in all their splits, else why not."""
    try:
        loaded = data.load_texts(name, data_dir or None)
        for split in ("train", "dev", "test"):
            loaded[split]
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def find_weights(model: str, architecture: str, model_dir: str) -> tuple[str, str]:
    """(value of --config.model, or "" for the config's own; what is missing, or "").

    `architecture` is the name that its folder in `model_dir` may have. Nothing is downloaded: of
    hub ids only those in the local cache are there.
    """
    name = _made_name(model)
    if model_dir:
        root = pathlib.Path(model_dir).expanduser()
        tried = [root / architecture, root / architecture / "model", root / name, root]
        for folder in tried:
            # A folder of one model, without others in it, fits rows of that model alone.
            named = folder != root or root.name in (architecture, name)
            if named and (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
                return str(folder), ""
        return "", f"no config.json and safetensors in {tried[0]} or {tried[2]}"
    if not model or pathlib.Path(model).expanduser().exists() or model.startswith("package:"):
        try:
            sources.locate(model)
        except (OSError, ValueError, ImportError) as error:
            return "", str(error)
        return "", ""
    if model.count("/") != 1:
        return "", f"there is no folder {model}; pre-train it, or pass --model_dir=FOLDER"
    if _in_hub_cache(model):
        return "", ""
    return "", f"{model} is not in the local hub cache; pass --model_dir=FOLDER or download it"


def _in_hub_cache(model: str) -> bool:
    try:
        import huggingface_hub
    except ImportError:
        return False
    names = ("config.json", "model.safetensors")
    return all(isinstance(huggingface_hub.try_to_load_from_cache(model, n), str) for n in names)
