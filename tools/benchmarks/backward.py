"""Attention and elementwise functions of the layers, forward and backward, over plain ones.

    python -m tools.benchmarks.backward         # MiniLM's sizes, 32 x 64 tokens; a minute

`kept` are the bytes that one call keeps for its backward pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mpojax import nn
from mpojax.nn import attention, functional
from tools.benchmarks import timing

_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is measured.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of a sequence.")
_WIDTH, _HEADS, _INNER = 384, 12, 1536


def draw(*shape):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((_BATCH.value, *shape)), jnp.float32)


def plain_norm(x):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-12)


def pairs() -> dict:
    """{name: (ours, plain, arguments)}."""
    length = _LENGTH.value
    heads = draw(length, _HEADS, _WIDTH // _HEADS)
    mask = jnp.ones((_BATCH.value, 1, 1, length), bool)
    scale = (_WIDTH // _HEADS) ** -0.5
    return {
        "attention": (
            lambda q, k, v: attention.attend(q, k, v, mask, scale=scale),
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale),
            (heads, heads + 1, heads - 1),
        ),
        "softmax": (functional.softmax, jax.nn.softmax, (draw(_HEADS, length, length),)),
        "gelu": (
            nn.ACTIVATIONS["gelu"],
            functools.partial(jax.nn.gelu, approximate=False),
            (draw(length, _INNER),),
        ),
        "layer norm": (nn.LayerNorm(_WIDTH, 1e-12), plain_norm, (draw(length, _WIDTH),)),
    }


def both_passes(function):
    """Forward and backward pass in one program."""

    @jax.jit
    def run(*arguments):
        result, backward = jax.vjp(function, *arguments)
        return result, backward(result)

    return run


def kept(function, arguments) -> int:
    """Bytes between the two passes, the arguments among them where they are needed."""
    shapes = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def main(argv):
    del argv
    print(timing.machine())
    print(f"{_BATCH.value} x {_LENGTH.value} tokens, width {_WIDTH}, {_HEADS} heads; float32")
    print(f"{'':<14}{'ms':>8}{'plain ms':>10}{'ratio':>8}{'kept MB':>10}{'plain MB':>10}")
    for name, (ours, plain, arguments) in pairs().items():
        runs = {
            label: functools.partial(both_passes(each), *arguments)
            for label, each in (("ours", ours), ("plain", plain))
        }
        times = timing.interleaved(runs, _ROUNDS.value, 0.5)
        sizes = [kept(each, arguments) / 1e6 for each in (ours, plain)]
        print(
            f"{name:<14}{1e3 * times['ours']:>8.2f}{1e3 * times['plain']:>10.2f}"
            f"{times['ours'] / times['plain']:>8.2f}{sizes[0]:>10.1f}{sizes[1]:>10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
