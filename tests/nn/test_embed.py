"""Embedding tables: rows, tied output, ids outside the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import mpo, nn
from tests.nn.fresh import made

SHAPES = {
    "exact": mpo.MPOShape((2, 5, 3), (2, 2, 3)),
    "cut": mpo.MPOShape((2, 5, 3), (2, 2, 3), (3, 3)),
    "padded": mpo.MPOShape((2, 5, 3), (2, 2, 3), in_features=29, out_features=11),
    "low rank": mpo.MPOShape.low_rank(31, 12, 5),
    "prime rows": mpo.MPOShape.balanced(127, 16),
}

run = jax.jit(lambda layer, ids: layer(ids))
attend = jax.jit(lambda layer, x: layer.attend(x))


def _table(layer):
    cores = tuple(np.asarray(core) for core in layer.all_cores())
    return mpo.to_matrix(cores, layer.shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("ids_shape", [(), (3, 50)])
def test_rows_of_the_rebuilt_table(shape, ids_shape):
    layer = made(nn.MPOEmbed, shape)
    ids = np.random.default_rng(0).integers(0, shape.in_features, ids_shape)
    rows = run(layer, ids)
    assert rows.shape == (*ids_shape, shape.out_features)
    np.testing.assert_allclose(rows, _table(layer)[ids], rtol=1e-4, atol=1e-6)


def test_dense_rows():
    layer = made(nn.Embed, 7, 3)
    ids = np.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(run(layer, ids), np.asarray(layer.table[...])[ids])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tied_output_is_the_transposed_table(shape):
    x = np.random.default_rng(1).standard_normal((2, 5, shape.out_features), np.float32)
    chain = made(nn.MPOEmbed, shape)
    np.testing.assert_allclose(attend(chain, x), x @ _table(chain).T, rtol=1e-4, atol=1e-5)
    dense = made(nn.Embed, shape.in_features, shape.out_features)
    table = np.asarray(dense.table[...])
    np.testing.assert_allclose(attend(dense, x), x @ table.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        made(nn.Embed, 29, 11),
        made(nn.MPOEmbed, SHAPES["padded"]),
    ],
    ids=["dense", "padded mpo"],
)
def test_ids_outside_the_table_are_loud(layer):
    rows = np.asarray(run(layer, np.asarray([0, 28, 29, -1])))
    assert np.isfinite(rows[:2]).all()
    assert np.isnan(rows[2:]).all()


def test_fresh_tables_have_the_scale_of_bert():
    shape = mpo.MPOShape.balanced(256, 96).with_bonds(16)
    tables = [_table(made(nn.MPOEmbed, shape, seed=seed)) for seed in range(3)]
    assert np.std(tables) == pytest.approx(0.02, rel=0.2)
    dense = made(nn.Embed, 256, 96)
    assert np.std(dense.table[...]) == pytest.approx(0.02, rel=0.05)


def test_compute_dtype():
    for layer in (
        made(nn.Embed, 7, 12, dtype="bfloat16"),
        made(nn.MPOEmbed, SHAPES["exact"], dtype="bfloat16"),
    ):
        assert run(layer, np.asarray([1, 2])).dtype == jnp.bfloat16
        assert attend(layer, np.ones((1, 12), np.float32)).dtype == jnp.bfloat16
        assert {leaf.dtype.name for leaf in jax.tree.leaves(layer)} == {"float32"}


@pytest.mark.parametrize("kind", [nn.Embed, nnx.Embed])
def test_a_chain_at_full_bonds_is_the_embedding_that_it_is_made_from(kind):
    dense = kind(30, 12, rngs=nnx.Rngs(0))
    chain = nn.MPOEmbed.from_embed(dense)
    ids = np.array([[0, 7], [29, 3]])
    np.testing.assert_allclose(run(chain, ids), run(dense, ids), rtol=1e-4, atol=1e-5)
    x = np.random.default_rng(0).standard_normal((2, 12), np.float32)
    np.testing.assert_allclose(attend(chain, x), attend(dense, x), rtol=1e-4, atol=1e-4)


def test_a_table_is_cut_at_a_cap():
    table = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)
    chain = nn.MPOEmbed.from_table(table, bond=2, dtype="bfloat16")
    assert chain.dtype == "bfloat16"
    assert max(chain.shape.bonds) == 2
    with pytest.raises(TypeError, match="not Dense; give the table itself"):
        nn.MPOEmbed.from_embed(nn.Dense(3, 4, rngs=nnx.Rngs(0)))
