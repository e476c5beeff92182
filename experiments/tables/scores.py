"""Tables of scores: two lines for each row, the published one and ours."""

import bisect
import importlib
import pathlib
import statistics
from collections.abc import Callable, Sequence

import ml_collections

from configs.mpobert import finetune
from configs.mpop import rows as rows_lib
from experiments import jobs
from experiments.tables import layout, results
from experiments.tables.page import Page
from mpojax import compression, models

_NOT_HERE = "published only"


def build(table: layout.Table, runs: Sequence[results.Run]) -> Page:
    """The page of one table: scores from runs, counts from shapes (or runs, where squeezed)."""
    columns = ["row", ""] + (["avg"] if table.has_average else [])
    columns += [column.header for column in table.columns]
    columns += ["#Pr (M)", "#To (M)"] if table.has_trained else ["#To"]
    shown, records, notes = [], [], list(table.notes)
    for row in table.rows:
        shown.append(_published_line(table, row))
        if row.note:
            notes.append(f"{row.label}: {row.note}")
        if not row.config:
            records += [_record(row, column, None, None, None) for column in table.columns]
            continue
        configs = {column.key: load_config(row, column) for column in table.columns}
        ours = {
            column.key: _score(row, column, runs, configs[column.key]) for column in table.columns
        }
        trained, total, note = _counts(table, row, configs, ours)
        shown.append(_our_line(table, row, ours, trained, total))
        for column in table.columns:
            score = ours[column.key]
            records.append(_record(row, column, score, trained, total))
            notes += _notes_on(row, column, score)
        if note:
            notes.append(f"{row.label}: {note}")
    if any(not row.config for row in table.rows):
        notes.append(f"{_NOT_HERE}: this library has no such model.")
    notes.append(_legend(table))
    return Page(table.name, table.title, table.source, columns, shown, records, notes)


def _legend(table: layout.Table) -> str:
    what = "#Pr: trained parameters; #To: all." if table.has_trained else "#To: all parameters."
    heads = ", for two labels" if table.has_heads else ""
    plain = any(column.scale == 1 for column in table.columns)
    unit = "Perplexities as they are, other scores in percent" if plain else "Scores in percent"
    return (
        f"{what} Ours: from shapes{heads}. {unit}, mean ± sample standard deviation over seeds; "
        "empty: not run."
    )


def load_config(row: layout.Row, column: layout.Column) -> ml_collections.ConfigDict:
    """The config that runs one row on the task of one column."""
    module = row.config.removesuffix(".py").replace("/", ".")
    config = importlib.import_module(module).get_config(row.argument(column.task))
    config.update(column.fields)
    return config


def command(row: layout.Row, column: layout.Column, model: str = "", workdir: str = "runs") -> str:
    """The command line of one row and column."""
    name = row.variant if row.joint else f"{row.variant}-{column.run_key}"
    fields = "".join(f" --config.{field}={value}" for field, value in column.fields.items())
    return (
        f"python -m experiments.{row.runner} --config={row.config}:{row.argument(column.task)}"
        + (f" --config.model={model}" if model else "")
        + f"{fields} --workdir={workdir}/{pathlib.PurePath(row.config).stem}/{name}"
    )


def average(row: layout.Row, columns: Sequence[layout.Column], runs) -> float | None:
    """Mean of ours over all columns, shares of 1, in percent; None where a run is missing."""
    found = [_score(row, column, runs, load_config(row, column)) for column in columns]
    return None if None in found else 100 * statistics.fmean(score.mean for score in found)


def _score(row, column, runs, config) -> results.Score | None:
    if row.split != column.split:
        return None
    return results.score(
        runs,
        config,
        column.metric,
        column.task,
        row.tuned,
        column.split,
        model=_sizes(row, config),
        total=_total(row, config),
    )


