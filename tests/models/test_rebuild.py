"""Kernels rebuilt once per step: the same values and gradients as the chains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models
from tests.models.test_arrays import CONFIG, IDS, MASK, SHAPES

KEEP_TABLE = "embeddings/word"


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(CONFIG, num_labels=3)
    rng = np.random.default_rng(0)
    arrays = {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in models.array_shapes(config, SHAPES).items()
    }
    return models.from_arrays(config, SHAPES, arrays)


@pytest.mark.parametrize("keep", [None, KEEP_TABLE, "layers/2/.*|pooler", ".*"])
def test_values_are_those_of_the_chains(model, keep):
    dense = jax.jit(functools.partial(models.merged, keep=keep))(model)
    kept = {None: set(), KEEP_TABLE: {KEEP_TABLE}, ".*": set(SHAPES)}
    assert set(dense.shapes) == kept.get(keep, {"layers/2/feed_forward/down", "pooler"})
    arrays = models.to_arrays(dense)
    assert {name: a.shape for name, a in arrays.items()} == models.array_shapes(
        dense.config, dense.shapes
    )
    assert {a.dtype.name for a in arrays.values()} == {"float32"}
    if keep is None:
        assert len(model.encoder.stacks) > 1
        assert len(dense.encoder.stacks) == 1
        for name, array in models.to_arrays(compression.merge(model)).items():
            np.testing.assert_allclose(arrays[name], array, rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(dense(IDS, MASK), model(IDS, MASK), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [None, KEEP_TABLE])
def test_gradients_reach_the_cores(model, keep):
    def loss(model):
        return jnp.sum(jnp.square(model(IDS, MASK)))

    expected = jax.jit(jax.grad(loss))(model)
    found = jax.jit(jax.grad(lambda model: loss(models.merged(model, keep))))(model)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), (_, other) in zip(
        nnx.to_flat_state(nnx.state(found)), nnx.to_flat_state(nnx.state(expected)), strict=True
    ):
        one, other = np.asarray(one[...]), np.asarray(other[...])
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * scale + 1e-6, err_msg=str(path))


def test_a_stack_is_rebuilt_as_one(model):
    """The program does not grow with the depth."""
    shape = SHAPES["layers/0/attention/query"]
    sizes = []
    for depth in (2, 4):
        config = dataclasses.replace(CONFIG, num_layers=depth)
        shapes = {f"layers/{i}/attention/query": shape for i in range(depth)}
        abstract = nnx.eval_shape(lambda c=config, s=shapes: models.build(c, s, rngs=nnx.Rngs(0)))
        sizes.append(len(jax.make_jaxpr(models.merged)(abstract).eqns))
    assert sizes[0] == sizes[1]


def test_dense_models_and_wrong_patterns(model):
    dense = jax.jit(models.merged)(model)
    again = models.merged(dense)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(dense), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"keep='word' matches no matrix.*embeddings/word"):
        models.merged(model, keep="word")
