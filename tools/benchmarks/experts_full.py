"""Training steps of whole GPT-2 and T5-base in bfloat16: 8 MPOE experts over Switch; for a GPU.

    python -m tools.benchmarks.experts_full
    python -m tools.benchmarks.experts_full --model=gpt2 --tokens=512 --length=128 --layers=2  # CPU

Random weights, forward and backward with the layers rematerialised, AdamW on float32 parameters,
buffers donated. All forms have the same dispatch. Ratios of medians of interleaved rounds.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from mpojax import models
from mpojax.methods import mpoe
from tools.benchmarks import timing

_MODELS = flags.DEFINE_multi_enum(
    "model", ["gpt2", "t5-base"], sorted(models.PRESETS), "Whose sizes."
)
_TOKENS = flags.DEFINE_multi_integer("tokens", [4096, 16_384], "Tokens of a batch.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a text.")
_LAYERS = flags.DEFINE_integer("layers", 0, "Layers of the model; 0: its own.")
_CAPACITY = flags.DEFINE_float("capacity", 1.25, "Capacity factor; 0: dropless.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each form.")

FORMS = {
    "Switch": ("switch8", {}),
    "MPOE, rebuilt": ("mpoe8", {"structure": "rebuild"}),
    "MPOE, separable": ("mpoe8_separable", {"structure": "shared_core"}),
}


def make_loss(name: str, form: str):
    """(parameters, loss of (parameters, ids)) of a form of a model."""
    variant, more = FORMS[form]
    rule = {"capacity_factor": _CAPACITY.value or None, "dispatch": "auto"} | more
    config, shapes = mpoe.planned(name, variant, **rule)
    changes = {"dtype": "bfloat16", "remat": True}
    if _LAYERS.value:
        changes["num_layers"] = _LAYERS.value
        kept = {f"layers/{layer}/" for layer in range(_LAYERS.value)}
        shapes = {p: s for p, s in shapes.items() if any(start in p for start in kept)}
    config = dataclasses.replace(config, **changes)
    graph, parameters = nnx.split(models.build(config, shapes, rngs=nnx.Rngs(0)))
    is_decoder = isinstance(config, models.DecoderConfig)

    def loss(parameters, ids):
        model = nnx.merge(graph, parameters)
        if is_decoder:
            output = model.forward(ids)
        else:  # half a text answers the other half
            source, ids = jnp.split(ids, 2, axis=1)
            output = model.forward(source, None, ids)
        # The last target wraps around, which changes no time.
        targets = jnp.roll(ids, -1, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, targets)
        balance = sum(jnp.sum(found.balance) for found in output.routing)
        return jnp.mean(losses) + 0.01 * balance

    return parameters, loss


def main(argv):
    del argv
    print(timing.machine(), flush=True)
    for name in _MODELS.value:
        vocabulary = models.PRESETS[name].vocab_size
        for tokens in _TOKENS.value:
            ids = np.random.default_rng(0).integers(0, vocabulary, (tokens, 1))
            ids = jnp.asarray(ids.reshape(-1, _LENGTH.value), jnp.int32)
            made = {form: make_loss(name, form) for form in FORMS}
            sizes = {form: sum(p.size for p in jax.tree.leaves(made[form][0])) for form in FORMS}
            steps = {form: timing.training_steps(*made.pop(form), ids) for form in FORMS}
            times = timing.interleaved(steps, _ROUNDS.value, seconds_each=0.5)
            print(f"\n{name}, {tokens:,} tokens, capacity {_CAPACITY.value or 'dropless'}")
            for form, seconds in times.items():
                print(
                    f"  {form:<18}{1e3 * seconds:>9.1f} ms{tokens / seconds:>12,.0f} tokens/s"
                    f"{seconds / times['Switch']:>7.2f} of Switch; parameters"
                    f"{sizes[form]:>14,}{sizes[form] / sizes['Switch']:>7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
