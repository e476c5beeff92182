"""Parameters of the rows of a table: from shapes, or from runs where weights decide."""

import bisect
import statistics
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from configs.mpobert import finetune
from configs.mpop import rows as mpop_rows
from experiments.tables.results import Score
from experiments.tables.schema import Row
from experiments.tasks import loading
from mpojax import compression, models


def of_row(
    row: Row, configs: Sequence[ml_collections.ConfigDict], scores: Sequence[Score | None]
) -> tuple[float, float, str]:
    """(trained, total, note) of a row, means over tasks where they depend on the task.

    Args:
      configs: of its columns.
      scores: ours, of squeezed models with the counts that they came to.
    """
    if counts := _known(row):
        return counts["trainable"], counts["total"], ""
    budgets = [config.squeeze.get("budget") or config.budget for config in configs]
    if any(budgets) and (done := [score for score in scores if score is not None]):
        trained = statistics.fmean(score.trained for score in done)
        total = statistics.fmean(score.total for score in done)
        return trained, total, f"#Pr/#To as squeezed in our runs, mean of {len(done)} task(s)."
    distinct = {_key(config): config for config in configs}
    found = {key: planned(config) for key, config in distinct.items()}
    every = [found[_key(config)] for config in configs]
    totals = [counts["total"] for counts, _ in every]
    # The first of the most frequent totals.
    typical, _ = max(every, key=lambda entry: totals.count(entry[0]["total"]))
    return typical["trainable"], typical["total"], _note(every, len(found))


def _note(every: Sequence[tuple[Mapping, int | None]], distinct: int) -> str:
    if caps := sorted({cap for _, cap in every if cap is not None}):
        return (
            "#Pr/#To before it is run: at the largest single cap within the budget "
            f"({', '.join(map(str, caps))}); squeezing chooses the bonds by the weights."
        )
    if distinct > 1:
        return "#Pr/#To: caps differ between tasks; the most frequent count is shown."
    return ""


def _known(row: Row) -> Mapping[str, float] | None:
    """What the row's config says itself; a fine-tuned MPOBERT is the same in all its configs."""
    if is_mpobert(row):
        return finetune.counts(row.variant)
    own = getattr(row.module, "counts", None)
    return own and own(row.variant)


def is_mpobert(row: Row) -> bool:
    """True for rows whose variants are those of `configs.mpobert.finetune`."""
    return row.file.startswith("configs/mpobert/")


def planned(config: ml_collections.ConfigDict) -> tuple[dict[str, int], int | None]:
    """Counts of a config of MPOP, and the cap behind them where a budget leaves the bonds open.

    With a budget the bonds follow from the weights. Without them the best guess is one cap for all
    matrices: the largest at which the model fits the budget.

    Raises:
      ValueError: no model fits the budget.
    """
    budget = config.squeeze.get("budget") or config.budget
    if budget is None:
        return mpop_rows.counts(config), None
    architecture = models.PRESETS[config.architecture]
    rules = [(pattern, dict(settings)) for pattern, settings in config.rules]

    def in_mpo_form(cap: int | None) -> int:
        shapes = compression.planned_shapes(architecture, rules, bond=cap)
        return sum(shape.num_params for shape in shapes.values())

    full = compression.planned_shapes(architecture, rules)
    # What no cap changes: all but the matrices in MPO form.
    rest = mpop_rows.counts(config)["total"] - in_mpo_form(None)
    if budget <= 1:
        # A fraction is of the dense model.
        budget *= rest + sum(shape.num_dense_params for shape in full.values())
    caps = range(1, max(max(shape.bond_dims) for shape in full.values()) + 1)
    # The count grows with the cap: number of caps within the budget.
    fitting = bisect.bisect_right(caps, budget, key=lambda cap: rest + in_mpo_form(cap))
    if fitting == 0:
        raise ValueError(f"a budget of {budget:,.0f} is too small for {config.architecture}.")
    return mpop_rows.counts(config, caps[fitting - 1]), caps[fitting - 1]


def _key(config: ml_collections.ConfigDict) -> str:
    return str((config.rules, config.budget, config.squeeze.get("budget"), config.trainable))


def model_config(row: Row, config: ml_collections.ConfigDict):
    """Settings of the row's model as published; None for one of unknown sizes."""
    if is_mpobert(row):
        return finetune.encoder(row.variant)[0]
    return models.PRESETS.get(config.architecture)


def sizes(row: Row, config: ml_collections.ConfigDict) -> dict[str, int]:
    """Sizes of the row's model by which runs are recognised; none where they are unknown."""
    found = loading.sizes(model_config(row, config))
    if student := config.get("student_layers"):
        found["num_layers"] = len(student)
    return found


def total(row: Row, config: ml_collections.ConfigDict) -> Callable[[], int] | None:
    """Number of parameters of the row's model, where that is fixed beforehand."""
    if is_mpobert(row):
        return lambda: finetune.counts(row.variant)["total"]
    if hasattr(row.module, "counts") or config.budget is not None or config.squeeze.get("budget"):
        return None
    return lambda: planned(config)[0]["total"]


def in_millions(count: float, like: str | None) -> str:
    """A count in millions with as many decimals as the published text has (one where none)."""
    digits = 1 if like is None else len(like.partition(".")[2])
    return f"{count / 1e6:.{digits}f}"
