"""Low rank with its redundancy taken out: the same matrix, fewer numbers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models, mpo
from tests.models import small_language


@st.composite
def low_ranks(draw):
    """(cores of low rank, rank) of a random matrix, some with columns that repeat or are zero."""
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(2, 12))
    w = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((rows, columns))
    w[:, draw(st.integers(0, columns - 1))] = draw(st.sampled_from([0.0, 1.0]))
    rank = draw(st.integers(1, min(rows, columns - 1)))
    return mpo.low_rank(w, rank), rank


@hypothesis.given(low_ranks())
def test_the_same_matrix_with_fewer_numbers(chain):
    cores, rank = chain
    w = mpo.to_matrix(cores)
    pivoted, shape = mpo.pivot(cores)
    np.testing.assert_allclose(mpo.to_matrix(pivoted, shape), w, atol=1e-9)
    rows, columns = w.shape
    assert shape.num_params == rank * (rows + columns - rank) + columns
    assert sum(core.size for core in pivoted) == shape.num_params
    assert sorted(pivoted[2]) == list(range(columns))
    # The pivot columns are columns of the matrix itself.
    chosen = np.flatnonzero(pivoted[2] < rank)
    np.testing.assert_allclose(pivoted[0][0, :, 0][:, pivoted[2][chosen]], w[:, chosen], atol=1e-9)


def test_products_and_gradients_are_those_of_the_matrix():
    w = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
    cores, shape = mpo.pivot(mpo.low_rank(w, 10))
    first, second, order = (
        jnp.asarray(core, (core.dtype.kind == "f" and "float32") or "int32") for core in cores
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 24))

    def by_chain(first, second, x):
        return mpo.apply((first, second, order), x, shape)

    def rebuilt(first, second, x):
        return mpo.apply((first, second, order), x, shape, "rebuild")

    def by_matrix(first, second, x):
        return x @ mpo.to_matrix((first, second, order), shape)

    np.testing.assert_allclose(
        by_chain(first, second, x), by_matrix(first, second, x), rtol=1e-4, atol=1e-4
    )
    plan = mpo.plan(shape, tokens=10, training=False, prepared=True)
    prepared = mpo.apply_prepared(mpo.prepare((first, second, order), plan), plan, x)
    np.testing.assert_allclose(prepared, by_chain(first, second, x), rtol=1e-4, atol=1e-4)
    grads = [
        jax.jit(jax.grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), (0, 1, 2)))(
            first, second, x
        )
        for f in (by_matrix, by_chain, rebuilt)
    ]
    for found in grads[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grads[0], found
        )


@pytest.mark.parametrize("rank", [24, 30])
def test_what_cannot_be_pivoted_says_so(rank):
    with pytest.raises(ValueError, match=r"outside 1\.\.|low rank below its 24 columns"):
        mpo.MPOShape.low_rank(30, 24, rank, pivoted=True)
    with pytest.raises(ValueError, match="low rank below its 16 columns"):
        mpo.MPOShape((4, 4), (4, 4), (4,), pivoted=True)


def test_a_model_with_pivoted_chains_is_saved_merged_and_rebuilt(tmp_path):
    config = small_language.LLAMA
    shapes = {
        f"layers/{layer}/{name}": mpo.MPOShape.low_rank(
            *config.matrix_sizes()[f"layers/{layer}/{name}"], 5, pivoted=True
        )
        for layer in range(config.num_layers)
        for name in ("attention/query", "feed_forward/down")
    }
    model = models.build(config, shapes, rngs=nnx.Rngs(0))
    assert len(model.tower.stacks) == 1
    ids = jnp.arange(12).reshape(2, 6)
    io.save_pretrained(model, tmp_path)
    expected = model(ids)
    for other in (
        io.load_pretrained(tmp_path),
        compression.merge(model),
        models.merged(model),
        models.from_arrays(config, shapes, models.to_arrays(model)),
    ):
        np.testing.assert_allclose(other(ids), expected, atol=1e-5)
    counts = models.count_parameters(model)
    assert counts["central"] + counts["auxiliary"] == sum(s.num_params for s in shapes.values())


@pytest.mark.parametrize(("rank", "leading"), [(10, ()), (9, (1, 1)), (10, (1,))])
def test_a_single_row_gives_what_several_do(rank, leading):
    w = np.random.default_rng(0).standard_normal((24, 40))
    for cores, shape in (mpo.pivot(mpo.low_rank(w, rank)), (mpo.low_rank(w, rank), None)):
        cores = [jnp.asarray(core, "int32" if core.ndim == 1 else "float32") for core in cores]
        rows = jax.random.normal(jax.random.key(0), (3, 24))
        several = mpo.apply(cores, rows, shape, training=False)[1].reshape(*leading, 40)
        alone = mpo.apply(cores, rows[1].reshape(*leading, 24), shape, training=False)
        np.testing.assert_allclose(alone, several, rtol=1e-4, atol=1e-4)
