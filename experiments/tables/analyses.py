"""Tables and figures that are no scores: MPOP table 1, table 2 and figure 2."""

import re
from collections.abc import Sequence

import numpy as np

from experiments import sources
from experiments.tables import results, schema
from experiments.tables.page import Page
from mpojax import compression, io, models, mpo
from mpojax.training import progress as progress_lib

# Pattern of the arrays that count as each kind of layer.
_KINDS = {
    "word embedding": r"embeddings/word/table",
    "feed-forward": r"layers/.*/feed_forwards?/.*kernel",
    "self-attention": r"layers/.*/attention/.*kernel",
}
_CORES = (2, 3, 5, 7)
# Fractions of the parameters at which the curves of figure 2 are measured.
_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def table1(runs: Sequence[results.Run], before: str, after: str) -> Page:
    """Fraction of weights by |change| between two checkpoints of one model.

    Args:
      runs: where `before` or `after` is empty, the first run of the dense BERT on SST-2 that saved
        its model gives both.
      before, after: folders or hub ids.

    Raises:
      ValueError: the two are different models.
    """
    table = schema.load("mpop_table1")
    if not (before and after):
        before, after = _saved_run(runs)
    measured = change_fractions(before, after) if before and after else {}
    headers = [column.header for column in table.columns]
    shown, records = [], []
    for row in table.rows:
        ours = measured.get(row.label)
        shown.append([row.label, "published", *row.scores.values(), ""])
        shown.append(["", "ours", *([f"{v:.2f}" for v in ours] if ours else [""] * 4)])
        for index, (header, printed) in enumerate(zip(headers, row.scores.values(), strict=True)):
            record = {"layer": row.label, "bin": header, "published": printed}
            records.append(record | {"ours": ours[index] if ours else None})
    note = (
        f"Ours: {before} against {after}."
        if measured
        else "Ours is not measured: give --before=FOLDER --after=FOLDER, or a --workdir with a run "
        "of configs/mpop/bert.py:dense,sst2 with --config.save_model=True."
    )
    columns = ["layer", "", *headers, "of these unchanged"]
    return Page(table, columns, shown, records, [*table.notes, note])


def change_fractions(before: str, after: str) -> dict[str, tuple[float, float, float, float]]:
    """For each kind of layer: fraction of |change| up to 1e-4, up to 1e-3, above, and exactly 0.

    Models in MPO form are compared as the dense matrices that they stand for.

    Raises:
      ValueError: an array that only one of them has, or of another shape.
    """
    old, new = (_dense_arrays(name) for name in (before, after))
    fractions = {}
    for kind, pattern in _KINDS.items():
        names = [name for name in old if re.fullmatch(pattern, name)]
        other = [name for name in new if re.fullmatch(pattern, name)]
        if names != other or any(old[name].shape != new[name].shape for name in names):
            raise ValueError(
                f"{before} and {after} are different models: their {kind} arrays differ in name "
                "or shape."
            )
        change = np.concatenate([np.abs(new[name] - old[name]).ravel() for name in names])
        small, large = np.mean(change <= 1e-4), np.mean(change > 1e-3)
        unchanged = np.mean(change == 0)
        fractions[kind] = tuple(map(float, (small, 1 - small - large, large, unchanged)))
    return fractions


def _dense_arrays(name: str) -> dict[str, np.ndarray]:
    model = io.load_pretrained(sources.locate(name))
    return models.to_arrays(compression.merge(model) if model.shapes else model)


def _saved_run(runs: Sequence[results.Run]) -> tuple[str, str]:
    wanted = {"architecture": "bert-base-uncased", "variant": "dense", "task": "sst2"}
    for run in runs:
        is_wanted = all(run.config[name] == value for name, value in wanted.items())
        if is_wanted and (run.folder / "model").is_dir():
            return run.config["model"], str(run.folder / "model")
    return "", ""


def table2() -> Page:
    """Stated complexities, and what our planner counts for the matrices of BERT."""
    table = schema.load("mpop_table2")
    columns = ["what", "", "stated", "matrix", "bonds", "per token", "rebuild once", "dense"]
    stated = [{"what": row.label, "stated": row.scores["stated"]} for row in table.rows]
    shown = [[each["what"], "published", each["stated"], *[""] * 5] for each in stated]
    counted = [
        _complexity(size, n, cap)
        for size in ((768, 768), (768, 3072))
        for n, cap in ((2, None), (2, 64), (3, 64), (5, None), (5, 64), (5, 16), (7, 64))
    ]
    for what, matrix, bonds, *numbers in map(dict.values, counted):
        shown.append([what, "ours", "", matrix, bonds, *(f"{v / 1e6:.2f} M" for v in numbers)])
    records = [*stated, *counted]
    return Page(table, columns, shown, records, table.notes)


