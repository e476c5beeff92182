"""Tokens per second of generation: experts merged beforehand, rebuilt at every token, and dense.

    python -m tools.benchmarks.generate               # about five minutes on two cores

`all rebuilt` rebuilds the matrices of every expert at every token, `rebuilt`, what `generate` does
with a model that is not merged, those of the experts that a token visits.

A decoder of GPT-2's width and vocabulary with few layers. The time of a token is that of many
tokens less that of one, over their number: reading the prompt is left out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from mpojax import models, mpo, nn
from tools.benchmarks import timing

_LAYERS = flags.DEFINE_integer("layers", 2, "Layers.")
_EXPERTS = flags.DEFINE_integer("experts", 8, "Experts of each layer.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 50_257, "Rows of the token embedding.")
_ROWS = flags.DEFINE_multi_integer("rows", [1, 8], "Texts generated at once.")
_PROMPT = flags.DEFINE_integer("prompt", 16, "Tokens of each prompt.")
_TOKENS = flags.DEFINE_integer("tokens", 8, "New tokens whose time is taken.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each model.")

# Factors of the MPOE paper.
SHAPES = {
    "feed_forward/up": mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
    "feed_forward/down": mpo.MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)),
}


def candidates() -> dict[str, models.LanguageModel]:
    """Models by name. Those with experts have the same parameters."""
    plain = models.DecoderConfig(_VOCABULARY.value, 768, _LAYERS.value, 12, 3072)
    settings = nn.ExpertSettings(number=_EXPERTS.value, structure="rebuild")
    everything = dataclasses.replace(settings, dispatch="dense")
    shapes = {
        f"layers/{layer}/{name}": shape
        for layer in range(_LAYERS.value)
        for name, shape in SHAPES.items()
    }

    def with_experts(settings):
        config = dataclasses.replace(plain, experts=((".*/feed_forward", settings),))
        return models.build(config, shapes, rngs=nnx.Rngs(0))

    rebuilt = with_experts(settings)
    return {
        "dense": models.build(plain, rngs=nnx.Rngs(0)),
        "merged": jax.jit(models.merged)(rebuilt),
        "rebuilt": rebuilt,
        "all rebuilt": with_experts(everything),
    }


def main(argv):
    del argv
    print(timing.machine())
    print(f"{_LAYERS.value} layers, {_EXPERTS.value} experts, prompts of {_PROMPT.value} tokens")
    print(f"{'rows':>5}{'model':>13}{'ms a token':>12}{'tokens / s':>12}{'/ all rebuilt':>15}")
    made = candidates()
    for rows in _ROWS.value:
        ids = np.random.default_rng(0).integers(0, _VOCABULARY.value, (rows, _PROMPT.value))
        ids = jnp.asarray(ids, jnp.int32)
        runs = {
            (name, num): functools.partial(models.generate, model, ids, max_new_tokens=num)
            for name, model in made.items()
            for num in (1, 1 + _TOKENS.value)
        }
        times = timing.interleaved(runs, rounds=_ROUNDS.value, seconds_each=0.5)
        seconds = {
            name: (times[name, 1 + _TOKENS.value] - times[name, 1]) / _TOKENS.value for name in made
        }
        for name, each in seconds.items():
            ratio = seconds["all rebuilt"] / each
            print(f"{rows:>5}{name:>13}{1e3 * each:>12.1f}{rows / each:>12.1f}{ratio:>14.1f}x")


if __name__ == "__main__":
    app.run(main)
