"""Decoding one token through a stack of feed-forward blocks, merged beforehand, over dense.

    python -m tools.benchmarks.decode               # about a minute on two cores

24 blocks 768 -> 3072 -> 768 in one jitted scan; every block has weights of its own, so that dense
weights stream from memory as in a real model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mpojax import mpo
from tools.benchmarks import timing

_LAYERS = flags.DEFINE_integer("layers", 24, "Feed-forward blocks.")
_TOKENS = flags.DEFINE_multi_integer("tokens", [1, 8], "Tokens decoded at once.")
_CAPS = flags.DEFINE_multi_integer("caps", [64, 32, 16, 8], "Bond caps.")

UP = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
DOWN = mpo.MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4))


def prepared(shape, plan, seed):
    """Merged arrays of all layers, stacked."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(_LAYERS.value):
        cores = tuple(
            jnp.asarray(rng.standard_normal(s) / np.sqrt(s[0] * s[1]), jnp.float32)
            for s in shape.core_shapes
        )
        layers.append(mpo.prepare(cores, plan))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def main(argv):
    del argv
    print(timing.machine())
    print(f"{'tokens':>7}{'cap':>5}{'/ dense':>9}  strategies (up, down)")
    rng = np.random.default_rng(0)
    # 28 and 55: square roots of the inputs, so that activations keep their size.
    w_up = jnp.asarray(rng.standard_normal((_LAYERS.value, 768, 3072)) / 28, jnp.float32)
    w_down = jnp.asarray(rng.standard_normal((_LAYERS.value, 3072, 768)) / 55, jnp.float32)

    def dense(x, weights):
        def block(x, layer):
            return x + jax.nn.gelu(x @ layer[0]) @ layer[1], None

        return jax.lax.scan(block, x, weights)[0]

    for tokens in _TOKENS.value:
        x = jnp.asarray(rng.standard_normal((tokens, 768)), jnp.float32)
        candidates = {"dense": functools.partial(jax.jit(dense), x, (w_up, w_down))}
        names = {}
        for cap in _CAPS.value:
            plans = [
                mpo.plan(s.with_bonds(cap), tokens=tokens, training=False, prepared=True)
                for s in (UP, DOWN)
            ]
            names[cap] = [plan.strategy for plan in plans]
            weights = tuple(
                prepared(shape.with_bonds(cap), plan, seed)
                for seed, (shape, plan) in enumerate(zip((UP, DOWN), plans, strict=True))
            )

            def chain(x, weights, plans=plans):
                def block(x, layer):
                    h = jax.nn.gelu(mpo.apply_prepared(layer[0], plans[0], x))
                    return x + mpo.apply_prepared(layer[1], plans[1], h), None

                return jax.lax.scan(block, x, weights)[0]

            candidates[cap] = functools.partial(jax.jit(chain), x, weights)
        times = timing.interleaved(candidates, rounds=9, seconds_each=0.1)
        for cap in _CAPS.value:
            ratio = times[cap] / times["dense"]
            print(f"{tokens:>7}{cap:>5}{ratio:>9.2f}  {', '.join(names[cap])}", flush=True)


if __name__ == "__main__":
    app.run(main)
