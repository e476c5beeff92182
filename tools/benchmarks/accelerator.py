"""One GPU or TPU in eight minutes: products, attention, training steps, decoding.

    python -m tools.benchmarks.accelerator --out=experiments/results/benchmarks/h100
    python -m tools.benchmarks.accelerator --out=FOLDER --size=tiny     # a try on a CPU

Each line is printed and its JSON file written as soon as it is known; a further start goes on where
the last one ended. What fails, for want of memory for example, says so and is tried again then.
Random weights, bfloat16 activations, float32 parameters; medians of interleaved rounds. So far it
has run on CPUs at tiny sizes alone, not on a GPU.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import devices, files, models, mpo, tables, training
from mpojax.methods import mpop
from mpojax.models.decoder import causal_mask
from mpojax.nn import attention, flash
from tools.benchmarks import timing
from tools.benchmarks.workloads import WORKLOADS, Workload

# A decoder of 1.1 billion parameters, of the shape of LLaMA (TinyLlama: Zhang et al., 2024).
LLAMA = dataclasses.replace(
    models.PRESETS["SmolLM2-135M"],
    vocab_size=32_000,
    hidden_size=2048,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    intermediate_size=5632,
    max_positions=2048,
    rotary_base=10_000.0,
    bos_id=None,
    eos_id=None,
    dtype="bfloat16",
    remat=True,
)
KEPT = 0.6  # part of the parameters that its compression leaves


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      matrix, decoded: (rows, columns) of the matrices of training and of decoding.
      blocks: feed-forward blocks in the decoding of a stack.
      tokens: of products in training.
      lengths: of texts in attention.
      steps: {workload: texts of a batch}.
      decoder: settings of the large decoder.
      texts: (rows, length) of its batches.
      new_tokens: whose time is taken in decoding.
      rounds: measurements of each candidate.
    """

    matrix: tuple[int, int] = (768, 3072)
    decoded: tuple[int, int] = (4096, 11008)
    blocks: int = 24
    tokens: tuple[int, ...] = (4096, 16_384)
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    steps: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"MPOP BERT, lightweight": 32, "MPOE-8 GPT-2": 16, "MPOBERT48": 256}
    )
    decoder: models.DecoderConfig = LLAMA
    texts: tuple[int, int] = (8, 1024)
    new_tokens: int = 32
    rounds: int = 5


_TINY = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "intermediate_size": 48}
SIZES = {
    "full": Sizes(),
    "tiny": Sizes(
        *((32, 48), (32, 48), 2, (64,), (32,), {}),
        dataclasses.replace(LLAMA, **_TINY, num_heads=4, num_kv_heads=2),
        *((2, 16), 24, 1),
    ),
}
BONDS = (32, 64, None)  # None: full


