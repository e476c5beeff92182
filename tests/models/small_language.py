"""Small settings of language models, with random parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import models, mpo, nn
from tests.models import small

_COMMON = {"vocab_size": 50, "hidden_size": 16, "num_heads": 4, "intermediate_size": 24}
GPT2 = models.DecoderConfig(**_COMMON, num_layers=3, max_positions=32)
LLAMA = models.DecoderConfig(
    **_COMMON,
    num_layers=3,
    num_kv_heads=2,
    head_size=6,
    max_positions=32,
    positions="rotary",
    rotary_base=100.0,
    rotary_scaling=(4.0, 1.0, 4.0, 16),
    norm="rms_norm",
    activation="silu",
    gated=True,
    attention_bias=False,
    attention_out_bias=False,
    feed_forward_bias=False,
    tied=False,
)
T5 = models.EncoderDecoderConfig(
    **_COMMON,
    num_layers=2,
    num_decoder_layers=3,
    head_size=5,
    relative_buckets=8,
    relative_distance=6,
)
T5_GATED = dataclasses.replace(
    T5, activation="gelu_tanh", gated=True, tied=False, scale_logits=False
)
# Norms before and after each part and of queries and keys, windows in two layers, of which one has
# other rotary positions, a third layer without any, caps, a parallel residual.
MIXED = dataclasses.replace(
    LLAMA,
    output_norm=True,
    qk_norm="head",
    parallel_residual=True,
    sliding_window=4,
    full_attention_layers=(2,),
    local_rotary_base=10.0,
    no_rope_layers=(1,),
    rotary_fraction=2 / 3,
    rotary_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    attention_scale=0.3,
    score_softcap=3.0,
    logits_softcap=5.0,
    embedding_scale=4.0,
    tied=True,
)
DECODERS = {"gpt2": GPT2, "llama": LLAMA, "mixed": MIXED}
PAIRS = {"1.0": T5, "1.1": T5_GATED}

run = jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@functools.cache
def dense(config, seed: int = 0):
    """A random model; scores of T5 are not divided by the root of the head size."""
    return small.random_model(config, seed=seed)


@functools.cache
def chains(config, seed: int = 0):
    """The same function with every matrix a chain."""
    return small.random_model(config, small.all_shapes(config), seed=seed)


def with_experts(config, **settings):
    """Settings with experts in every block; shapes of the block's matrices; a random model."""
    settings = nn.ExpertSettings(**{"number": 4, **settings})
    config = dataclasses.replace(config, experts=((".*feed_forward", settings),))
    shapes = {
        path: mpo.MPOShape.balanced(*size, n=3)
        for path, size in config.matrix_sizes().items()
        if "feed_forward" in path
    }
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.standard_normal(shape) * (1.0 if "norm" in name else 0.3)).astype(np.float32)
        for name, shape in models.array_shapes(config, shapes).items()
    }
    # Products of three cores would be small: the experts must matter.
    arrays = {n: a * 2.0 if "feed_forward/" in n else a for n, a in arrays.items()}
    return config, shapes, models.from_arrays(config, shapes, arrays)


def ids(shape: tuple[int, int], seed: int = 0) -> jax.Array:
    """Random tokens from 4 on."""
    return jnp.asarray(np.random.default_rng(seed).integers(4, 50, shape), jnp.int32)


def left_padding(*numbers: int, length: int) -> jax.Array:
    """A mask with so many places of padding in each row."""
    return jnp.arange(length)[None] >= jnp.asarray(numbers)[:, None]


def close(actual, expected, tolerance: float = 1e-4):
    """Equal up to rounding, measured by the largest entry."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)
