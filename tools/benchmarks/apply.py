"""Multiplying with a chain: is the planned strategy the fastest, and what does it cost over dense?

    python -m tools.benchmarks.apply                # all cells, about six minutes on two cores
    python -m tools.benchmarks.apply --quick        # fewer tokens and caps
    python -m tools.benchmarks.apply --json=cells.json

Prints for every cell the chosen strategy, its time over the fastest of all strategies, and over one
dense matmul of the same size; then the summary and the bytes saved for the backward pass.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mpojax import mpo
from tools.benchmarks import timing

_QUICK = flags.DEFINE_bool("quick", False, "Only 1 and 512 tokens and caps full, 32, 8.")
_JSON = flags.DEFINE_string("json", None, "Also write the raw times of all cells here.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds for each cell.")

SHAPES = {
    "768x768": mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)),
    "768x3072": mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
}
TOKENS = (1, 32, 512, 4096)
CAPS = (None, 128, 64, 32, 16, 8)
# A strategy is not run where its predicted time is this many times the best prediction, and not
# measured further where its first run took this many times that of the fastest: it cannot win.
_HOPELESS, _SLOW = 12, 3


def make(shape, tokens, seed=0):
    """Random cores, activations and output gradient of one cell."""
    rng = np.random.default_rng(seed)
    cores = tuple(
        jnp.asarray(rng.standard_normal(s) / np.sqrt(s[0] * s[1]), jnp.float32)
        for s in shape.core_shapes
    )
    x = jnp.asarray(rng.standard_normal((tokens, shape.in_features)), jnp.float32)
    dy = jnp.asarray(rng.standard_normal((tokens, shape.out_features)), jnp.float32)
    return cores, x, dy


def with_gradients(function):
    """(parameters, x, dy) -> value and gradients, as one training step needs them."""

    def run(parameters, x, dy):
        y, pull_back = jax.vjp(function, parameters, x)
        return y, pull_back(dy)

    return run


def cell(shape, tokens, training, rounds):
    """Times of one cell: strategy -> seconds, and "dense"."""
    cores, x, dy = make(shape, tokens)
    w = jnp.asarray(mpo.to_matrix(cores))
    plan = mpo.plan(shape, tokens=tokens, training=training)
    promising = _HOPELESS * min(cost.seconds for cost in plan.costs)
    functions = {"dense": (lambda w, x: x @ w, w)}
    for cost in plan.costs:
        if cost.seconds <= promising:
            functions[cost.strategy] = (
                lambda c, x, s=cost.strategy: mpo.apply(c, x, plan=s, training=training),
                cores,
            )
    candidates = {}
    for name, (function, parameters) in functions.items():
        jitted = jax.jit(with_gradients(function) if training else function)
        arguments = (parameters, x, dy) if training else (parameters, x)
        candidates[name] = functools.partial(jitted, *arguments)
    return plan, timing.interleaved(candidates, rounds, seconds_each=0.03, prune=_SLOW)


def saved_bytes():
    """Bytes kept between forward and backward over those of x, for each cap at 512 tokens."""
    ratios = {}
    for name, full in SHAPES.items():
        for cap in CAPS:
            shape = full if cap is None else full.with_bonds(cap)
            cores, x, _ = make(shape, 512)
            _, pull_back = jax.vjp(mpo.apply, cores, x)
            kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull_back))
            # The residuals hold the cores, too, which are kept in any case.
            ratios[name, cap] = (kept - sum(core.nbytes for core in cores)) / x.nbytes
    return ratios


def main(argv):
    del argv
    tokens = (1, 512) if _QUICK.value else TOKENS
    caps = (None, 32, 8) if _QUICK.value else CAPS
    print(timing.machine())
    header = f"{'matrix':<10}{'cap':>5}{'tokens':>8}  {'pass':<18}{'chosen':<21}"
    print(header + f"{'/ fastest':>10}{'/ dense':>9}{'fastest':>22}")
    cells = []
    for name, full in SHAPES.items():
        for cap in caps:
            for count in tokens:
                for training in (False, True):
                    shape = full if cap is None else full.with_bonds(cap)
                    plan, times = cell(shape, count, training, _ROUNDS.value)
                    chosen = times[plan.strategy]
                    fastest = min(set(times) - {"dense"}, key=times.get)
                    kind = "forward+backward" if training else "forward"
                    print(
                        f"{name:<10}{cap or 'full':>5}{count:>8}  {kind:<18}{plan.strategy:<21}"
                        f"{chosen / times[fastest]:>10.2f}{chosen / times['dense']:>9.2f}"
                        f"{fastest:>22}",
                        flush=True,
                    )
                    cells.append(
                        {
                            "matrix": name,
                            "cap": cap,
                            "tokens": count,
                            "training": training,
                            "times": times,
                            "chosen": plan.strategy,
                            "regret": chosen / times[fastest],
                        }
                    )
    regrets = np.array([c["regret"] for c in cells])
    skipped = sum(len(mpo.STRATEGIES) + 1 - len(c["times"]) for c in cells)
    print(
        f"{skipped} of {len(cells) * len(mpo.STRATEGIES)} strategies not run: predicted at least "
        f"{_HOPELESS} times slower than the best"
    )
    print(
        f"{len(cells)} cells: chosen strategy within 1.15x of the fastest in "
        f"{np.mean(regrets <= 1.15):.0%}, within 1.4x in {np.mean(regrets <= 1.4):.0%}, "
        f"worst {regrets.max():.2f}x"
    )
    kept = saved_bytes()
    print(
        "bytes saved for the backward pass / bytes of x: "
        f"{min(kept.values()):.2f} to {max(kept.values()):.2f} over all matrices and caps"
    )
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(cells, file, indent=1)


if __name__ == "__main__":
    app.run(main)
