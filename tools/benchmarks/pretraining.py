"""Training steps of deep encoders: MPOBERT against dense encoders of the same depth.

    python -m tools.benchmarks.pretraining         # 48 layers, width 256, 8 x 512 tokens
    python -m tools.benchmarks.pretraining --what=memory
    python -m tools.benchmarks.pretraining --full --batch=64 --length=128 --peak_tflops=989

Whole steps (masked words and sentence order, forward, backward, AdamW, remat by layer) on random
batches. `step`: time over that of the unshared dense encoder, interleaved; what rebuilding the
matrices takes of it, in FLOPs and in time. `compile`: tracing and compilation at 48 over 12 layers.
`memory`: the compiler's plan with and without remat. `--full`: MPOBERT 48 and 48+ against
BERT-large, bfloat16, with model FLOP utilisation: for an accelerator.
"""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from mpojax import models, training
from mpojax.methods import mpobert, mpop
from mpojax.training.dry_run import program_flops
from mpojax.training.tasks import pretraining
from tools.benchmarks import timing

_WHAT = flags.DEFINE_enum("what", "all", ["all", "step", "compile", "memory"], "What is measured.")
_LAYERS = flags.DEFINE_integer("layers", 48, "Depth.")
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Width.")
_BATCH = flags.DEFINE_integer("batch", 8, "Rows of a batch.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a row.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each step is measured.")
_FULL = flags.DEFINE_bool("full", False, "The full-size models in bfloat16.")
_PEAK = flags.DEFINE_float("peak_tflops", 0.0, "Of the device, for the utilisation; 0: not shown.")

_VOCABULARY = 8000
_KINDS = ("unshared", "MPOBERT", "all shared")


def main(argv):
    del argv
    print(timing.machine())
    batch = _batch()
    if _FULL.value:
        large = models.PRESETS["bert-large-uncased"]
        heads = {"masked_lm": True, "num_labels": 2, "dropout": 0.0, "attention_dropout": 0.0}
        changes = heads | {"dtype": "bfloat16", "remat": True}
        built = {
            "BERT-large": (dataclasses.replace(large, **changes), {}),
            "MPOBERT48": mpobert.variant("mpobert48", **changes),
            "MPOBERT48+": mpobert.variant("mpobert48plus", **changes),
        }
        _measure_steps(built, batch, "BERT-large")
        return
    print(f"{_LAYERS.value} layers, width {_HIDDEN.value}, {_BATCH.value} x {_LENGTH.value} tokens")
    if _WHAT.value in ("all", "memory"):
        _measure_memory(batch)
    if _WHAT.value in ("all", "compile"):
        _measure_compilation(batch)
    if _WHAT.value in ("all", "step"):
        _measure_steps({kind: _settings(kind, _LAYERS.value) for kind in _KINDS}, batch, "unshared")


