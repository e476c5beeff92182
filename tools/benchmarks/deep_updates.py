"""Updates of a linear map from few examples: LoRA against deep updates, by the rank they are given.

    python -m tools.benchmarks.deep_updates --out=results

A matrix of 48 x 48 has changed by a matrix of rank 2; N noisy examples of what the changed one does
are learnt with Adam, by all of them in every step. Per method and rank: relative error of the
change, ||D - D_hat|| / ||D||, and the rank at which the update is within 5 % of itself; medians
over seeds.

    lora     D U, D random, U zero
    deep     bases in the subspace of the first gradient, at 1/100 of the rate; three cores between
    three    three cores in that subspace, all at one rate
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from mpojax import files, tables
from mpojax.methods import deep_lora
from tools.benchmarks import timing

_OUT = flags.DEFINE_string("out", None, "Folder for deep_updates.md.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps of Adam.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Planted changes, each with examples of its own.")
_RANKS = flags.DEFINE_list("ranks", ["2", "8", "16", "48"], "Ranks that updates are given.")
_EXAMPLES = flags.DEFINE_list("examples", ["16", "32", "96"], "N.")

SIZE, RANK, NOISE = 48, 2, 0.05
METHODS = ("lora", "deep", "three")
_RATES = {"lora": 1e-2, "deep": 1e-2, "three": 1e-2}


def planted(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs (N, size), outputs without those of the old matrix, change)."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((SIZE, RANK)))[0] for _ in range(2))
    # u and v have orthonormal columns: these are the singular values.
    change = u @ np.diag([1.0, 0.5]) @ v.T
    x = rng.standard_normal((examples, SIZE))
    clean = x @ change
    return x, clean + NOISE * clean.std() * rng.standard_normal(clean.shape), change


def start(method: str, rank: int, x, y, seed: int) -> tuple[list[np.ndarray], list[float]]:
    """(factors, their rates relative to that of the method)."""
    rng = np.random.default_rng((seed, 1))
    if method == "lora":
        down = rng.standard_normal((SIZE, rank)) * SIZE**-0.5
        return [down, np.zeros((rank, SIZE))], [1.0, 1.0]
    rate = 0.01 if method == "deep" else None
    settings = deep_lora.DeepLoRASettings(rank=rank, basis_rate=rate)
    first = -x.T @ y / len(x)  # of the loss below, at no change
    cores = settings.cores(*deep_lora.bases(rank, first, (SIZE, SIZE), rng))
    factors = [core.reshape(-1, core.shape[-1]) for core in cores[:-1]] + [cores[-1][:, 0, :, 0]]
    inner = [1.0] * (len(factors) - 2)
    return factors, [0.01, *inner, 0.01] if rate else [1.0, *inner, 1.0]


def learnt(factors: Sequence, rates: Sequence[float], x, y, rate: float, steps: int) -> np.ndarray:
    """The product of the factors after some steps of Adam with a falling rate."""
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, steps), eps=1e-12)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def loss(factors):
        return 0.5 * jnp.mean(jnp.sum((x @ functools.reduce(jnp.matmul, factors) - y) ** 2, axis=1))

    def step(carry, _):
        factors, held = carry
        # Adam's steps do not depend on the size of gradients: relative rates scale the steps.
        changes, held = optimizer.update(jax.grad(loss)(factors), held)
        return ([f + r * c for f, r, c in zip(factors, rates, changes, strict=True)], held), None

    factors = [jnp.asarray(factor, jnp.float32) for factor in factors]
    with jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps)[0])
        factors, _ = run((factors, optimizer.init(factors)))
    return np.asarray(functools.reduce(jnp.matmul, factors), np.float64)


def effective_rank(matrix: np.ndarray, tolerance: float = 0.05) -> int:
    """The least rank with a relative error of at most the tolerance."""
    s = np.linalg.svd(matrix, compute_uv=False)
    # Entry r: sqrt(sum_{i > r} s_i^2), the error of rank r.
    rest = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    return int(np.argmax(rest <= tolerance * rest[0]))


def measure(method: str, rank: int, examples: int, seeds: int, steps: int) -> tuple[float, float]:
    """Medians of (relative error of the change, effective rank)."""
    found = []
    for seed in range(seeds):
        x, y, change = planted(examples, seed)
        factors, rates = start(method, rank, x, y, seed)
        made = learnt(factors, rates, x, y, _RATES[method], steps)
        error = np.linalg.norm(made - change) / np.linalg.norm(change)
        found.append((error, effective_rank(made)))
    return tuple(np.median(found, axis=0))


def main(argv):
    del argv
    headers = ["N", "rank", *(f"{m}: error" for m in METHODS), *(f"{m}: rank" for m in METHODS)]
    rows = []
    for examples in map(int, _EXAMPLES.value):
        for rank in map(int, _RANKS.value):
            sizes = (rank, examples, _SEEDS.value, _STEPS.value)
            found = [measure(method, *sizes) for method in METHODS]
            errors, ranks = zip(*found, strict=True)
            shown = [*(f"{e:.3f}" for e in errors), *(f"{r:g}" for r in ranks)]
            rows.append([str(examples), str(rank), *shown])
            print(" ".join(rows[-1]), flush=True)
    text = f"{timing.machine()}\n\n{tables.markdown(headers, rows)}\n"
    print(text)
    if _OUT.value:
        files.write_atomic(pathlib.Path(_OUT.value) / "deep_updates.md", text)


if __name__ == "__main__":
    app.run(main)
