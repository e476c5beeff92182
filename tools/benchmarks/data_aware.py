"""Errors of outputs on real texts: chains against truncated SVD, plain and data-aware.

    python -m tools.benchmarks.data_aware --model=FOLDER --data_dir=DIR --out=results

Every layer matrix is approximated with a fraction of its parameters in five ways; the relative
error of its outputs, ||X (W - W_hat)|| / ||X W||, is measured over the tokens of the calibration
texts (training split) and of held-out texts (development split). No training.

    chain               the published or automatic factor lists, truncated
    chain, data-aware   the same lists, fitted to the inputs by alternating least squares
    searched            factor lists searched and fitted, low rank among them
    SVD                 truncated singular value decomposition
    data-aware SVD      the best matrix of that rank for the inputs
"""

import collections
import pathlib
import time

import numpy as np
from absl import app, flags, logging

from mpojax import compression, data, files, io, models, mpo, tables
from tools.benchmarks import timing

_MODEL = flags.DEFINE_string("model", None, "Folder of the checkpoint, with its tokenizer.")
_TASK = flags.DEFINE_string("task", "sst2", "Task whose texts are read.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data; default as in the library.")
_OUT = flags.DEFINE_string("out", None, "Folder for data_aware.md and data_aware.csv.")
_LAYERS = flags.DEFINE_list("layers", None, "Layers to measure; default first, middle and last.")
_SHARES = flags.DEFINE_list(
    "shares", ["0.5", "0.25"], "Fractions of the parameters of each matrix."
)
_CALIBRATION = flags.DEFINE_integer("calibration_texts", 2048, "Texts of the training split.")
_HELD_OUT = flags.DEFINE_integer("held_out_texts", 872, "Texts of the development split.")

METHODS = ("chain", "chain, data-aware", "searched", "SVD", "data-aware SVD")
_LENGTHS = (16, 32, 64)


def statistics(model, split, count: int) -> compression.Calibration:
    """Inputs of every matrix over the first `count` shuffled texts of a split."""
    tokens = split.take(min(count, len(split))).encode(
        data.Tokenizer.from_folder(_MODEL.value), _LENGTHS[-1]
    )
    batches = data.EvalData(tokens, 64, lengths=_LENGTHS)
    return compression.calibrate(model, (batches[index] for index in range(len(batches))))


