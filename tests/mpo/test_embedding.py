"""Embedding look-up: rows of the rebuilt table, by digits or by rebuilding; equal gradients."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from mpojax.mpo.embedding import METHODS, cheaper_embedding
from tests.mpo import helpers

# `mpo.embed` is the function; the module of the same name holds the block size.
embed_module = importlib.import_module("mpojax.mpo.embedding")
SHAPES = {
    "one core": mpo.MPOShape((6,), (4,)),
    "low rank": mpo.MPOShape.low_rank(9, 4, 3),
    "padded": mpo.MPOShape((2, 3, 2), (2, 2, 2), (3, 4), 11, 7),
    "five cores": mpo.MPOShape((2, 1, 3, 2, 2), (1, 2, 2, 1, 2)).with_bonds(4),
}


def cores_of(shape, dtype=np.float32):
    return tuple(jnp.asarray(core) for core in helpers.random_cores(shape, 0, dtype))


@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_gradients_of_both_methods(name, x64):
    shape = SHAPES[name]
    cores = cores_of(shape, np.float64)
    ids = np.random.default_rng(1).integers(0, shape.in_features, (2, 5))
    ids[0, :2] = 0, shape.in_features - 1
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((2, 5, shape.out_features)))

    @jax.jit
    def everything(cores, ids):
        ways = {m: lambda cores, m=m: mpo.embed(cores, ids, shape, m) for m in METHODS}
        ways["dense"] = lambda cores: helpers.rebuilt(cores)[:, : shape.out_features][ids]
        return {
            m: (way(cores), jax.grad(lambda c, way=way: jnp.sum(weights * way(c) ** 2))(cores))
            for m, way in ways.items()
        }

    results = everything(cores, jnp.asarray(ids))
    for method in METHODS:
        for found, wanted in zip(
            jax.tree.leaves(results[method]), jax.tree.leaves(results["dense"]), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_several_blocks(blocks, monkeypatch):
    shape = SHAPES["padded"]
    numbers = sum(p * j * q for p, _, j, q in shape.core_shapes)
    monkeypatch.setattr(embed_module, "_BLOCK_ELEMENTS", numbers * -(-9 // blocks))
    cores, ids = cores_of(shape), jnp.arange(9) % shape.in_features
    seed = jnp.asarray(np.cos(np.arange(9 * 7)).reshape(9, 7).astype(np.float32))

    def both(look_up):
        def run(cores):
            rows, pull_back = jax.vjp(look_up, cores)
            return rows, pull_back(seed)

        return jax.jit(run)(cores)

    found = both(lambda cores: mpo.embed(cores, ids, shape, "lookup"))
    wanted = both(lambda cores: mpo.to_matrix(cores, shape)[ids])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_the_padding_are_never_returned(method):
    """Trained cores have no zero rows beyond the table; ids outside are clamped to it."""
    shape = SHAPES["padded"]
    cores = cores_of(shape)
    table = mpo.to_matrix(cores, shape)
    ids = jnp.array([-1, 10, 11, 12, 1000])
    rows = mpo.embed(cores, ids, shape, method)
    np.testing.assert_allclose(rows, table[jnp.array([0, 10, 10, 10, 10])], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (1,), (2, 3)])
def test_shapes_and_dtypes_of_ids(method, dtype, leading):
    shape = SHAPES["padded"]
    ids = np.zeros(leading, dtype)
    rows = jax.eval_shape(lambda cores: mpo.embed(cores, ids, shape, method), cores_of(shape))
    assert rows.shape == (*leading, shape.out_features)
    assert rows.dtype == jnp.float32


def test_unknown_method_is_refused():
    shape = SHAPES["padded"]
    with pytest.raises(ValueError, match=r"method='hash' must be one of 'lookup'"):
        mpo.embed(cores_of(shape), jnp.arange(3), shape, "hash")


def test_choice_by_cost():
    vocabulary = mpo.MPOShape((5, 10, 10, 10, 6), (2, 2, 4, 4, 2))
    choices = [cheaper_embedding(vocabulary, tokens) for tokens in (1, 32, 10**4, 10**6)]
    assert choices[0] == "lookup"
    assert choices[-2:] == ["rebuild", "rebuild"]
    assert sorted(choices) == choices
