"""Steps of adapters over one of the head alone, and what a search over them adds.

    python -m tools.benchmarks.adapters                    # MiniLM, 32 x 64 tokens; five minutes

Whole training steps (forward, backward, AdamW) on random weights. `expected` is a reference step
times the ratio of the floating-point operations of all matrix products of the two programs,
see `program_flops`; elementwise work is left out of both. References: the head alone, which has no
backward pass through the frozen base, and the bias of the first norm, which has that pass and next
to nothing else. `state` are the bytes of what is trained and of its moments. At the end, a run of
so many steps with rounds of scoring in it, over the same steps without.
"""

import dataclasses
import functools
import time

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from mpojax import compression, models, training
from mpojax.methods.pet import search as pet_search
from mpojax.training.dry_run import program_flops
from tools.benchmarks import timing

_ARCHITECTURE = flags.DEFINE_string("architecture", "all-MiniLM-L6-v2", "Of models.PRESETS.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of a sequence.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each step is measured.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of the run with a search.")

_TWO = "layers/.*/(query|value)"
_SIX = "layers/.*/(query|key|value|out|up|down)"
_BIASES = "(?!head/).*/bias"
# Name -> rules of adapters.
VARIANTS = {
    "head alone": (),
    "everything": None,
    "bias of the first norm": (("embeddings/norm/bias", {"kind": "bias"}),),
    "BitFit": ((_BIASES, {"kind": "bias"}),),
    "low rank 8, query and value": ((_TWO, {"rank": 8}),),
    "low rank 8, six matrices": ((_SIX, {"rank": 8}),),
    "chains of three cores, bonds 8": ((_TWO, {"kind": "mpo", "bond": 8}),),
}


def base():
    config = models.PRESETS[_ARCHITECTURE.value]
    pooling = "mean" if config.pooling == "none" else config.pooling
    config = dataclasses.replace(
        config, num_labels=2, pooling=pooling, dropout=0.0, attention_dropout=0.0
    )
    return models.build(config, rngs=nnx.Rngs(0))


class Batches:
    """The same rows at every step."""

    def __init__(self):
        rng, self.batch_size = np.random.default_rng(0), _BATCH.value
        shape = (_BATCH.value, _LENGTH.value)
        self.batch = {
            "input_ids": rng.integers(1, 1000, shape).astype(np.int32),
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "labels": rng.integers(0, 2, shape[0]).astype(np.int32),
        }

    def rows(self, step, rows):
        del step
        return {name: array[rows] for name, array in self.batch.items()}


def optimizer_of(model):
    settings = {"name": "adamw", "learning_rate": 1e-5}
    return training.make_optimizer(settings, training.roles(model), 1000)


class Steps:
    """One variant: `step()` runs a training step on its own state."""

    def __init__(self, rules):
        model = base()
        if rules is None:
            accept = nnx.Param
        elif rules:
            model = compression.add_adapters(model, list(rules), rngs=nnx.Rngs(0))
            accept = models.adapter_filter(model)
        else:
            accept = lambda path, variable: path[0] == "head"  # noqa: E731
        optimizer = optimizer_of(model)
        self.state = training.TrainState.create(model, accept, optimizer)
        self.numbers = sum(x.size for x in jax.tree.leaves(self.state.trainable))
        self.function = training.TrainStep(training.objective("classification"), optimizer)
        self.batch = jax.tree.map(jax.numpy.asarray, Batches().batch)
        self.operations = program_flops(self.function.trace(self.state, self.batch).jaxpr)
        trained = (self.state.trainable, self.state.optimizer)
        self.bytes = sum(x.nbytes for x in jax.tree.leaves(trained))

    def step(self):
        self.state, metrics = self.function(self.state, self.batch)
        return metrics["loss"]


def run(search: bool) -> float:
    """Seconds of a run of the super-set, with a search in it or without, compilation left out."""
    rules = [(_SIX, {"rank": 8}), (_BIASES, {"kind": "bias"})]
    model = compression.add_adapters(base(), rules, rngs=nnx.Rngs(0))
    optimizer = pet_search.masked(optimizer_of(model))
    loss, hooks = training.objective("classification"), []
    settings = pet_search.SearchSettings(budget=18_432, score_batches=2)
    if search:
        hooks = [pet_search.Search(model, settings, loss, _STEPS.value)]
    state = training.TrainState.create(model, models.adapter_filter(model), optimizer)
    data = Batches()

    class Clock(training.Hook):
        order = 1000

        def after_step(self, loop):
            # From the second step on, and without the first round, which compiles the scoring.
            jax.block_until_ready(loop.state)
            first = settings.round_steps(_STEPS.value)[0]
            self.times = [*getattr(self, "times", []), time.perf_counter()]
            self.skipped = first

    clock = Clock()
    training.fit(state, loss, data, optimizer=optimizer, steps=_STEPS.value, hooks=[*hooks, clock])
    gaps = np.diff(clock.times)
    # Entry i is step i + 2.
    gaps = np.delete(gaps, [0, clock.skipped - 2])
    return float(np.sum(gaps))


def main(argv):
    del argv
    print(timing.machine())
    print(f"{_ARCHITECTURE.value}, {_BATCH.value} x {_LENGTH.value} tokens")
    held = {name: Steps(rules) for name, rules in VARIANTS.items()}
    times = timing.interleaved(
        {name: functools.partial(each.step) for name, each in held.items()}, _ROUNDS.value, 0.0
    )
    references = ("head alone", "bias of the first norm")
    print(f"{'':<34}{'':>10}{'':>10}{'':>9}{'over that of':^20}{'over that expected from':^24}")
    print(
        f"{'variant':<34}{'trained':>10}{'state MB':>10}{'ms':>9}"
        f"{'head':>10}{'bias':>10}{'head':>12}{'bias':>12}"
    )
    for name, each in held.items():
        ratios = [times[name] / times[reference] for reference in references]
        work = [each.operations / held[reference].operations for reference in references]
        print(
            f"{name:<34}{each.numbers:>10,}{each.bytes / 1e6:>10.2f}{1e3 * times[name]:>9.1f}"
            + "".join(f"{ratio:>10.2f}" for ratio in ratios)
            + "".join(f"{r / w:>12.2f}" for r, w in zip(ratios, work, strict=True)),
            flush=True,
        )
    with_search, without = run(True), run(False)
    print(
        f"{_STEPS.value} steps of the super-set with a search of 10 rounds, 2 batches each, over "
        f"the same without: {with_search / without:.3f} (first round left out: it compiles)"
    )


if __name__ == "__main__":
    app.run(main)