def _complexity(size: tuple[int, int], num_cores: int, cap: int | None) -> dict:
    shape = _chain(*size, num_cores)
    contract, rebuild = multiply_adds(shape if cap is None else shape.with_bonds(cap))
    return {
        "what": f"MPO, n = {num_cores}",
        "matrix": "{}x{}".format(*size),
        "bonds": "full" if cap is None else str(cap),
        "multiply_adds_per_token": contract,
        "multiply_adds_to_rebuild": rebuild,
        "multiply_adds_dense": size[0] * size[1],
    }


def multiply_adds(shape: mpo.MPOShape) -> tuple[int, int]:
    """(for one token through the chain, to rebuild the matrix), from the planner."""
    plan = mpo.plan(shape, tokens=1, training=False, prepared=True, machine="cpu")
    # 2 FLOPs a multiply-add.
    chains = [cost.flops // 2 for cost in plan.costs if cost.strategy != "rebuild"]
    rebuild = mpo.plan(shape, tokens=1, training=False, strategy="rebuild", machine="cpu")
    # The plan rebuilds and multiplies one token: less the in * out of the product itself.
    return min(chains), rebuild.chosen.flops // 2 - shape.in_features * shape.out_features


def figure2(model: str) -> Page:
    """Frobenius error of a word embedding against its parameters, for 2, 3, 5, 7 cores.

    Args:
      model: folder or hub id; empty: published points alone.
    """
    table = schema.load("mpop_figure2")
    records, shown, curves = [], [], {}
    for row in table.rows:
        cores, fraction, error = row.scores.values()
        shown.append([row.label, "published", fraction, "", error, ""])
        record = {"cores": int(cores), "share": float(fraction)}
        records.append(record | {"published_error": float(error)})
    for n in sorted({record["cores"] for record in records}):
        points = [record for record in records if record["cores"] == n]
        curves[f"n = {n}, published"] = _curve(points, "published_error")
    note = "Ours is not measured: give --model=FOLDER (the paper: bert-base-uncased)."
    if model:
        embedding = _dense_arrays(model)["embeddings/word/table"].astype(np.float64)
        norm = float(np.linalg.norm(embedding))
        ours = [p | {"relative_error": p["error"] / norm} for p in embedding_errors(embedding)]
        records += ours
        shown += [_error_line(point) for point in ours]
        for n in _CORES:
            curves[f"n = {n}"] = _curve([p for p in ours if p["cores"] == n], "error")
        note = f"Ours: {model}, {len(embedding):,} x {embedding.shape[1]}, norm {norm:.2f}."
    columns = ["chain", "", "share of parameters", "cap", "error", "relative"]
    axes = ("parameters / parameters of the dense embedding", "Frobenius error")
    notes = [*table.notes, note]
    return Page(table, columns, shown, records, notes, curves, axes)


def _curve(points: Sequence[dict], name: str) -> tuple[list[float], list[float]]:
    return [point["share"] for point in points], [point[name] for point in points]


def _error_line(point: dict) -> list[str]:
    numbers = f"{point['share']:.2f}", str(point["bond"]), f"{point['error']:.2f}"
    return [f"n = {point['cores']}", "ours", *numbers, f"{point['relative_error']:.4f}"]


def embedding_errors(table: np.ndarray) -> list[dict]:
    """Errors of truncated chains of a float64 matrix; caps that come closest to `_FRACTIONS`."""
    points = []
    wanted = [(n, cap) for n in _CORES for cap in _caps(_chain(*table.shape, n))]
    norm = np.linalg.norm(table)
    with progress_lib.progress("error of the word embedding") as advance:
        for done, (n, cap) in enumerate(wanted, 1):
            shape = _chain(*table.shape, n).with_bonds(cap)
            # Sequential truncation is a projection; the central core has the norm of the chain:
            # |W - W'|² = |W|² - |W'|².
            kept = np.linalg.norm(mpo.decompose(table, shape)[shape.central])
            error = np.sqrt(max(0.0, norm**2 - kept**2))
            points.append({"cores": n, "bond": cap, "share": shape.ratio, "error": float(error)})
            advance(done, len(wanted), f"n = {n}, cap {cap}")
    return points


def _caps(shape: mpo.MPOShape) -> list[int]:
    """Caps of the largest chains within each of `_FRACTIONS`, and full bonds."""
    largest, caps = max(shape.bond_dims), []
    for fraction in _FRACTIONS:
        # Bisection: low fits (or is 0), all above high do not.
        low, high = 0, largest
        while high > low:
            middle = (low + high + 1) // 2
            fits = shape.with_bonds(middle).ratio <= fraction
            low, high = (middle, high) if fits else (low, middle - 1)
        caps.append(low)
    return sorted({cap for cap in (*caps, largest) if cap > 0})


def _chain(rows: int, columns: int, n: int) -> mpo.MPOShape:
    """The published lists where there are such, else the library's."""
    return mpo.MPOShape.published(rows, columns, n) or mpo.MPOShape.balanced(rows, columns, n)
