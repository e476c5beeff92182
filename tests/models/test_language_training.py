"""Gradients of language models in 16 bits, and what padding may not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, nn
from tests import marks

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
GPT2 = models.DecoderConfig(**SIZES, intermediate_size=32, max_positions=16, dropout=0.0)
GROUPED = dataclasses.replace(GPT2, num_kv_heads=2, positions="rotary", gated=True)
T5 = models.EncoderDecoderConfig(**SIZES, intermediate_size=32, head_size=4, dropout=0.0)
BERT = models.EncoderConfig(**SIZES, intermediate_size=32, max_positions=16, pooling="none")
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 6)), jnp.int32)


CONFIGS = {"gpt2": GPT2, "grouped": GROUPED, "t5": T5, "bert": BERT}


@pytest.mark.parametrize(
    ("name", "remat"),
    # Rematerialisation wraps the one layer function of every stack; decoders are of one class.
    marks.slow_but(
        {("t5", False), ("gpt2", True), ("bert", True)},
        [(name, remat) for name in CONFIGS for remat in (False, True)],
    ),
)
def test_half_precision_differentiates(name, remat):
    """Under strict promotion, and near the gradient in float32."""
    config = CONFIGS[name]

    def gradients(dtype):
        settings = dataclasses.replace(config, dtype=dtype, remat=remat)
        model = models.build(settings, rngs=nnx.Rngs(0))
        inputs = (IDS, None, IDS) if config is T5 else (IDS,)
        loss = lambda model: jnp.mean(jnp.square(model(*inputs).astype(jnp.float32)))  # noqa: E731
        found = jax.tree.leaves(jax.jit(jax.grad(loss))(model))
        return np.concatenate([np.ravel(leaf) for leaf in found])

    half, full = gradients("bfloat16"), gradients("float32")
    assert np.linalg.norm(half - full) < 0.05 * np.linalg.norm(full)


def test_padding_of_targets_is_not_attended_to():
    model = models.build(T5, rngs=nnx.Rngs(0))
    mask = jnp.asarray([[0, 0, 1, 1, 1, 1]] * 2)
    changed = IDS.at[:, :2].set(7)
    first, second = (model(IDS, None, ids, mask) for ids in (IDS, changed))
    np.testing.assert_allclose(first[:, 2:], second[:, 2:], rtol=0, atol=1e-6)


def test_padding_cannot_spoil_the_router():
    router = nn.Router(4, nn.ExpertSettings(number=2), rngs=nnx.Rngs(0))
    x = jnp.ones((3, 4)).at[2].set(jnp.nan)
    mask = jnp.asarray([True, True, False])
    found = jax.jit(jax.grad(lambda router: router(x, mask).statistics.z_loss))(router)
    assert np.isfinite(found.kernel[...]).all()


def test_more_tokens_than_places():
    model = models.build(GPT2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 4 positions"):
        model.forward(IDS, cache=model.start_cache(2, 4))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_capacity_factors(factor):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        nn.ExpertSettings(number=2, capacity_factor=factor)
