"""Products with a matrix in MPO form on TPUs, as their compiler estimates them; nothing runs.

    python -m tools.benchmarks.tpu.kernels --out=experiments/results/benchmarks/tpu_kernels

A JSON file for each cell, which a further start does not compile again, and a table of all. Two
estimates stand side by side: the operations' cycles (see `mpojax.training.aot.estimate`), and the
compiler's own sum `optimal_seconds`, without the million seconds that it takes off for each
operation that it cannot judge.
"""

import datetime
import itertools
import json
import math
import pathlib
import platform

import jax
import jax.numpy as jnp

from mpojax import files, mpo, tables, training
from mpojax.training.aot import estimate, topology
from tools.benchmarks import tpu

SHAPE = (768, 3072)
COLUMNS = ("estimate_us", "optimal_us", "gflop", "hbm_mb")
HEADERS = ["chip", "tokens", "", "cycles us", "optimal us", "GFLOP", "HBM MB", "x dense", "x dense"]
CHIPS = ("v5e", "v6e")
BONDS = (32, 64, 0)  # 0: full
TOKENS = (4096, 16384)


def cells() -> list[str]:
    """Names of all cells: chip-tokens-bonds; -1 bonds: the dense matrix, 0 tokens: rebuilding."""
    trained = itertools.product(CHIPS, TOKENS, (-1, *BONDS))
    rebuilt = itertools.product(CHIPS, (0,), BONDS)
    return ["_".join(map(str, cell)) for cell in (*rebuilt, *trained)]


def compiled(chip: str, tokens: int, bonds: int) -> jax.stages.Compiled:
    """A forward and backward pass in bfloat16 with float32 parameters, or the rebuilding alone."""
    shape = mpo.MPOShape.published(*SHAPE)
    shape = shape.with_bonds(bonds) if bonds > 0 else shape
    sizes = [SHAPE] if bonds < 0 else shape.core_shapes
    parameters = tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    x, dy = (jax.ShapeDtypeStruct((tokens, size), jnp.bfloat16) for size in SHAPE)

    def forward(parameters, x):
        if bonds < 0:
            return x @ parameters[0].astype(x.dtype)
        return mpo.apply(parameters, x, shape, plan="rebuild")

    def step(parameters, x, dy):
        y, pull_back = jax.vjp(forward, parameters, x)
        return y, pull_back(dy)

    def rebuild(parameters):
        return mpo.to_matrix(parameters, shape).astype(jnp.bfloat16)

    with jax.set_mesh(training.make_mesh({}, topology.describe(f"{chip}:1x1"))):
        traced = jax.jit(step).trace(parameters, x, dy) if tokens else None
        return (traced or jax.jit(rebuild).trace(parameters)).lower().compile()


def measure(cell: str) -> dict:
    """One cell."""
    chip, tokens, bonds = cell.split("_")
    program = compiled(chip, int(tokens), int(bonds))
    found = estimate.of_compiled(program, 1, chip)
    seconds = program.cost_analysis()["optimal_seconds"]
    return {
        "cell": cell,
        "estimate_us": 1e6 * found.on_chip,
        # Whole seconds were taken off: the estimate is the fraction that is left.
        "optimal_us": 1e6 * (seconds + math.ceil(-seconds) if seconds < 0 else seconds),
        "gflop": sum(part.flops for part in found.parts) / 1e9,
        "hbm_mb": sum(part.bytes for part in found.parts) / 1e6,
    }


def table(found: dict[str, dict]) -> str:
    """All cells, each next to the dense matrix at as many tokens."""
    rows = []
    for cell in cells():
        chip, tokens, bonds = cell.split("_")
        row = found.get(cell)
        what = {"-1": "dense", "0": "chain, full"}.get(bonds, f"chain, {bonds}")
        what = what if int(tokens) else f"rebuild, {what.partition(', ')[2]}"
        numbers = ["not run"] if row is None else []
        if row is not None:
            numbers = [f"{row[name]:.1f}" for name in COLUMNS]
            dense = found.get(f"{chip}_{tokens}_-1")
            if int(tokens) and dense:
                numbers += [f"{row[name] / dense[name]:.2f}" for name in COLUMNS[:2]]
        rows.append([chip, tokens if int(tokens) else "-", what, *numbers])
    rows = [row + [""] * (len(HEADERS) - len(row)) for row in rows]
    return tables.text(HEADERS, rows, left=3)


def _head() -> str:
    return (
        f"{SHAPE[0]} x {SHAPE[1]}, bfloat16 activations, forward and backward; estimates of the "
        "TPU compiler, nothing ran.\npython -m tools.benchmarks.tpu.kernels --out=FOLDER, "
        f"{datetime.date.today()}, jax {jax.__version__}, {platform.machine()} without a TPU"
    )


def main() -> None:
    options = tpu.parser(__doc__, "NAME").parse_args()
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    if options.cell:
        found = json.dumps(measure(options.cell))
        files.write_atomic(folder / f"{options.cell}.json", f"{found}\n")
        return
    for cell in cells():
        if not (folder / f"{cell}.json").exists():
            tpu.compile_apart("kernels", folder, cell)
        paths = folder.glob("*.json")
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        files.write_atomic(folder / "table.txt", f"{_head()}\n\n{table(found)}\n")
    print((folder / "table.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
