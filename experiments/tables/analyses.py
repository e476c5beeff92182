"""Tables and figures that are no scores: MPOP table 1, table 2 and figure 2."""

import re
from collections.abc import Sequence

import numpy as np

from experiments import sources
from experiments.tables import published, results
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
# Shares of the parameters at which the curves of figure 2 are measured.
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def table1(runs: Sequence[results.Run], before: str, after: str) -> Page:
    """Share of weights by |change| between two checkpoints of one model.

    Args:
      runs: where `before` or `after` is empty, the first run of the dense BERT on SST-2 that saved
        its model gives both.
      before, after: folders or hub ids.

    Raises:
      ValueError: the two are different models.
    """
    if not (before and after):
        before, after = _saved_run(runs)
    shares = change_shares(before, after) if before and after else {}
    columns = ["layer", "", *published.CHANGE_BINS, "of these unchanged"]
    shown, records = [], []
    for kind, printed in published.CHANGES.items():
        ours = shares.get(kind)
        shown.append([kind, "published", *printed, ""])
        shown.append(["", "ours", *([f"{v:.2f}" for v in ours] if ours else [""] * 4)])
        for index, name in enumerate(published.CHANGE_BINS):
            record = {"layer": kind, "bin": name, "published": printed[index]}
            records.append(record | {"ours": ours[index] if ours else None})
    notes = ["Weights that did not change at all are counted in the first column."]
    if shares:
        notes.append(f"Ours: {before} against {after}.")
    else:
        notes.append(
            "Ours is not measured: give --before=FOLDER --after=FOLDER, or a --workdir with a run "
            "of configs/mpop/bert.py:dense,sst2 with --config.save_model=True."
        )
    title = "MPOP table 1: share of weights by |change|, BERT fine-tuned on SST-2"
    return Page("mpop_table1", title, published.MPOP, columns, shown, records, notes)


def change_shares(before: str, after: str) -> dict[str, tuple[float, float, float, float]]:
    """For each kind of layer: shares of |change| up to 1e-4, up to 1e-3, above, and of exactly 0.

    Models in MPO form are compared as the dense matrices that they stand for.

    Raises:
      ValueError: an array that only one of them has, or of another shape.
    """
    old, new = (_dense_arrays(name) for name in (before, after))
    shares = {}
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
        shares[kind] = tuple(map(float, (small, 1 - small - large, large, unchanged)))
    return shares


def _dense_arrays(name: str) -> dict[str, np.ndarray]:
    model = io.load_pretrained(sources.locate(name))
    return models.to_arrays(compression.merge(model) if model.shapes else model)


def _saved_run(runs: Sequence[results.Run]) -> tuple[str, str]:
    for run in runs:
        config = run.config
        wanted = ("bert-base-uncased", "dense", "sst2")
        found = (config["architecture"], config["variant"], config["task"])
        if found == wanted and (run.folder / "model").is_dir():
            return config["model"], str(run.folder / "model")
    return "", ""


def table2() -> Page:
    """Stated complexities, and what our planner counts for the matrices of BERT."""
    columns = ["what", "", "stated", "matrix", "bonds", "per token", "rebuild once", "dense"]
    shown = [[name, "published", formula, *[""] * 5] for name, formula in published.COMPLEXITY]
    records = [{"what": name, "stated": formula} for name, formula in published.COMPLEXITY]
    for rows, columns_out in ((768, 768), (768, 3072)):
        for n, cap in ((2, None), (2, 64), (3, 64), (5, None), (5, 64), (5, 16), (7, 64)):
            shape = _chain(rows, columns_out, n)
            shape = shape if cap is None else shape.with_bonds(cap)
            contract, rebuild = multiply_adds(shape)
            bonds = "full" if cap is None else str(cap)
            numbers = [f"{v / 1e6:.2f} M" for v in (contract, rebuild, rows * columns_out)]
            shown.append([f"MPO, n = {n}", "ours", "", f"{rows}x{columns_out}", bonds, *numbers])
            records.append(
                {
                    "what": f"MPO, n = {n}",
                    "matrix": f"{rows}x{columns_out}",
                    "bonds": bonds,
                    "multiply_adds_per_token": contract,
                    "multiply_adds_to_rebuild": rebuild,
                    "multiply_adds_dense": rows * columns_out,
                }
            )
    notes = [
        "n: cores, m: largest factor of the rows, d: largest bond. The formulas are asymptotic and "
        "count one token.",
        "Ours: multiply-adds of the cheapest contraction with one token, merging cores not "
        "counted, and of rebuilding the matrix, after which a token costs as much as dense.",
        "A contraction beats the dense matrix only where its column is below the last one: MPO "
        "saves parameters, and multiply-adds only at small bonds. Tucker and CP are not part of "
        "this library.",
    ]
    title = "MPOP table 2: inference complexity"
    return Page("mpop_table2", title, published.MPOP, columns, shown, records, notes)


