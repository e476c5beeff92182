"""Low-rank adapters parallel to dense and MPO maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import mpo, nn
from mpojax.nn.adapters import modules


def _block(**kwargs):
    shape = mpo.MPOShape.balanced(8, 16, n=3)
    return nn.FeedForward(8, 16, shapes={"up": shape}, rngs=nnx.Rngs(0), **kwargs)


X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def test_a_fresh_adapter_changes_nothing_and_learns_from_its_up_map_on():
    block = _block()
    before = block(X)
    nn.attach_adapters(block, {"up": 2, "down": 3}, 0.5, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(block(X), before)
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(b(X) ** 2)))(block)
    for name in ("up", "down"):
        adapter = getattr(gradient, name).adapter
        assert not np.any(adapter.down[...])
        assert np.any(adapter.up[...])


def test_an_adapter_adds_its_scaled_product():
    block = _block()
    nn.attach_adapters(block, {"up": 2}, 0.5, rngs=nnx.Rngs(1))
    plain = mpo.to_matrix(block.up.all_cores(), block.up.shape)
    up = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    block.up.adapter.up[...] = jnp.asarray(up)
    expected = X @ (plain + 0.5 * block.up.adapter.down[...] @ up)
    np.testing.assert_allclose(block.up(X), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.up.merged()(X), expected, rtol=1e-4, atol=1e-5)


def test_adapters_have_a_role_and_a_compute_dtype():
    block = _block(dtype="bfloat16")
    nn.attach_adapters(block, {"down": 3}, 1.0, rngs=nnx.Rngs(1))
    assert nn.role_of(block.down.adapter.up) == "adapter"
    assert block.down.adapter.up.dtype == jnp.float32
    assert block(X).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.std(block.down.adapter.down[...]), 0.02, rtol=0.4)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank=0 must be an integer of at least 1"):
        modules.LowRankAdapter(4, 4, 0, rngs=nnx.Rngs(0))
