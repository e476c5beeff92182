r"""Changes of several fine-tunings of one base at equal size: private low ranks, or shared parts.

    python -m tools.benchmarks.shared_experts --base=FOLDER --model=runs/sst2/model \
        --model=runs/mrpc/model --rank=16 --out=results --models=runs/approximated

Of the changes W_e - W of every matrix, x on the left,

    private SVD     U_e V_e                   rank r each: K r (in + out) numbers
    shared inputs   A B_e                     one A (in, R) for all: R (in + K out)
    shared outputs  B_e A                     one A (R, out) for all: R (K in + out)
    shared central  chain L_e, C, R_e         one large central core for all, small outer ones:
                                              alternating least squares, the best of some factors

each with at most the numbers of the first. Prints the relative error of all changes, and how often
each has the least; `--models` gets each fine-tuning with its changes so approximated, for
`experiments.combine --rank=FULL`.
"""

import collections
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags, logging

from experiments import sources
from mpojax import files, io, models
from mpojax.methods.smile.family import Family
from tools.benchmarks import timing

_BASE = flags.DEFINE_string("base", None, "Folder, hub id or package:NAME/PATH of the base.")
_MODEL = flags.DEFINE_multi_string("model", None, "Folder of a fine-tuned model; once for each.")
_RANK = flags.DEFINE_integer("rank", 16, "r of the private SVDs; the others have its size.")
_MATRICES = flags.DEFINE_string("matrices", ".*", "Regular expression over matrix paths.")
_OUT = flags.DEFINE_string("out", None, "Folder for shared_experts.md.")
_MODELS = flags.DEFINE_string("models", None, "Folder for the approximated models.")

METHODS = ("private SVD", "shared inputs", "shared outputs", "shared central")
_OUTER = (2, 4, 8)  # factors of both sizes that the outer cores of a chain take
_SWEEPS = 12
_RIDGE, _CUT = 1e-12, 1e-6  # relative: what outer cores do not use has no size


def private(changes: np.ndarray, rank: int) -> np.ndarray:
    """Best approximations of rank r, (K, in, out)."""
    u, s, vt = np.linalg.svd(changes, full_matrices=False)
    return (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]


def shared_inputs(changes: np.ndarray, rank: int) -> np.ndarray:
    """A B_e with the A of the best low rank of [D_1, D_2, ...]: A (in, rank)."""
    # A: the leading left singular vectors of (in, K out); then B_e = A^T D_e.
    basis = np.linalg.svd(np.concatenate(list(changes), axis=1), full_matrices=False)[0][:, :rank]
    return basis @ (basis.T @ changes)


def shared_central(changes: np.ndarray, outer: int, rank: int) -> np.ndarray:
    """Chains D_e[a, b, c] ~ sum_rs L_e[a, r] C[r, b, s] R_e[s, c] with one C; by least squares.

    a, b and c are pairs of digits of rows and columns, a and c of `outer` by `outer`.
    """
    # (K, a, b, c)
    tensors = np.stack([_as_tensor(change, outer) for change in changes])
    count, a, b, c = tensors.shape
    unfolded = tensors.reshape(count, a, b * c), tensors.reshape(count, a * b, c)
    # Start: leading singular vectors of both sides, left (K, a, r), right (K, s, c).
    left = np.linalg.svd(unfolded[0], full_matrices=False)[0][..., :rank]
    right = np.linalg.svd(unfolded[1], full_matrices=False)[2][:, :rank]
    for _ in range(_SWEEPS):
        # sum_e (L_e^T L_e) C (R_e R_e^T) = sum_e L_e^T D_e R_e^T, for each b.
        gram = sum(np.kron(x.T @ x, y @ y.T) for x, y in zip(left, right, strict=True))
        gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        # Normal equations of C as a matrix (r s, b), with the Kronecker product over (r, s).
        sides = np.einsum("kar,kabc,ksc->rsb", left, tensors, right, optimize=True)
        core = np.linalg.solve(gram, sides.reshape(-1, b)).reshape(*sides.shape)
        # L_e = D_e (C R_e)^+, with C R_e as (r, b c).
        x = np.einsum("rsb,ksc->krbc", core, right).reshape(count, -1, b * c)
        left = unfolded[0] @ np.linalg.pinv(x, rcond=_CUT)
        # R_e = (L_e C)^+ D_e, with L_e C as (a b, s).
        y = np.einsum("kar,rsb->kabs", left, core).reshape(count, a * b, -1)
        right = np.linalg.pinv(y, rcond=_CUT) @ unfolded[1]
    made = np.einsum("kar,rsb,ksc->kabc", left, core, right, optimize=True)
    return np.stack([_as_matrix(tensor, outer, changes.shape[1:]) for tensor in made])


