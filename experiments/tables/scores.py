"""Tables of scores: two lines for each row, the published one and ours."""

import bisect
import importlib
import pathlib
import statistics
from collections.abc import Sequence

import ml_collections

from configs.mpop import rows as rows_lib
from experiments.tables import published, results
from experiments.tables.page import Page
from mpojax import interop, models


def build(table: published.Table, runs: Sequence[results.Run]) -> Page:
    """The page of one table: scores from runs, counts from shapes (or runs, where squeezed)."""
    columns = ["row", ""] + (["avg"] if table.has_average else [])
    columns += [header for _, header, _ in table.tasks] + ["#Pr (M)", "#To (M)"]
    shown, records, notes = [], [], list(table.notes)
    for row in table.rows:
        configs = {task: load_config(row, task) for task, _, _ in table.tasks}
        ours = {t: results.score(runs, configs[t], metric) for t, _, metric in table.tasks}
        trained, total, note = _counts(configs, ours)
        shown.append(_published_line(table, row))
        shown.append(_our_line(table, row, ours, trained, total))
        for task, _, metric in table.tasks:
            records.append(_record(row, task, metric, ours[task], trained, total))
            if ours[task] is not None and ours[task].differs:
                notes.append(
                    f"* {row.label}, {task}: not the row's config: {'; '.join(ours[task].differs)}."
                )
            notes += _examples_note(row, task, ours[task])
        if row.note:
            notes.append(f"{row.label}: {row.note}")
        if note:
            notes.append(f"{row.label}: {note}")
    notes.append(
        "#Pr: numbers that are trained; #To: all. Ours: from shapes, for two labels. Scores in "
        "percent, mean ± sample standard deviation over seeds; empty: not run."
    )
    return Page(table.name, table.title, published.MPOP, columns, shown, records, notes)


def load_config(row: published.Row, task: str) -> ml_collections.ConfigDict:
    """The config that runs one row on one task."""
    module = row.config.removesuffix(".py").replace("/", ".")
    return importlib.import_module(module).get_config(f"{row.variant},{task}")


def command(row: published.Row, task: str, model: str = "", workdir: str = "runs") -> str:
    """The command line of one row and task."""
    name = f"{pathlib.PurePath(row.config).stem}/{row.variant}-{task}"
    return (
        f"python -m experiments.finetune --config={row.config}:{row.variant},{task}"
        + (f" --config.model={model}" if model else "")
        + f" --workdir={workdir}/{name}"
    )


def planned_counts(config: ml_collections.ConfigDict) -> tuple[dict[str, int], int | None]:
    """Counts of a config, and the cap behind them where a budget leaves the bonds open.

    With a budget the bonds follow from the weights. Without them the best guess is one cap for all
    matrices: the largest at which the model fits the budget.
    """
    budget = config.squeeze.get("budget") or config.budget
    if budget is None:
        return rows_lib.counts(config), None
    architecture = models.PRESETS[config.architecture]
    rules = [(pattern, dict(settings)) for pattern, settings in config.rules]

    def chains(cap: int | None) -> int:
        shapes = interop.planned_shapes(architecture, rules, bond=cap)
        return sum(shape.num_params for shape in shapes.values())

    full = interop.planned_shapes(architecture, rules)
    rest = rows_lib.counts(config)["total"] - chains(None)
    if budget <= 1:
        budget *= rest + sum(shape.num_dense_params for shape in full.values())
    caps = range(1, max(max(shape.bond_dims) for shape in full.values()) + 1)
    fitting = bisect.bisect_right(caps, budget, key=lambda cap: rest + chains(cap))
    if fitting == 0:
        raise ValueError(f"a budget of {budget:,.0f} is too small for {config.architecture}.")
    return rows_lib.counts(config, caps[fitting - 1]), caps[fitting - 1]


def millions(count: float, like: str | None) -> str:
    """A count in millions with as many decimals as the published text has (one where none)."""
    digits = 1 if like is None else len(like.partition(".")[2])
    return f"{count / 1e6:.{digits}f}"


def _counts(configs, ours) -> tuple[float, float, str]:
    """Trained and total numbers, mean over tasks where they depend on the task; a note."""
    squeezed = any(c.squeeze.get("budget") or c.budget is not None for c in configs.values())
    if squeezed and (done := [score for score in ours.values() if score is not None]):
        trained = statistics.fmean(score.trained for score in done)
        total = statistics.fmean(score.total for score in done)
        return trained, total, f"#Pr/#To as squeezed in our runs, mean of {len(done)} task(s)."
    distinct = {_count_key(config): config for config in configs.values()}
    found = {key: planned_counts(config) for key, config in distinct.items()}
    every = [found[_count_key(config)] for config in configs.values()]
    note = ""
    if any(cap is not None for _, cap in every):
        caps = sorted({cap for _, cap in every if cap is not None})
        note = (
            "#Pr/#To before it is run: at the largest single cap within the budget "
            f"({', '.join(map(str, caps))}); squeezing chooses the bonds by the weights."
        )
    elif len(found) > 1:
        note = "#Pr/#To: caps differ between tasks; the most frequent count is shown."
    totals = [counts["total"] for counts, _ in every]
    typical = max(every, key=lambda entry: totals.count(entry[0]["total"]))[0]
    return typical["trainable"], typical["total"], note


def _examples_note(row, task: str, score: results.Score | None) -> list[str]:
    size = published.GLUE_DEVELOPMENT_EXAMPLES[task]
    if score is None or score.examples in (None, size):
        return []
    return [
        f"{row.label}, {task}: measured on {score.examples:,} examples; GLUE's development set has "
        f"{size:,}."
    ]


def _count_key(config) -> str:
    return str((config.rules, config.budget, config.squeeze.get("budget"), config.trainable))


def _published_line(table, row) -> list[str]:
    average = [row.average or ""] if table.has_average else []
    scores = [row.scores.get(task, "") for task, _, _ in table.tasks]
    return [row.label, "published", *average, *scores, row.trained or "", row.total or ""]


def _our_line(table, row, ours, trained: float, total: float) -> list[str]:
    average = []
    if table.has_average:
        done = [score.mean for score in ours.values() if score is not None]
        average = [f"{100 * statistics.fmean(done):.1f}" if len(done) == len(ours) else ""]
    scores = [_score_text(ours[task]) for task, _, _ in table.tasks]
    counts = [millions(trained, row.trained), millions(total, row.total)]
    return ["", "ours", *average, *scores, *counts]


def _score_text(score: results.Score | None) -> str:
    if score is None:
        return ""
    text = f"{100 * score.mean:.1f}"
    text += "" if score.spread is None else f" ± {100 * score.spread:.1f}"
    return text + ("*" if score.differs else "")


def _record(row, task, metric, score, trained, total) -> dict:
    return {
        "row": row.label,
        "config": f"{row.config}:{row.variant},{task}",
        "task": task,
        "metric": metric,
        "published": row.scores.get(task),
        "ours": score and 100 * score.mean,
        "ours_std": None if score is None or score.spread is None else 100 * score.spread,
        "seeds": score.seeds if score else 0,
        "examples": score and score.examples,
        "own_config": score and not score.differs,
        "published_trained_millions": row.trained,
        "trained": round(trained),
        "published_total_millions": row.total,
        "total": round(total),
    }