def _settings(kind: str, layers: int, remat: bool = True):
    config, shapes = mpobert.settings(
        num_layers=layers,
        hidden_size=_HIDDEN.value,
        vocab_size=_VOCABULARY,
        max_positions=max(512, _LENGTH.value),
        remat=remat,
    )
    if kind == "MPOBERT":
        return config, shapes
    groups = None if kind == "unshared" else 1
    everything = models.EncoderConfig.shared_roles
    return dataclasses.replace(config, layer_groups=groups, shared_roles=everything), {}


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # 15 % of the tokens are masked, as in BERT.
    shape, places = (_BATCH.value, _LENGTH.value), (_BATCH.value, _LENGTH.value * 15 // 100)
    labels = rng.integers(5, _VOCABULARY, places).astype(np.int32)
    return {
        "input_ids": rng.integers(5, _VOCABULARY, shape).astype(np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
        "mlm_positions": rng.integers(0, shape[1], places).astype(np.int32),
        "mlm_labels": labels,
        "mlm_weights": np.ones(places, np.float32),
        "sop_positions": np.zeros((shape[0], 1), np.int32),
        "sop_labels": np.zeros((shape[0], 1), np.int32),
        "sop_weights": np.ones((shape[0], 1), np.float32),
    }


def _optimizer(model):
    settings = {"name": "adamw", "learning_rate": 1e-4}
    return training.make_optimizer(settings, training.roles(model), 1000)


def _program(config, shapes, batch):
    """The traced step, on shapes alone."""
    model = mpop.abstract(config, shapes)
    optimizer = _optimizer(model)
    state = training.abstract_state(model, nnx.Param, optimizer)
    step = training.TrainStep(pretraining.pretraining_loss, optimizer)
    mesh = training.make_mesh(devices=jax.devices()[:1])
    placed = training.sharding.abstract(state, training.state_shardings(state, mesh))
    return step.trace(placed, batch)


def _measure_memory(batch):
    print("\nmemory of one step by the compiler's plan, MiB")
    print(f"{'':<12}{'remat':>10}{'without':>10}{'ratio':>8}")
    for kind in _KINDS:
        sizes = []
        for remat in (True, False):
            compiled = _program(*_settings(kind, _LAYERS.value, remat), batch).lower().compile()
            # Temporaries alone: parameters and optimizer state are arguments of the program.
            sizes.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
        print(
            f"{kind:<12}{sizes[0]:>10.0f}{sizes[1]:>10.0f}{sizes[0] / sizes[1]:>8.3f}", flush=True
        )


def _measure_compilation(batch):
    print("\ntracing and compilation, seconds, medians of 3")
    depths = (12, 48)
    print(f"{'':<12}" + "".join(f"{depth:>5} layers" for depth in depths) + f"{'ratio':>8}")
    for kind in ("MPOBERT", "unshared"):
        seconds: dict[int, list[float]] = {depth: [] for depth in depths}
        for _ in range(3):
            for depth in depths:
                jax.clear_caches()
                start = time.perf_counter()
                _program(*_settings(kind, depth), batch).lower().compile()
                seconds[depth].append(time.perf_counter() - start)
        first, last = (statistics.median(seconds[depth]) for depth in depths)
        print(f"{kind:<12}{first:>12.1f}{last:>12.1f}{last / first:>8.2f}", flush=True)


class _Steps:
    """One model: `step()` runs a training step on its own state."""

    def __init__(self, config, shapes, batch):
        model = models.build(config, shapes, rngs=nnx.Rngs(0))
        optimizer = _optimizer(model)
        self.total = sum(models.count_parameters(model).values())
        self.program_flops = program_flops(_program(config, shapes, batch).jaxpr)
        # What the step with dense matrices lacks: rebuilding them, and the backward pass of that.
        dense_flops = program_flops(_program(config, {}, batch).jaxpr)
        self.rebuilding_flops = self.program_flops - dense_flops
        rows, length = batch["input_ids"].shape
        places = batch["mlm_positions"].shape[1]
        self.model_flops = models.model_flops(config, rows, length, predictions=places)
        mesh = training.make_mesh(devices=jax.devices()[:1])
        state = training.TrainState.create(model, nnx.Param, optimizer)
        self.state = training.sharding.device_put(state, training.state_shardings(state, mesh))
        self.function = training.TrainStep(pretraining.pretraining_loss, optimizer)
        self.batch = training.sharding.shard_batch(batch, rows, mesh)
        self.chains = model if shapes else None

    def step(self):
        self.state, metrics = self.function(self.state, self.batch)
        return metrics["loss"]


def _measure_steps(built, batch, baseline: str):
    held = {name: _Steps(*settings, batch) for name, settings in built.items()}
    candidates = {name: each.step for name, each in held.items()}
    rebuilt = {n: _rebuilding(each.chains) for n, each in held.items() if each.chains is not None}
    candidates |= {f"{n}: rebuilding": functools.partial(*call) for n, call in rebuilt.items()}
    times = timing.interleaved(candidates, _ROUNDS.value, 0.0)
    tokens = batch["input_ids"].size
    print("\none training step, medians; rebuilding: fraction of the FLOPs / of the time")
    print(
        f"{'':<12}{'parameters':>12}{'ms':>10}{'/ ' + baseline:>13}{'tokens/s':>10}"
        f"{'TFLOP':>8}{'rebuilding':>15}{'utilised':>10}"
    )
    for name, each in held.items():
        seconds = times[name]
        line = f"{name:<12}{each.total:>12,}{1e3 * seconds:>10.1f}"
        line += f"{seconds / times[baseline]:>13.2f}{tokens / seconds:>10,.0f}"
        line += f"{each.program_flops / 1e12:>8.3f}"
        if name in rebuilt:
            work = each.rebuilding_flops / each.program_flops
            share = times[f"{name}: rebuilding"] / seconds
            line += f"{work:>7.1%} /{share:>6.1%}"
        else:
            line += f"{'':>15}"
        if _PEAK.value:
            line += f"{each.model_flops / seconds / (1e12 * _PEAK.value):>10.1%}"
        print(line, flush=True)


def _rebuilding(model):
    """(function, model): every matrix rebuilt, forward and backward; a step with remat adds one."""

    @jax.jit
    def run(model):
        def total(model):
            dense = models.merged(model)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(nnx.state(dense, nnx.Param)))

        return total(model), jax.grad(total)(model)

    return run, model


if __name__ == "__main__":
    app.run(main)
