"""Forward + backward of one matrix over dense, with the floor that the FLOPs set next to it.

    python -m tools.benchmarks.overhead             # about two minutes on two cores

Floor 1 + R / T: the matrix is rebuilt once (R tokens' worth of dense work) for T tokens. Keeping
only x and the cores means a second rebuild in the backward pass: 1 + 4 R / (3 T).
"""

import functools

import jax
import jax.numpy as jnp
from absl import app

from mpojax import mpo
from mpojax.mpo import embedding
from tools.benchmarks import apply as cells
from tools.benchmarks import timing

_ROUNDS = 7


def main(argv):
    del argv
    print(timing.machine())
    print(f"{'matrix':<10}{'cap':>6}{'tokens':>8}{'/ dense':>9}{'1+R/T':>8}{'1+4R/3T':>9}")
    for name, full in cells.SHAPES.items():
        for tokens in (512, 4096):
            _, x, dy = cells.make(full, tokens)
            w = jnp.zeros((full.in_features, full.out_features)) + 0.02
            dense = jax.jit(cells.with_gradients(lambda w, x: x @ w))
            candidates = {"dense": functools.partial(dense, w, x, dy)}
            shapes = {cap: full if cap is None else full.with_bonds(cap) for cap in cells.CAPS}
            for cap, shape in shapes.items():
                cores = cells.make(shape, 1)[0]
                step = jax.jit(cells.with_gradients(mpo.apply))
                candidates[cap] = functools.partial(step, cores, x, dy)
            times = timing.interleaved(candidates, _ROUNDS, seconds_each=0.2)
            for cap, shape in shapes.items():
                rebuilt = embedding.rebuild_multiply_adds(shape) / shape.num_dense_params
                # R / T. A step has three products of T tokens; a rebuild with its derivative takes
                # 3 R (forward, and two in the backward pass), 4 R where the matrix is made again
                # for that.
                ratio = rebuilt / tokens
                print(
                    f"{name:<10}{cap or 'full':>6}{tokens:>8}{times[cap] / times['dense']:>9.2f}"
                    f"{1 + ratio:>8.2f}{1 + 4 / 3 * ratio:>9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
