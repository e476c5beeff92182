"""A step of lightweight over one of dense full fine-tuning, and what the optimizer keeps.

    python -m tools.benchmarks.finetuning                  # MiniLM, 32 x 64 tokens
    python -m tools.benchmarks.finetuning --architecture=bert-base-uncased --rounds=3

Whole training steps (forward, backward, AdamW) on random weights, batch and length static. The
chains are those of all attention and feed-forward matrices, with the token embedding dense and
frozen; the last rows have the token embedding as a chain too, as in the paper.
"""

import dataclasses
import functools

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from mpojax import compression, models, training
from mpojax.methods import mpop
from tools.benchmarks import timing

_ARCHITECTURE = flags.DEFINE_string("architecture", "all-MiniLM-L6-v2", "Of models.PRESETS.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of a sequence.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each step is measured.")

_LAYERS = ".*/(query|key|value|out|up|down)"
# Name -> (rules, cap, what is trained).
_VARIANTS = {
    "dense, all": ((), None, "all"),
    "LFA, full bonds": ((_LAYERS,), None, "lightweight"),
    "LFA, cap 64": ((_LAYERS,), 64, "lightweight"),
    "LFA, cap 32": ((_LAYERS,), 32, "lightweight"),
    "LFA, full bonds, word too": ((_LAYERS, "embeddings/word"), None, "lightweight"),
    "LFA, cap 64, word too": ((_LAYERS, "embeddings/word"), 64, "lightweight"),
}


def main(argv):
    del argv
    print(timing.machine())
    config = models.PRESETS[_ARCHITECTURE.value]
    pooling = "mean" if config.pooling == "none" else config.pooling
    config = dataclasses.replace(
        config, num_labels=2, pooling=pooling, dropout=0.0, attention_dropout=0.0
    )
    print(f"{_ARCHITECTURE.value}, {_BATCH.value} x {_LENGTH.value} tokens")
    held = {name: _Steps(config, *fields) for name, fields in _VARIANTS.items()}
    times = timing.interleaved(
        {name: functools.partial(each.step) for name, each in held.items()}, _ROUNDS.value, 0.0
    )
    print(f"{'variant':<28}{'trained':>12}{'ms':>9}{'/ dense':>9}{'optimizer / dense':>19}")
    dense_time = times["dense, all"]
    dense_bytes = held["dense, all"].optimizer_bytes
    for name, each in held.items():
        print(
            f"{name:<28}{each.trained:>12,}{1e3 * times[name]:>9.1f}"
            f"{times[name] / dense_time:>9.2f}{each.optimizer_bytes / dense_bytes:>19.3f}"
        )


class _Steps:
    """One variant: `step()` runs a training step on its own state."""

    def __init__(self, config, patterns, cap, trainable):
        rules = [(pattern, {}) for pattern in patterns]
        shapes = compression.planned_shapes(config, rules, bond=cap) if rules else {}
        model = models.build(config, shapes, rngs=nnx.Rngs(0))
        optimizer = training.make_optimizer(
            {"name": "adamw", "learning_rate": 1e-5}, training.roles(model), 1000
        )
        accept = mpop.trainable_filter(trainable)
        self.trained = mpop.parameter_counts(model, accept)["trainable"]
        self.state = training.TrainState.create(model, accept, optimizer)
        self.optimizer_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.optimizer))
        self.function = training.TrainStep(training.objective("classification"), optimizer)
        shape = (_BATCH.value, _LENGTH.value)
        rng = np.random.default_rng(0)
        self.batch = {
            "input_ids": rng.integers(0, config.vocab_size, shape).astype(np.int32),
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "labels": rng.integers(0, 2, shape[0]).astype(np.int32),
        }

    def step(self):
        self.state, metrics = self.function(self.state, self.batch)
        return metrics["loss"]


if __name__ == "__main__":
    app.run(main)
