"""The command of every row of a table, and whether it can run with what is at hand."""

import functools
import pathlib
from collections.abc import Sequence

from experiments import sources
from experiments.tables import published, scores
from mpojax import data

_OTHERS = {
    "mpop_table1": (
        "python -m experiments.finetune --config=configs/mpop/bert.py:dense,sst2 "
        "--config.save_model=True --workdir=runs/bert/dense-sst2",
        "python -m experiments.table mpop_table1 --workdir=runs",
        "python -m experiments.table mpop_table1 --before=FOLDER --after=FOLDER",
    ),
    "mpop_table2": ("python -m experiments.table mpop_table2",),
    "mpop_figure2": ("python -m experiments.table mpop_figure2 --model=FOLDER",),
}


def lines(name: str, model_dir: str, data_dir: str, workdir: str) -> list[str]:
    """What `--list` prints for one table."""
    if name in _OTHERS:
        return [f"{name}:", *(f"  {command}" for command in _OTHERS[name])]
    table = published.SCORES[name]
    found, problems = [], {}
    for row in _rows_to_run(table):
        found.append(f"\n{row.label}")
        for task, header, _ in table.tasks:
            config = scores.load_config(row, task)
            model, weights = find_weights(config.model, config.architecture, model_dir)
            reasons = {
                f"weights of {config.architecture}": weights,
                f"data of {task}": find_data(task, data_dir),
            }
            missing = [what for what, reason in reasons.items() if reason]
            problems |= {what: reasons[what] for what in missing}
            command = scores.command(row, task, model, workdir or "runs")
            command += f" --config.data_dir={data_dir}" if data_dir else ""
            state = "can run" if not missing else "needs " + " and ".join(missing)
            found.append(f"  {header}: {state}\n    {command}")
        if row.variant == "dir":
            found.append(
                "  As in the paper: run the dense row with --config.save_model=True before, and "
                "add --config.start_from=ITS_WORKDIR/model."
            )
    if problems:
        found += ["\nMissing here:", *(f"  {what}: {why}" for what, why in problems.items())]
    return [table.title, *found]


def _rows_to_run(table: published.Table) -> Sequence[published.Row]:
    """One row for each config: two published rows may have the same."""
    return {(row.config, row.variant): row for row in table.rows}.values()


@functools.cache
def find_data(task: str, data_dir: str) -> str:
    """Empty where the task can be loaded, else why not."""
    try:
        loaded = data.load_task(task, data_dir or None)
    except (OSError, ValueError, ImportError) as error:
        return " ".join(str(error).split())
    return "" if loaded["train"].labels is not None else "its training split has no labels"


def find_weights(model: str, architecture: str, model_dir: str) -> tuple[str, str]:
    """(value of --config.model, or "" for the config's own; what is missing, or "").

    Nothing is downloaded: of hub ids only those in the local cache are there.
    """
    name = model.rpartition("/")[2]
    if model_dir:
        root = pathlib.Path(model_dir).expanduser()
        tried = [root / architecture, root / name, root]
        for folder in tried:
            # A folder of one model, without others in it, fits rows of that model alone.
            named = folder != root or root.name in (architecture, name)
            if named and (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
                return str(folder), ""
        return "", f"no config.json and safetensors in {tried[0]} or {tried[1]}"
    if not model or pathlib.Path(model).is_dir() or model.startswith("package:"):
        try:
            sources.model_folder(model)
        except (OSError, ValueError, ImportError) as error:
            return "", str(error)
        return "", ""
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
