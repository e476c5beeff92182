"""Dense and MPO linear maps: values, roles, sharing, scale of a fresh layer, dtypes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import mpo, nn
from tests.nn.fresh import made

SHAPES = {
    "five cores, full": mpo.MPOShape.balanced(24, 36),
    "five cores, cut": mpo.MPOShape.balanced(24, 36).with_bonds(3),
    "three cores": mpo.MPOShape((2, 3, 4), (4, 3, 2), (5, 6)),
    "padded": mpo.MPOShape((2, 3, 4), (4, 3, 2), (8, 8), in_features=23, out_features=21),
    "low rank": mpo.MPOShape.low_rank(24, 36, 4),
    "one core": mpo.MPOShape((6,), (5,)),
}

run = jax.jit(lambda layer, x: layer(x))


def _matrix(layer):
    cores = tuple(np.asarray(core) for core in layer.all_cores())
    return mpo.to_matrix(cores, layer.shape)


def _fill(model, seed=0):
    """Random values everywhere, biases included."""
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), state)
    return nnx.merge(graphdef, state)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_dense_is_a_matrix_product(leading):
    layer = _fill(made(nn.Dense, 5, 4))
    x = np.random.default_rng(0).standard_normal((*leading, 5)).astype(np.float32)
    expected = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-5, atol=1e-6)


def test_bias_can_be_left_out():
    dense = made(nn.Dense, 5, 4, use_bias=False)
    chain = made(nn.MPOLinear, SHAPES["three cores"], use_bias=False)
    assert dense.bias is None
    assert chain.bias is None
    np.testing.assert_array_equal(run(dense, np.zeros((2, 5), np.float32)), np.zeros((2, 4)))
    np.testing.assert_array_equal(run(chain, np.zeros((2, 24), np.float32)), np.zeros((2, 24)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tokens", [(), (2, 40)])
def test_mpo_linear_equals_its_matrix(shape, tokens):
    layer = _fill(made(nn.MPOLinear, shape, seed=1))
    x = np.random.default_rng(1).standard_normal((*tokens, shape.in_features)).astype(np.float32)
    expected = x @ _matrix(layer) + np.asarray(layer.bias[...])
    actual = run(layer, x)
    assert actual.shape == (*tokens, shape.out_features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_roles_name_exactly_one_central_core(shape):
    layer = made(nn.MPOLinear, shape)
    kinds = [nn.role_of(core) for core in layer.cores]
    assert kinds.count("central") == 1
    assert kinds.index("central") == shape.central
    assert kinds.count("auxiliary") == shape.num_cores - 1
    assert nn.role_of(layer.bias) == "other"
    assert [core.shape for core in layer.cores] == list(shape.core_shapes)


@pytest.mark.parametrize(
    "shape",
    [
        mpo.MPOShape.balanced(96, 96),
        mpo.MPOShape.balanced(96, 192).with_bonds(12),
        mpo.MPOShape.low_rank(96, 96, 24),
        mpo.MPOShape.balanced(101, 96, n=3),
    ],
    ids=["full", "cut", "low rank", "padded"],
)
def test_fresh_matrices_have_variance_one_over_inputs(shape):
    draws = [_matrix(made(nn.MPOLinear, shape, seed=seed)) for seed in range(3)]
    assert np.var(draws) * shape.in_features == pytest.approx(1.0, rel=0.25)
    dense = made(nn.Dense, 200, 100)
    assert np.var(dense.kernel[...]) * 200 == pytest.approx(1.0, rel=0.05)


def test_compute_dtype_casts_the_matrix_and_keeps_parameters():
    shape = SHAPES["five cores, full"]
    x = np.random.default_rng(0).standard_normal((64, 24), np.float32)
    for kind in (
        lambda dtype: made(nn.MPOLinear, shape, dtype=dtype, seed=2),
        lambda dtype: made(nn.Dense, 24, 36, dtype=dtype, seed=2),
    ):
        exact, half = kind("float32"), kind("bfloat16")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}
        y, wanted = run(half, x), np.asarray(run(exact, x))
        assert y.dtype == jnp.bfloat16
        error = np.linalg.norm(np.float32(y) - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < error < 6e-3  # rounding of x, W and y to 8 bits; 16-bit cores would add to it


def test_a_shared_central_core_is_passed_in():
    shape = SHAPES["five cores, cut"]
    own = made(nn.MPOLinear, shape)
    shared = made(nn.MPOLinear, shape, shared_central=True)
    assert len(shared.cores) == shape.num_cores - 1
    assert {nn.role_of(core) for core in shared.cores} == {"auxiliary"}
    x = np.ones((3, 24), np.float32)
    central = own.cores[shape.central][...]
    passed_in = jax.jit(lambda layer, x, central: layer(x, central=central))(shared, x, central)
    np.testing.assert_array_equal(passed_in, run(own, x))


def test_layers_of_one_scan_share_the_central_core():
    """Counted once, one leaf, and its gradient is the sum over the layers."""
    shape = mpo.MPOShape((2, 2, 2), (2, 2, 2), (3, 3))

    class Stack(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(lambda key: made(nn.MPOLinear, shape, shared_central=True, seed=key))
            self.stack = make(jax.random.split(rngs.params(), 3))
            self.central = nn.CentralCore(
                jax.random.normal(rngs.params(), shape.core_shapes[shape.central])
            )

        def __call__(self, x):
            central = self.central[...]
            x, _ = jax.lax.scan(lambda x, layer: (layer(x, central=central), None), x, self.stack)
            return x

    model = Stack(nnx.Rngs(0))
    centrals = jax.tree.leaves(nnx.state(model, nn.CentralCore))
    assert [leaf.shape for leaf in centrals] == [shape.core_shapes[1]]
    x = jax.random.normal(jax.random.key(3), (4, 8))

    def unrolled(centrals_LxDxIxJxD):
        y = x
        for i in range(3):
            cores = [core[...][i] for core in model.stack.cores]
            cores.insert(shape.central, centrals_LxDxIxJxD[i])
            y = y @ mpo.to_matrix(tuple(cores))
        return jnp.sum(y**2)

    gradient = jax.jit(jax.grad(lambda model: jnp.sum(model(x) ** 2)))(model).central[...]
    separate = jax.jit(jax.grad(unrolled))(jnp.stack([model.central[...]] * 3))
    np.testing.assert_allclose(gradient, separate.sum(axis=0), rtol=1e-3, atol=1e-5)


def test_training_one_role_leaves_the_other_alone():
    layer = made(nn.MPOLinear, SHAPES["three cores"])
    graphdef, auxiliary, rest = nnx.split(layer, nn.AuxiliaryCore, ...)
    x = jnp.ones((2, 24))
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(nnx.merge(graphdef, a, rest)(x))))(auxiliary)
    shapes = SHAPES["three cores"].core_shapes
    assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == [shapes[0], shapes[2]]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_bad_calls_say_what_is_wrong():
    shape = SHAPES["three cores"]
    dense = made(nn.Dense, 5, 4)
    own = made(nn.MPOLinear, shape)
    shared = made(nn.MPOLinear, shape, shared_central=True)
    core = own.cores[1][...]
    with pytest.raises(ValueError, match="dense layer, which has no cores"):
        dense(jnp.ones((2, 5)), central=core)
    with pytest.raises(ValueError, match=r"shape \(2, 6\); its last axis must be in_features=5"):
        dense(jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="last axis must be in_features=24"):
        own(jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="holds a central core of its own"):
        own(jnp.ones((2, 24)), central=core)
    with pytest.raises(ValueError, match="shares its central core: call it with central="):
        shared(jnp.ones((2, 24)))
    with pytest.raises(ValueError, match=r"central core has shape .*needs \(5, 3, 3, 6\)"):
        shared(jnp.ones((2, 24)), central=core[:2])


class TestFromWeights:
    @pytest.mark.parametrize("use_bias", [True, False])
    @pytest.mark.parametrize("kind", [nn.Dense, nnx.Linear])
    def test_full_bonds_are_the_dense_layer(self, kind, use_bias):
        dense = _fill(kind(24, 36, use_bias=use_bias, rngs=nnx.Rngs(0)))
        chain = nn.MPOLinear.from_linear(dense)
        x = np.random.default_rng(1).standard_normal((3, 24), np.float32)
        assert (chain.bias is not None) == use_bias
        np.testing.assert_allclose(run(chain, x), run(dense, x), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(_matrix(chain), dense.kernel[...], rtol=1e-4, atol=1e-5)

    def test_a_cap_is_the_truncation_of_the_kernels(self):
        w = np.random.default_rng(0).standard_normal((24, 36))
        chain = nn.MPOLinear.from_matrix(w, bond=3)
        assert chain.shape == mpo.MPOShape.balanced(24, 36).with_bonds(3)
        expected = mpo.decompose(w.astype(np.float32), chain.shape)
        for core, wanted in zip(chain.all_cores(), expected, strict=True):
            assert core.dtype == jnp.float32
            np.testing.assert_array_equal(core, wanted)

    @pytest.mark.parametrize("name", ["three cores", "low rank"])
    def test_a_shape_is_taken_as_it_is(self, name):
        w = np.random.default_rng(0).standard_normal((24, SHAPES[name].out_features))
        assert nn.MPOLinear.from_matrix(w, shape=SHAPES[name]).shape == SHAPES[name]

    def test_factors_are_the_published_ones_where_there_are_any(self):
        shape = nn.MPOLinear.from_matrix(np.zeros((768, 768), np.float32), bond=2).shape
        assert shape == mpo.MPOShape.published(768, 768).with_bonds(2)

    def test_compute_dtype_and_adapter_are_kept(self):
        dense = nnx.Linear(24, 36, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        assert nn.MPOLinear.from_linear(dense).dtype == "bfloat16"
        dense = made(nn.Dense, 24, 36, dtype="bfloat16")
        nn.attach_adapters(nnx.Dict(a=dense), {"a": 2}, 1.0, rngs=nnx.Rngs(1))
        chain = nn.MPOLinear.from_linear(dense)
        assert chain.dtype == "bfloat16"
        assert chain.adapter is dense.adapter is not None

    def test_roles_and_gradients_are_those_of_a_chain(self):
        chain = nn.MPOLinear.from_matrix(np.eye(24, 36, dtype=np.float32), bias=np.ones(36))
        roles = [nn.role_of(core) for core in chain.cores]
        assert roles.count("central") == 1
        graph, state = nnx.split(chain)
        gradients = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(jnp.ones((2, 24))))))(
            state
        )
        assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"w": np.zeros((2, 3, 4))}, ValueError, r"w has shape \(2, 3, 4\) and dtype float64"),
            ({"w": np.zeros((4, 4), int)}, ValueError, "dtype int64; a chain is of a matrix"),
            ({"w": np.full((4, 4), np.nan)}, ValueError, "NaN or infinite"),
            ({"w": np.zeros((4, 4)), "bond": 0}, ValueError, "bond cap=0 must be an integer"),
            ({"w": np.zeros((4, 4)), "shape": SHAPES["low rank"]}, ValueError, "describe a matrix"),
            ({"w": np.zeros((4, 4)), "bias": np.zeros(3)}, ValueError, r"bias has shape \(3,\)"),
        ],
    )
    def test_mistakes(self, arguments, error, message):
        with pytest.raises(error, match=message):
            nn.MPOLinear.from_matrix(**arguments)

    def test_other_layers_are_refused(self):
        lora = nnx.LoRALinear(4, 4, lora_rank=2, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match=r"not LoRALinear; give the matrix itself"):
            nn.MPOLinear.from_linear(lora)