def approximations(w, share: float, path: str, calibration):
    """{method: (approximation, shape)} with at most `share` of the parameters of `w`."""
    budget, metric = int(share * w.size), calibration.metric(path)
    full = compression.MatrixRule().full_shape(*w.shape)
    spectra = mpo.decompose_with_spectra(w, full)[1]
    chain = mpo.allocate([full], [spectra], budget)[0]
    # The largest r with r (in + out) <= budget.
    low_rank = mpo.MPOShape.low_rank(*w.shape, budget // sum(w.shape))
    searched = mpo.search_factors(w, budget, calibration.covariance(path))
    rank = low_rank.bond_dims[0]
    cores = {
        "chain": (mpo.decompose(w, chain), chain),
        "chain, data-aware": (mpo.fit(w, chain, metric).cores, chain),
        "searched": (searched.cores[0], searched.shape),
        "SVD": (mpo.low_rank(w, rank), low_rank),
        "data-aware SVD": (mpo.low_rank(w, rank, metric), low_rank),
    }
    return {name: (mpo.to_matrix(c, shape), shape) for name, (c, shape) in cores.items()}


def measure(model, calibration, held_out, layers, shares) -> list[dict]:
    """One row for each matrix, share and method."""
    weights, rows = models.to_arrays(model), []
    for path in model.config.matrix_sizes():
        parts = path.split("/")
        if parts[0] != "layers" or int(parts[1]) not in layers:
            continue
        w = np.asarray(weights[models.dense_name(path)], np.float64)
        for share in shares:
            start = time.perf_counter()
            for method, (w_hat, shape) in approximations(w, share, path, calibration).items():
                rows.append(
                    {
                        "matrix": path,
                        "type": "/".join(parts[2:]),
                        "share": share,
                        "method": method,
                        "in_factors": " ".join(map(str, shape.in_factors)),
                        "out_factors": " ".join(map(str, shape.out_factors)),
                        "bonds": " ".join(map(str, shape.bond_dims)),
                        "parameters": shape.num_params,
                        "calibration_error": mpo.weighted_relative_error(
                            w, w_hat, calibration.covariance(path)
                        ),
                        "held_out_error": mpo.weighted_relative_error(
                            w, w_hat, held_out.covariance(path)
                        ),
                        "weight_error": mpo.relative_error(w, w_hat),
                    }
                )
            logging.info("%s at %g: %.1f s", path, share, time.perf_counter() - start)
    return rows


def markdown(rows, title: str) -> str:
    """Means over the layers for each matrix type, and how often the search wins."""
    lines = [title, ""]
    for where in ("calibration", "held_out"):
        lines += [
            f"Relative output error, {where.replace('_', '-')} texts (mean over the layers)",
            "",
            f"| share | matrix | {' | '.join(METHODS)} |",
            "| ---: | --- |" + " ---: |" * len(METHODS),
        ]
        errors = collections.defaultdict(list)
        for row in rows:
            errors[row["share"], row["type"], row["method"]].append(row[f"{where}_error"])
        for share, kind in dict.fromkeys(key[:2] for key in errors):
            cells = [f"{np.mean(errors[share, kind, method]):.4f}" for method in METHODS]
            lines.append(f"| {share:g} | {kind} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *_wins(rows), ""])


def _wins(rows) -> list[str]:
    """How often the searched chain is not worse, and strictly better, than both kinds of SVD."""
    cases = collections.defaultdict(dict)
    for row in rows:
        cases[row["matrix"], row["share"]][row["method"]] = row
    lines = []
    for where in ("calibration", "held_out"):
        key, never_worse, better = f"{where}_error", 0, 0
        for found in cases.values():
            best = min(found["SVD"][key], found["data-aware SVD"][key])
            never_worse += found["searched"][key] <= best * (1 + 1e-9)
            better += found["searched"][key] < best * (1 - 1e-3)
        lines.append(
            f"Searched against the better SVD, {where.replace('_', '-')} texts: not worse in "
            f"{never_worse} of {len(cases)} cases, better by more than 0.1 % in {better}."
        )
    lists = [(row["in_factors"], row["out_factors"]) for row in rows if row["method"] == "searched"]
    low_rank = sum(
        i.endswith(" 1") and o.startswith("1 ") and len(i.split()) == 2 for i, o in lists
    )
    return [*lines, f"The search chose low rank in {low_rank} of {len(cases)} cases."]


def save(folder: pathlib.Path, text: str, rows: list[dict]) -> None:
    """Writes both files."""
    files.write_atomic(folder / "data_aware.md", text)
    files.write_atomic(folder / "data_aware.csv", tables.csv(rows))


def main(argv):
    del argv
    start = time.perf_counter()
    model = io.load_pretrained(_MODEL.value)
    depth = model.config.num_layers
    layers = {int(n) for n in _LAYERS.value or {0, depth // 2, depth - 1}}
    task = data.load_task(_TASK.value, _DATA_DIR.value)
    calibration = statistics(model, task["train"], _CALIBRATION.value)
    held_out = statistics(model, task["dev"], _HELD_OUT.value)
    counts = [c.statistics["embeddings/word"].count for c in (calibration, held_out)]
    rows = measure(model, calibration, held_out, layers, [float(s) for s in _SHARES.value])
    title = (
        f"{timing.machine()}. {_MODEL.value}, {_TASK.value}: {counts[0]:,} calibration tokens, "
        f"{counts[1]:,} held-out tokens, layers {sorted(layers)}; "
        f"{time.perf_counter() - start:.0f} s."
    )
    text = markdown(rows, title)
    print(text)
    if _OUT.value:
        save(pathlib.Path(_OUT.value), text, rows)


if __name__ == "__main__":
    flags.mark_flag_as_required("model")
    app.run(main)