def _sizes(row: layout.Row, config: ml_collections.ConfigDict) -> dict[str, int]:
    """Sizes of the row's model; nothing where they are unknown."""
    if "mpobert" in row.config:
        return jobs.sizes(finetune.encoder(row.variant)[0])
    known = {**models.PRESETS, **models.LANGUAGE_PRESETS}
    found = jobs.sizes(known.get(config.architecture))
    if student := config.get("student_layers"):
        found["num_layers"] = len(student)
    return found


def _total(row: layout.Row, config: ml_collections.ConfigDict) -> Callable[[], int] | None:
    """How many parameters the row's model has, where that is fixed beforehand."""
    if "mpobert" in row.config:
        return lambda: finetune.counts(row.variant)["total"]
    if row.runner != "finetune" or config.budget is not None or config.squeeze.get("budget"):
        return None
    return lambda: planned_counts(config)[0]["total"]


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
        shapes = compression.planned_shapes(architecture, rules, bond=cap)
        return sum(shape.num_params for shape in shapes.values())

    full = compression.planned_shapes(architecture, rules)
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


def _counts(table, row, configs, ours) -> tuple[float, float, str]:
    """Trained and total parameters, mean over tasks where they depend on the task; a note."""
    if table.counts is not None:
        counts = table.counts(row.variant)
        return counts["trainable"], counts["total"], ""
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


def _notes_on(row, column, score: results.Score | None) -> list[str]:
    if score is None:
        return []
    where, found = f"{row.label}, {column.key}", []
    if score.differs:
        found.append(f"* {where}: not the row's config: {'; '.join(score.differs)}.")
    size = layout.EXAMPLES[column.split].get(column.task)
    if None not in (size, score.examples) and score.examples != size:
        if column.split == "test":
            whole = "the test split of the paper"
        else:
            whole = f"{'SQuAD' if column.task == 'squad' else 'GLUE'}'s development set"
        found.append(f"{where}: measured on {score.examples:,} examples; {whole} has {size:,}.")
    if row.tuned and score.settings > 1:
        found.append(f"{where}: the best of {score.settings} settings on the data of the score.")
    return found


def _count_key(config) -> str:
    return str((config.rules, config.budget, config.squeeze.get("budget"), config.trainable))


def _published_line(table, row) -> list[str]:
    average = [row.average or ""] if table.has_average else []
    scores = [row.scores.get(column.key, "") for column in table.columns]
    if table.has_trained:
        counts = [row.trained or "", row.total or ""]
    else:
        counts = [f"{row.total} M" if row.total else ""]
    what = "published" if row.config else _NOT_HERE
    return [row.label, what, *average, *scores, *counts]


def _our_line(table, row, ours, trained: float, total: float) -> list[str]:
    average = []
    if table.has_average:
        done = [score.mean for score in ours.values() if score is not None]
        mean = f"{100 * statistics.fmean(done):.{table.digits}f}" if len(done) == len(ours) else ""
        average = [mean]
    scores = [_score_text(ours[column.key], column, table.digits) for column in table.columns]
    if table.has_trained:
        counts = [millions(trained, row.trained), millions(total, row.total)]
    else:
        counts = [f"{total:,}"]
    return ["", "ours", *average, *scores, *counts]


def _score_text(score: results.Score | None, column: layout.Column, digits: int) -> str:
    if score is None:
        return ""
    text = f"{column.scale * score.mean:.{digits}f}"
    text += "" if score.spread is None else f" ± {column.scale * score.spread:.{digits}f}"
    return text + ("*" if score.differs else "")


def _record(row, column, score, trained: float | None, total: float | None) -> dict:
    return {
        "row": row.label,
        "config": f"{row.config}:{row.argument(column.task)}" if row.config else "",
        "task": column.key,
        "split": row.split,
        "metric": column.metric,
        "published": row.scores.get(column.key),
        "ours": score and column.scale * score.mean,
        "ours_std": None if score is None or score.spread is None else column.scale * score.spread,
        "seeds": score.seeds if score else 0,
        "examples": score and score.examples,
        "own_config": score and not score.differs,
        "published_trained_millions": row.trained,
        "trained": trained and round(trained),
        "published_total_millions": row.total,
        "total": total and round(total),
    }
