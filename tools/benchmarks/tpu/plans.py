"""Is the planned strategy the best on TPUs? Predicted times against those of their compiler.

    python -m tools.benchmarks.tpu.plans --out=experiments/results/benchmarks/tpu_plans --minutes=30

Products with one matrix, bfloat16 activations, float32 cores; every strategy that is not predicted
to take many times the best. A JSON file for each, which a further start does not compile again, and
a table. Nothing runs: times are estimates (`mpojax.training.aot.estimate`).
"""

import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp

from mpojax import files, mpo, tables, training
from mpojax.training.aot import estimate, topology
from tools.benchmarks import tpu

SHAPE = mpo.MPOShape.published(768, 3072)
CHIPS, BONDS, TOKENS = ("v5e", "v6e"), (32, 8, 64), (1, 64, 512, 4096)
# A strategy predicted to take so many times the best cannot be it: it is not compiled.
HOPELESS = 5.0
NEAR = 1.2  # a choice within so many times the best strategy is a good one


def plan(chip: str, bonds: int, tokens: int, passes: str) -> mpo.Plan:
    """The plan of a cell; passes: "forward" or "training"."""
    shape, training_ = SHAPE.with_bonds(bonds), passes == "training"
    return mpo.plan(shape, tokens=tokens, training=training_, machine=chip, dtype="bfloat16")


def cells() -> list[tuple]:
    """(chip, bonds, tokens, passes), those of one chip after the other."""
    return list(itertools.product(CHIPS, BONDS, TOKENS, ("training", "forward")))


def strategies(cell: tuple) -> list[str]:
    """Those that are compiled, the chosen one first."""
    costs = sorted(plan(*cell).costs, key=lambda cost: cost.seconds)
    return [cost.strategy for cost in costs if cost.seconds <= HOPELESS * costs[0].seconds]


def measure(chip: str, bonds: int, tokens: int, passes: str, strategy: str) -> float:
    """Microseconds of a strategy, as the compiler estimates them."""
    shape, is_training = SHAPE.with_bonds(bonds), passes == "training"
    cores = tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in shape.core_shapes)
    x, dy = (jax.ShapeDtypeStruct((tokens, size), jnp.bfloat16) for size in (768, 3072))

    def forward(cores, x):
        return mpo.apply(cores, x, shape, plan=strategy, training=is_training)

    def step(cores, x, dy):
        y, pull_back = jax.vjp(forward, cores, x)
        return y, pull_back(dy)

    with jax.set_mesh(training.make_mesh({}, topology.describe(f"{chip}:1x1"))):
        traced = jax.jit(step).trace(cores, x, dy) if is_training else None
        compiled = (traced or jax.jit(forward).trace(cores, x)).lower().compile()
    return 1e6 * estimate.of_compiled(compiled, 1, chip).on_chip


def table(found: dict[str, float]) -> str:
    """Cells whose chosen strategy and one more are compiled, or that have but one."""
    rows, near, worst = [], 0, 1.0
    for cell in cells():
        predicted = {cost.strategy: 1e6 * cost.seconds for cost in plan(*cell).costs}
        known = {s: found[_name(cell, s)] for s in strategies(cell) if _name(cell, s) in found}
        chosen = plan(*cell).strategy
        if len(known) < len(strategies(cell)):
            continue
        best = min(known, key=known.get)
        ratio = known[chosen] / known[best]
        near, worst = near + (ratio <= NEAR), max(worst, ratio)
        times = [f"{predicted[chosen]:.1f}", f"{known[chosen]:.1f}"]
        rows.append([*map(str, cell), chosen, *times, best, f"{ratio:.2f}"])
    headers = ["chip", "bonds", "tokens", "passes", "chosen", "predicted us", "compiled us"]
    text = tables.text([*headers, "best", "over it"], rows, left=5)
    share = f"{near / len(rows):.0%}" if rows else "none"
    return (
        f"{text}\n\n{len(rows)} cells; the choice is within {NEAR} of the best strategy in {share} "
        f"of them, {worst:.2f} at worst. Strategies predicted to take {HOPELESS:.0f} times the "
        "best were not compiled."
    )


def _name(cell: tuple, strategy: str) -> str:
    return "_".join(map(str, (*cell, strategy)))


def _found(folder: pathlib.Path) -> dict[str, float]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def main() -> None:
    options = tpu.parser(__doc__, "CHIP_BONDS_TOKENS_PASSES", minutes=30.0).parse_args()
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    if options.cell:
        chip, bonds, tokens, passes = options.cell.split("_")
        cell = (chip, int(bonds), int(tokens), passes)
        for strategy in strategies(cell):
            path = folder / f"{_name(cell, strategy)}.json"
            if not path.exists():
                files.write_atomic(path, f"{measure(*cell, strategy)}\n")
        return
    end = time.monotonic() + 60 * options.minutes
    for cell in cells():
        wanted = {_name(cell, strategy) for strategy in strategies(cell)}
        if time.monotonic() < end and not wanted <= set(_found(folder)):
            name = "_".join(map(str, cell))
            tpu.compile_apart("plans", folder, name, capture_output=True)
            print(name, flush=True)
            files.write_atomic(folder / "table.txt", f"{table(_found(folder))}\n")
    files.write_atomic(folder / "table.txt", f"{table(_found(folder))}\n")
    print((folder / "table.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