def _as_tensor(matrix: np.ndarray, outer: int) -> np.ndarray:
    rows, columns = (size // outer**2 for size in matrix.shape)
    # Row (a_1, b_1, c_1) and column (a_2, b_2, c_2) -> ((a_1, a_2), (b_1, b_2), (c_1, c_2)).
    digits = matrix.reshape(outer, rows, outer, outer, columns, outer)
    return digits.transpose(0, 3, 1, 4, 2, 5).reshape(outer**2, rows * columns, outer**2)


def _as_matrix(tensor: np.ndarray, outer: int, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (size // outer**2 for size in shape)
    digits = tensor.reshape(outer, outer, rows, columns, outer, outer)
    return digits.transpose(0, 2, 4, 1, 3, 5).reshape(shape)


def approximations(changes: np.ndarray, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """(method, approximations (K, in, out)) of at most the size of private ranks."""
    count, rows, columns = changes.shape
    size = count * rank * (rows + columns)
    yield METHODS[0], private(changes, rank)
    most = min(rows, columns)
    yield METHODS[1], shared_inputs(changes, min(size // (rows + count * columns), most))
    turned = shared_inputs(changes.transpose(0, 2, 1), min(size // (columns + count * rows), most))
    yield METHODS[2], turned.transpose(0, 2, 1)
    yield METHODS[3], min(_chains(changes, size), key=lambda made: np.sum((made - changes) ** 2))


def _chains(changes: np.ndarray, size: int) -> Iterator[np.ndarray]:
    count, rows, columns = changes.shape
    for outer in _OUTER:
        if rows % outer**2 or columns % outer**2:
            continue
        pairs, middle = outer**2, rows * columns // outer**4
        # The largest r with r^2 middle + 2 K r pairs <= size.
        rank = int((np.sqrt((count * pairs) ** 2 + middle * size) - count * pairs) // middle)
        if rank:
            yield shared_central(changes, outer, min(rank, pairs))


def measure(family: Family, paths: Sequence[str], rank: int) -> tuple[dict, dict]:
    """({path: {method: squared relative error}}, {method: {path: approximations}})."""
    errors, made = {}, collections.defaultdict(dict)
    for path in paths:
        name = models.dense_name(path)
        changes = np.stack(family.differences(name))
        own = {}
        for method, found in approximations(changes, rank):
            own[method] = float(np.sum((found - changes) ** 2) / np.sum(changes**2))
            made[method][name] = found
        errors[path] = own
        logging.info("%s: %s", path, {m: round(e**0.5, 4) for m, e in own.items()})
    return errors, made


def markdown(errors: dict, rank: int) -> str:
    """Relative errors by kind of matrix, and how often each method has the least."""
    kinds = collections.defaultdict(list)
    for path, own in errors.items():
        kinds[path.split("/", 2)[-1]].append(own)
        kinds["all"].append(own)
    lines = [
        f"Relative error of the changes at the size of private ranks of {rank}",
        "",
        f"| matrix | {' | '.join(METHODS)} |",
        "| --- |" + " ---: |" * len(METHODS),
    ]
    for kind, rows in kinds.items():
        means = [np.mean([row[method] for row in rows]) ** 0.5 for method in METHODS]
        lines.append(f"| {kind} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    least = collections.Counter(min(own, key=own.get) for own in errors.values())
    best = ", ".join(f"{method} {least[method]}" for method in METHODS)
    return "\n".join([*lines, "", f"Least error, of {len(errors)} matrices: {best}.", ""])


def save(tuned: dict[str, models.Model], base: dict, made: dict, folder: pathlib.Path) -> None:
    """Each fine-tuning with approximated changes, with its tokenizer."""
    for method, by_name in made.items():
        for index, (source, model) in enumerate(tuned.items()):
            arrays = dict(models.to_arrays(model))
            arrays |= {n: np.float32(base[n] + found[index]) for n, found in by_name.items()}
            where = folder / method.replace(" ", "_") / pathlib.Path(source).parent.name
            changed = models.from_arrays(model.config, {}, arrays)
            io.save_pretrained(changed, where, tokenizer_from=source)


def main(argv):
    del argv
    base = io.load_pretrained(sources.locate(_BASE.value, "base"))
    tuned = {name: io.load_pretrained(name) for name in _MODEL.value}
    family = Family.of(base, tuned)
    paths = [p for p in base.config.adaptable() if re.fullmatch(_MATRICES.value, p)]
    errors, made = measure(family, paths, _RANK.value)
    text = f"{timing.machine()}\n\n{markdown(errors, _RANK.value)}"
    print(text)
    if _OUT.value:
        files.write_atomic(pathlib.Path(_OUT.value) / "shared_experts.md", text)
    if _MODELS.value:
        save(tuned, family.base, made, pathlib.Path(_MODELS.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["base", "model"])
    app.run(main)
