"""Time, error and memory of decompositions.

    python -m tools.benchmarks.decompose                  # one matrix, then BERT-base
    python -m tools.benchmarks.decompose --model=FOLDER   # also compress this checkpoint

The baseline is what the papers' released code spends on a matrix: 4 (n - 1) full singular value
decompositions of the same unfoldings, here with numpy in float32.
"""

import math
import resource
import time

import jax
import numpy as np
from absl import app, flags

from mpojax import mpo
from tools.benchmarks import timing

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder to compress at --budget.")
_BUDGET = flags.DEFINE_float("budget", 0.6, "Fraction of the parameters to keep.")
_SKIP_BERT = flags.DEFINE_bool("skip_bert", False, "Leave out the 73 matrices of BERT-base.")

FEED_FORWARD = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
ATTENTION = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))
# The 73 large matrices of BERT-base: token embedding; per layer four of attention and two others.
BERT_BASE = [
    (ATTENTION, 48),
    (FEED_FORWARD, 12),
    (mpo.MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)), 12),
    (mpo.MPOShape((6, 8, 10, 8, 8), (4, 4, 4, 4, 3), in_features=30522), 1),
]


def unfoldings(w, shape):
    """All n - 1 unfoldings of a matrix."""
    n = shape.num_cores
    # (i_1, ..., i_n, j_1, ..., j_n) -> (i_1, j_1, ..., i_n, j_n)
    axes = [axis for k in range(n) for axis in (k, n + k)]
    x = w.reshape(*shape.in_factors, *shape.out_factors).transpose(axes)
    sizes = shape.site_sizes
    return [np.ascontiguousarray(x.reshape(math.prod(sizes[:k]), -1)) for k in range(1, n)]


def one_matrix():
    w = np.random.default_rng(0).standard_normal((768, 3072)).astype(np.float32)
    device_w = jax.numpy.asarray(w)

    def svds():
        return [np.linalg.svd(m, full_matrices=False) for m in unfoldings(w, FEED_FORWARD)]

    times = timing.interleaved(
        {
            "4 svds": svds,
            "host, float64": lambda: mpo.decompose(w, FEED_FORWARD),
            "jit, float32": lambda: mpo.decompose(device_w, FEED_FORWARD),
        },
        rounds=5,
        seconds_each=0.2,
    )
    baseline = 4 * times["4 svds"]
    print(f"768x3072, full bonds, float32; 4 (n - 1) = 16 full SVDs take {1e3 * baseline:.0f} ms")
    for name, source in (("host, float64", w), ("jit, float32", device_w)):
        error = mpo.relative_error(w, mpo.to_matrix(mpo.decompose(source, FEED_FORWARD)))
        print(f"  {name:<14}{times[name] / baseline:>7.3f} x baseline, error {error:.1e}")


def bert_base():
    rng = np.random.default_rng(0)
    start, count = time.perf_counter(), 0
    spent = 0.0
    for shape, times in BERT_BASE:
        for _ in range(times):
            w = rng.standard_normal((shape.in_features, shape.out_features), np.float32)
            begin = time.perf_counter()
            mpo.decompose(w, shape)
            spent += time.perf_counter() - begin
            count += 1
    total = time.perf_counter() - start
    print(
        f"BERT-base, {count} matrices, full bonds: {spent:.1f} s ({total:.1f} s with making them)"
    )


def compress(folder):
    from mpojax import compression, io

    model = io.load_pretrained(folder)
    rules = [(".*/(query|key|value|out|up|down)", {}), ("embeddings/word", {})]
    start = time.perf_counter()
    _, report = compression.compress(model, rules, budget=_BUDGET.value)
    seconds = time.perf_counter() - start
    # kB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(report.summary())
    print(f"compressed in {seconds:.1f} s; peak memory of the process {peak:.2f} GB")


def main(argv):
    del argv
    print(timing.machine())
    if _MODEL.value:  # first: its peak memory is that of the process
        compress(_MODEL.value)
    one_matrix()
    if not _SKIP_BERT.value:
        bert_base()


if __name__ == "__main__":
    app.run(main)
