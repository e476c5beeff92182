"""Tables of scores: published values joined with ours, two lines for each row."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from experiments.render import frames
from experiments.tables import counts, results
from experiments.tables.page import Page
from experiments.tables.schema import EXAMPLES, Column, Row, Table

if TYPE_CHECKING:
    import pandas as pd

NOT_HERE = "published only"
# Types of the columns that may lack values: integers stay integers.
_TYPES = {"ours": float, "ours_std": float} | dict.fromkeys(
    ("seeds", "examples", "trained", "total"), "Int64"
)
Scores = Mapping[str, results.Score | None]  # by the keys of the columns


def build(table: Table, runs: Sequence[results.Run]) -> Page:
    """The page of one table: scores from runs, counts from shapes (or runs, where squeezed)."""
    rows = [row for row in table.rows if row.config]
    configs = {row.label: [load_config(row, column) for column in table.columns] for row in rows}
    scores = {row.label: _scores(table, row, configs[row.label], runs) for row in rows}
    counted = {
        row.label: counts.of_row(row, configs[row.label], [*scores[row.label].values()])
        for row in rows
    }
    frame = join(table, scores, counted)
    shown, notes = [], list(table.notes)
    for row in table.rows:
        lines = frame[frame.row == row.label]
        shown.append(_published_line(table, row, lines))
        notes += [f"{row.label}: {row.note}"] if row.note else []
        if row.config:
            trained, total, note = counted[row.label]
            shown.append(_our_line(table, row, scores[row.label], trained, total))
            pairs = zip(table.columns, scores[row.label].values(), strict=True)
            notes += itertools.chain.from_iterable(_notes_on(row, *pair) for pair in pairs)
            notes += [f"{row.label}: {note}"] if note else []
    if len(rows) < len(table.rows):
        notes.append(f"{NOT_HERE}: this library has no such model.")
    notes.append(_legend(table))
    return Page(table, _headers(table), shown, frame, notes)


def join(
    table: Table,
    scores: Mapping[str, Scores],
    counted: Mapping[str, tuple[float, float, str]],
) -> "pd.DataFrame":
    """One record for each row and column: published, measured, and counted.

    Args:
      scores: by the labels of rows that have runs.
      counted: (trained, total, note) by label.
    """
    published = [_published(row, column) for row in table.rows for column in table.columns]
    measured = [
        {"row": label, "task": column.key} | _measured(column, found[column.key])
        for label, found in scores.items()
        for column in table.columns
    ]
    sizes = [
        {"row": label, "trained": round(trained), "total": round(total)}
        for label, (trained, total, _) in counted.items()
    ]
    frame = frames.of(published)
    # Rows without runs have NaN here.
    frame = frame.merge(frames.of(measured), "left", ["row", "task"], validate="1:1")
    frame = frame.merge(frames.of(sizes), "left", "row", validate="m:1")
    return frame.fillna({"seeds": 0}).astype(_TYPES)


def _published(row: Row, column: Column) -> dict[str, Any]:
    return {
        "row": row.label,
        "config": f"{row.file}:{row.argument(column.task)}" if row.config else "",
        "task": column.key,
        "split": row.split,
        "metric": column.metric,
        "published": row.scores.get(column.key),
        "published_trained_millions": row.trained,
        "published_total_millions": row.total,
    }


def _measured(column: Column, score: results.Score | None) -> dict[str, Any]:
    if score is None:
        return dict.fromkeys(("ours", "ours_std", "seeds", "examples", "own_config"))
    return {
        "ours": column.scale * score.mean,
        "ours_std": None if score.stddev is None else column.scale * score.stddev,
        "seeds": score.seeds,
        "examples": score.examples,
        "own_config": not score.differs,
    }


def load_config(row: Row, column: Column) -> ml_collections.ConfigDict:
    """The config that runs one row on the task of one column."""
    config = row.module.get_config(*filter(None, [row.argument(column.task)]))
    config.update({**row.start, **row.fields, **column.fields})
    return config


def average(
    row: Row, columns: Sequence[Column], runs: Sequence[results.Run], scale: float = 100.0
) -> float | None:
    """Mean of ours over all columns, in percent; None where a run is missing."""
    found = [_score(row, column, load_config(row, column), runs) for column in columns]
    return _mean(found, scale)


def _mean(scores: Sequence[results.Score | None], scale: float) -> float | None:
    return None if None in scores else scale * statistics.fmean(score.mean for score in scores)


def _scores(table: Table, row: Row, configs, runs: Sequence[results.Run]) -> Scores:
    pairs = zip(table.columns, configs, strict=True)
    return {column.key: _score(row, column, config, runs) for column, config in pairs}


def _score(row: Row, column: Column, config, runs) -> results.Score | None:
    if row.split != column.split:
        return None
    return results.score(
        runs,
        config,
        column.metric,
        column.task,
        row.tuned,
        column.split,
        model=counts.sizes(row, config),
        total=counts.total(row, config),
    )


def _notes_on(row: Row, column: Column, score: results.Score | None) -> Iterator[str]:
    if score is None:
        return
    where = f"{row.label}, {column.key}"
    if score.differs:
        yield f"* {where}: not the row's config: {'; '.join(score.differs)}."
    size = EXAMPLES[column.split].get(column.task)
    if None not in (size, score.examples) and score.examples != size:
        yield f"{where}: measured on {score.examples:,} examples; {_whole(column)} has {size:,}."
    if row.tuned and score.settings > 1:
        yield f"{where}: the best of {score.settings} settings on the data of the score."


def _whole(column: Column) -> str:
    if column.split == "test":
        return "the test split of the paper"
    return f"{'SQuAD' if column.task == 'squad' else 'GLUE'}'s development set"


def _legend(table: Table) -> str:
    what = "#Pr: trained parameters; #To: all." if table.has_trained else "#To: all parameters."
    heads = ", for two labels" if table.num_labels else ""
    plain = any(column.scale == 1 for column in table.columns)
    unit = "Perplexities as they are, other scores in percent" if plain else "Scores in percent"
    return (
        f"{what} Ours: from shapes{heads}. {unit}, mean ± sample standard deviation over seeds; "
        "empty: not run."
    )


def _headers(table: Table) -> list[str]:
    averages = ["avg"] if table.has_average else []
    sizes = ["#Pr (M)", "#To (M)"] if table.has_trained else ["#To"]
    return ["row", "", *averages, *(column.header for column in table.columns), *sizes]


def _published_line(table: Table, row: Row, lines) -> list[str]:
    average = [row.average or ""] if table.has_average else []
    sizes = [row.trained or "", row.total or ""]
    if not table.has_trained:
        sizes = [f"{row.total} M" if row.total else ""]
    what = "published" if row.config else NOT_HERE
    return [row.label, what, *average, *lines.published.fillna(""), *sizes]


def _our_line(table: Table, row: Row, scores: Scores, trained: float, total: float) -> list[str]:
    mean = _mean([*scores.values()], 100.0)
    average = ["" if mean is None else f"{mean:.{table.digits}f}"] if table.has_average else []
    texts = [_text(scores[column.key], column, table.digits) for column in table.columns]
    sizes = [f"{total:,}"]
    if table.has_trained:
        sizes = [counts.in_millions(trained, row.trained), counts.in_millions(total, row.total)]
    return ["", "ours", *average, *texts, *sizes]


def _text(score: results.Score | None, column: Column, digits: int) -> str:
    if score is None:
        return ""
    text = f"{column.scale * score.mean:.{digits}f}"
    text += "" if score.stddev is None else f" ± {column.scale * score.stddev:.{digits}f}"
    return text + ("*" if score.differs else "")