def multiply_adds(shape: mpo.MPOShape) -> tuple[int, int]:
    """(for one token through the chain, to rebuild the matrix), from the planner."""
    plan = mpo.plan(shape, tokens=1, training=False, prepared=True, machine="cpu")
    chains = [cost.flops // 2 for cost in plan.costs if cost.strategy != "rebuild"]
    rebuild = mpo.plan(shape, tokens=1, training=False, strategy="rebuild", machine="cpu")
    return min(chains), rebuild.chosen.flops // 2 - shape.in_features * shape.out_features


def figure2(model: str) -> Page:
    """Frobenius error of a word embedding against the share of parameters, for 2, 3, 5, 7 cores.

    Args:
      model: folder or hub id; empty: published points alone.
    """
    curves, records, shown = {}, [], []
    for cores, share, error in published.FIGURE2:
        shown.append([f"n = {cores}", "published", f"{share:.2f}", "", f"{error:.0f}", ""])
        records.append({"cores": cores, "share": share, "published_error": error})
    for n in sorted({cores for cores, _, _ in published.FIGURE2}):
        x, y = zip(*((s, e) for c, s, e in published.FIGURE2 if c == n), strict=True)
        curves[f"n = {n}, published"] = (x, y)
    notes = list(published.FIGURE2_NOTES)
    if model:
        table = _dense_arrays(model)["embeddings/word/table"].astype(np.float64)
        norm = float(np.linalg.norm(table))
        for point in embedding_errors(table):
            relative = point["error"] / norm
            shown.append(
                [
                    f"n = {point['cores']}",
                    "ours",
                    f"{point['share']:.2f}",
                    str(point["bond"]),
                    f"{point['error']:.2f}",
                    f"{relative:.4f}",
                ]
            )
            records.append({**point, "relative_error": relative})
        for n in _CORES:
            found = [r for r in records if r.get("bond") and r["cores"] == n]
            curves[f"n = {n}"] = ([r["share"] for r in found], [r["error"] for r in found])
        notes.append(f"Ours: {model}, {table.shape[0]:,} x {table.shape[1]}, norm {norm:.2f}.")
    else:
        notes.append("Ours is not measured: give --model=FOLDER (the paper: bert-base-uncased).")
    columns = ["chain", "", "share of parameters", "cap", "error", "relative"]
    axes = ("parameters / parameters of the dense table", "Frobenius error")
    title = "MPOP figure 2: error of the word embedding"
    return Page("mpop_figure2", title, published.MPOP, columns, shown, records, notes, curves, axes)


def embedding_errors(table: np.ndarray) -> list[dict]:
    """Errors of truncated chains of a float64 matrix; caps that come closest below `_SHARES`."""
    points = []
    wanted = [(n, cap) for n in _CORES for cap in _caps(_chain(*table.shape, n))]
    with progress_lib.progress("error of the word embedding") as advance:
        for done, (n, cap) in enumerate(wanted, 1):
            shape = _chain(*table.shape, n).with_bonds(cap)
            # Sequential truncation is a projection; the central core has the norm of the chain.
            kept = np.linalg.norm(mpo.decompose(table, shape)[shape.central])
            error = np.sqrt(max(0.0, np.linalg.norm(table) ** 2 - kept**2))
            points.append({"cores": n, "bond": cap, "share": shape.ratio, "error": float(error)})
            advance(done, len(wanted), f"n = {n}, cap {cap}")
    return points


def _caps(shape: mpo.MPOShape) -> list[int]:
    """Caps of the largest chains within each of `_SHARES`, and full bonds."""
    largest, caps = max(shape.bond_dims), []
    for share in _SHARES:
        low, high = 0, largest
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if shape.with_bonds(middle).ratio <= share else (low, middle - 1)
            )
        caps.append(low)
    return sorted({cap for cap in (*caps, largest) if cap > 0})


def _chain(rows: int, columns: int, n: int) -> mpo.MPOShape:
    """The published lists where there are such, else the library's."""
    return mpo.MPOShape.published(rows, columns, n) or mpo.MPOShape.balanced(rows, columns, n)