def cells(sizes: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    """{name: what measures it}, in the order of their use."""
    found: dict[str, Callable] = {}
    for tokens in sizes.tokens:
        for bonds in BONDS:
            name = f"product {tokens} bonds {bonds or 'full'}"
            found[name] = functools.partial(product, sizes, tokens, bonds)
    found["decode one matrix"] = functools.partial(decode, sizes, (sizes.decoded,), 16)
    pair = (sizes.matrix, sizes.matrix[::-1])
    found["decode a stack"] = functools.partial(decode, sizes, pair, sizes.blocks)
    for length in sizes.lengths:
        found[f"attention {length}"] = functools.partial(attend, sizes, length)
    for name, rows in sizes.steps.items():
        found[f"step {name}"] = functools.partial(step, sizes, WORKLOADS[name].with_rows(rows))
    for form in ("dense", "compressed"):
        found[f"step decoder, {form}"] = functools.partial(step, sizes, _decoder(sizes, form))
        found[f"generate, {form}"] = functools.partial(generate, sizes, _decoder(sizes, form))
    return found


def _random(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype) / math.sqrt(shape[-2])


def _shape(size: tuple[int, int], bonds: int | None) -> mpo.MPOShape:
    shape = mpo.MPOShape.published(*size) or mpo.MPOShape.balanced(*size)
    return shape if bonds is None else shape.with_bonds(bonds)


def _cores(shape: mpo.MPOShape, seed: int) -> tuple[jax.Array, ...]:
    cores = (_random(seed + k, *core) for k, core in enumerate(shape.core_shapes))
    return tuple(cores)


def product(sizes: Sizes, tokens: int, bonds: int | None) -> dict[str, float]:
    """Forward and backward pass of a matrix in MPO form, over dense."""
    shape = _shape(sizes.matrix, bonds)
    x, dy = (_random(0, tokens, size, dtype=jnp.bfloat16) for size in sizes.matrix)

    def step(forward, parameters):
        @jax.jit
        def run(parameters, x, dy):
            y, pull_back = jax.vjp(forward, parameters, x)
            return y, pull_back(dy)

        return functools.partial(run, parameters, x, dy)

    dense = step(lambda w, x: x @ w.astype(x.dtype), _random(1, *sizes.matrix))
    chain = step(lambda cores, x: mpo.apply(cores, x, shape), _cores(shape, 2))
    times = timing.interleaved({"dense": dense, "chain": chain}, sizes.rounds)
    return _ratio(times, "chain", "dense")


def decode(sizes: Sizes, matrices: Sequence[tuple[int, int]], layers: int) -> dict[str, float]:
    """One token through `layers` times the matrices: dense bfloat16 over chains merged before.

    Each layer has weights of its own, which stream from memory as in a model.
    """
    shapes = [_shape(size, 32) for size in matrices]
    plans = [mpo.plan(shape, tokens=1, training=False, prepared=True) for shape in shapes]
    x = jnp.ones((1, matrices[0][0]), jnp.bfloat16)

    def merged(layer):
        pairs = enumerate(zip(shapes, plans, strict=True))
        # Seeds that do not meet: at most 9 cores a matrix, 11 matrices a layer.
        return [mpo.prepare(_cores(s, 100 * layer + 9 * i), p, x.dtype) for i, (s, p) in pairs]

    def stack(apply):
        def block(x, weights):
            y = x
            for i, each in enumerate(weights):
                y = jax.nn.gelu(apply(i, each, y))
            # A single matrix may be wider than x: cut to its width for the next layer.
            return x + y[:, : x.shape[1]], None

        return jax.jit(lambda x, weights: jax.lax.scan(block, x, weights)[0])

    dense = [_random(i, layers, *size, dtype=x.dtype) for i, size in enumerate(matrices)]
    chains = jax.tree.map(lambda *each: jnp.stack(each), *map(merged, range(layers)))
    run = stack(lambda i, each, y: mpo.apply_prepared(each, plans[i], y))
    candidates = {
        "dense": functools.partial(stack(lambda i, w, y: y @ w), x, dense),
        "chain": functools.partial(run, x, chains),
    }
    return _ratio(timing.interleaved(candidates, sizes.rounds), "dense", "chain")


def attend(sizes: Sizes, length: int) -> dict[str, Any]:
    """Causal attention of 16,384 tokens, forward and backward: products over the chosen path."""
    heads, size, rows = 16, 64, max(1, 16_384 // length if length >= 512 else 1)
    q, k, v = (_random(i, rows, length, heads, size, dtype=jnp.bfloat16) for i in range(3))
    mask = causal_mask(jnp.arange(length, dtype=jnp.int32), length, is_whole=True)
    features = {"has_bias": False, "softcap": None, "has_dropout": False}
    chosen = flash.path(q, k, mask, **features)

    def run(path):
        def loss(q, k, v):
            mixed = attention.attend(q, k, v, mask, scale=0.125, path=path)
            return jnp.sum(mixed.astype(jnp.float32))

        return functools.partial(jax.jit(jax.grad(loss, (0, 1, 2))), q, k, v)

    times = timing.interleaved({path: run(path) for path in {"products", chosen}}, sizes.rounds)
    return {"path": chosen} | _ratio(times, "products", chosen)


def _decoder(sizes: Sizes, form: str) -> Workload:
    """The large decoder, dense or with matrices of a rank that leaves `KEPT` of their numbers."""
    config, shapes = sizes.decoder, {}
    for path, (rows, columns) in config.matrix_sizes().items():
        if form == "compressed" and path.startswith("layers/"):
            rank = max(1, int(KEPT * rows * columns / (rows + columns)))
            shapes[path] = mpo.MPOShape.low_rank(rows, columns, rank)
    batch = dict.fromkeys(("input_ids", "targets", "target_weights"), sizes.texts)
    return Workload(lambda: (config, shapes), batch, training.language_model_loss(), 1000)


def _built(work: Workload) -> models.Model:
    return jax.jit(lambda: models.build(*work.model(), rngs=nnx.Rngs(0)))()


def step(sizes: Sizes, work: Workload) -> dict[str, float]:
    """Training steps: milliseconds, tokens/s, MFU by the dense model's FLOPs (0: not known)."""
    model, trainable = mpop.with_trainable(_built(work), work.trainable)
    optimizer = work.make_optimizer(model)
    state = training.TrainState.create(model, trainable, optimizer, seed=0)
    run, current = training.TrainStep(work.loss, optimizer), [state]
    batch = {name: _filled(name, leaf) for name, leaf in work.abstract_batch().items()}

    def advance():
        current[0], metrics = run(current[0], batch)
        return metrics["loss"]

    seconds = timing.interleaved({"step": advance}, sizes.rounds, seconds_each=0.3)["step"]
    chip = devices.CHIPS.get(devices.target())
    return {
        "ms": 1e3 * seconds,
        "tokens_per_second": work.rows * work.length / seconds,
        "mfu": work.flops() / (seconds * chip.flops) if chip else 0.0,
    }


def _filled(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Ones for weights and masks, random ids, zeros else: positions, labels, kinds of tokens."""
    if name.endswith("input_ids"):
        return jax.random.randint(jax.random.key(0), leaf.shape, 1, 60)
    return jnp.full(leaf.shape, name.endswith(("weights", "mask")), leaf.dtype)


def generate(sizes: Sizes, work: Workload) -> dict[str, float]:
    """Tokens/s of one text, bfloat16 matrices; the time of reading the prompt is left out."""

    def in_16_bits(path, leaf):
        name = jax.tree_util.keystr(path)
        is_matrix = any(part in name for part in ("kernel", "cores", "table"))
        return leaf.astype(jnp.bfloat16) if is_matrix else leaf

    model = jax.tree.map_with_path(in_16_bits, _built(work))
    ids = jnp.ones((1, 16), jnp.int32)
    runs = {
        num: functools.partial(models.generate, model, ids, max_new_tokens=num)
        for num in (1, 1 + sizes.new_tokens)
    }
    times = timing.interleaved(runs, sizes.rounds, seconds_each=0.3)
    # The difference of two lengths: reading the prompt and starting the program cancel out.
    seconds = (times[1 + sizes.new_tokens] - times[1]) / sizes.new_tokens
    if seconds <= 0.0:
        raise ValueError(f"{sizes.new_tokens} more tokens took no longer: the machine is busy.")
    return {"ms": 1e3 * seconds, "tokens_per_second": 1 / seconds}


def _ratio(times: Mapping[str, float], over: str, under: str) -> dict[str, float]:
    micros = {f"{name}_us": 1e6 * seconds for name, seconds in times.items()}
    return micros | {"ratio": times[over] / times[under]}


def line(name: str, found: Mapping[str, Any]) -> str:
    """A cell as text."""
    return f"{name:<36}{', '.join(f'{key} {_text(value)}' for key, value in found.items())}"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """All cells as text."""
    rows = [
        [name, key, _text(value)] for name, each in found.items() for key, value in each.items()
    ]
    return tables.text(["what", "measure", "value"], rows, left=2)


def run(folder: pathlib.Path, sizes: Sizes, minutes: float = 8.0) -> int:
    """Measures what is not known yet; returns the number of cells that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    end, known, todo = time.monotonic() + 60 * minutes, {}, cells(sizes)
    print(timing.machine(), flush=True)
    for name, measure in todo.items():
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not path.exists() and time.monotonic() < end:
            try:
                files.write_atomic(path, json.dumps(measure()) + "\n")
            except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
                print(f"{name:<36}failed: {str(error).splitlines()[0][:150]}", flush=True)
        if path.exists():
            known[name] = json.loads(path.read_text(encoding="utf-8"))
            print(line(name, known[name]), flush=True)
            files.write_atomic(folder / "table.txt", f"{timing.machine()}\n\n{table(known)}\n")
    return len(todo) - len(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the cells and of table.txt")
    parser.add_argument("--minutes", default=8.0, type=float, help="no cell starts after these")
    parser.add_argument("--size", default="full", choices=sorted(SIZES))
    options = parser.parse_args()
    missing = run(pathlib.Path(options.out), SIZES[options.size], options.minutes)
    print(f"{missing} cells are missing; the same command goes on." if missing else "complete.")


if __name__ == "__main__":
    main()
