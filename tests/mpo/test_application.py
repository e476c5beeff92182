"""Every strategy of `apply`: equal to the dense product, in value and in gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mpojax import devices, mpo
from tests.mpo import helpers
from tests.mpo.chains import SHAPES, plans

EVERY_SHAPE = pytest.mark.parametrize("name", SHAPES)


def dense(cores, shape):
    """The matrix by plain sums, without the kernels under test."""
    return helpers.rebuilt(cores)[: shape.in_features, : shape.out_features]


def make(shape, dtype, tokens=(2, 3), seed=0):
    cores = tuple(jnp.asarray(core) for core in helpers.random_cores(shape, seed, dtype))
    x = np.random.default_rng(seed + 1).standard_normal((*tokens, shape.in_features))
    return cores, jnp.asarray(x.astype(dtype))


def loss_of(product):
    """A scalar that weighs every output differently."""

    def loss(cores, x):
        y = product(cores, x)
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype))

    return loss


def assert_tree_close(found, wanted, tolerance):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, largest))


@EVERY_SHAPE
def test_values_and_gradients_of_every_strategy(name, x64):
    shape = SHAPES[name]
    cores, x = make(shape, np.float64)
    choices = plans(shape, tokens=6)

    @jax.jit
    def everything(cores, x):
        products = {"dense": lambda cores, x: x @ dense(cores, shape)}
        products["to_matrix"] = lambda cores, x: x @ mpo.to_matrix(cores, shape)
        for key, plan in choices.items():
            products[key] = functools.partial(mpo.apply, shape=shape, plan=plan)
        products["chosen"] = functools.partial(mpo.apply, shape=shape)
        return {
            key: (product(cores, x), jax.grad(loss_of(product), argnums=(0, 1))(cores, x))
            for key, product in products.items()
        }

    results = everything(cores, x)
    for key in results:
        assert_tree_close(results[key], results["dense"], 1e-12)


@EVERY_SHAPE
def test_shape_is_read_off_the_cores(name):
    shape = SHAPES[name]
    if shape.is_padded:
        shape = mpo.MPOShape(shape.in_factors, shape.out_factors, shape.bond_dims)
    cores, x = make(shape, np.float32, tokens=())
    assert mpo.shape_from_cores(cores) == shape
    run = jax.jit(lambda *args: mpo.apply(*args, training=False))
    y, expected = run(cores, x), np.asarray(x) @ dense(list(map(np.asarray, cores)), shape)
    assert y.shape == (shape.out_features,)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@settings(max_examples=6)
@given(helpers.shapes(max_cores=4, max_side=12, cut=True), helpers.seeds())
def test_random_chains(shape, seed):
    cores, x = make(shape, np.float32, (3,), seed)

    @jax.jit
    def everything(cores, x):
        return [mpo.apply(cores, x, shape, plan) for plan in plans(shape, 3).values()]

    expected = np.asarray(x) @ helpers.rebuilt([np.asarray(core) for core in cores])
    for y in everything(cores, x):
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
def test_euler_identity_of_gradients(strategy, x64):
    """The loss is linear in every core, so sum(T_k * g_k) = <W, G> for every k."""
    shape = SHAPES["three cores"]
    cores, x = make(shape, np.float64)
    weights = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3, shape.out_features)))
    gradients = jax.jit(
        jax.grad(lambda cores: jnp.sum(weights * mpo.apply(cores, x, shape, strategy)))
    )(cores)
    rows = x.reshape(-1, shape.in_features)
    inner = jnp.sum(dense(cores, shape) * (rows.T @ weights.reshape(-1, shape.out_features)))
    for core, gradient in zip(cores, gradients, strict=True):
        assert float(jnp.sum(core * gradient)) == pytest.approx(float(inner), rel=1e-12)


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
def test_bfloat16_activations_with_float32_cores(strategy):
    shape = SHAPES["padded"]
    cores, x = make(shape, np.float32)
    low = x.astype(jnp.bfloat16)

    @jax.jit
    def run(cores, x):
        product = functools.partial(mpo.apply, shape=shape, plan=strategy)
        total = jax.grad(lambda cores, x: jnp.sum(product(cores, x)), argnums=(0, 1))
        return product(cores, x), total(cores, x)

    (y, (core_gradients, x_gradient)), (exact, wanted) = run(cores, low), run(cores, x)
    assert y.dtype == x_gradient.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=0, atol=0.03 * scale)
    for found, gradient in zip(core_gradients, wanted[0], strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, gradient, atol=0.05 * np.abs(gradient).max())


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
@pytest.mark.parametrize("cap", [None, 2])
def test_backward_pass_keeps_only_x_and_the_cores(strategy, cap):
    shape = mpo.MPOShape((2, 2, 3, 2, 2), (2, 3, 2, 2, 2))
    shape = shape if cap is None else shape.with_bonds(cap)
    cores, x = make(shape, np.float32, (5, 3))
    # The pull-back is a pytree: its leaves are what the forward pass keeps.
    pull_back = jax.eval_shape(
        lambda *inputs: jax.vjp(lambda *args: mpo.apply(*args, shape, strategy), *inputs)[1],
        cores,
        x,
    )
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull_back))
    assert kept == sorted([*shape.core_shapes, (15, shape.in_features)])
    assert sum(np.prod(s) for s in kept) - shape.num_params == x.size


@EVERY_SHAPE
def test_prepared_equals_dense(name):
    shape = SHAPES[name]
    cores, x = make(shape, np.float32)
    choices = plans(shape, 6, training=False, prepared=True)

    @jax.jit
    def everything(cores, x):
        prepared = {key: mpo.prepare(cores, plan) for key, plan in choices.items()}
        # A pytree of arrays: it can leave and enter transformations.
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(prepared))
        return {key: mpo.apply_prepared(prepared[key], plan, x) for key, plan in choices.items()}

    expected = x @ dense(cores, shape)
    for key, y in everything(cores, x).items():
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5, err_msg=key)


def test_prepare_casts_after_merging():
    shape = SHAPES["three cores"]
    cores, x = make(shape, np.float32)
    plan = mpo.plan(shape, tokens=6, training=False, prepared=True, strategy="rebuild")
    prepared = mpo.prepare(cores, plan, jnp.bfloat16)
    assert [leaf.dtype for leaf in jax.tree.leaves(prepared)] == [jnp.bfloat16]
    np.testing.assert_array_equal(prepared[0], mpo.to_matrix(cores).astype(jnp.bfloat16))
    y = mpo.apply_prepared(prepared, plan, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("leading", [(0,), (3, 0)])
def test_empty_batch(leading):
    shape = SHAPES["padded"]
    cores, x = make(shape, np.float32, leading)
    for strategy in (None, *mpo.STRATEGIES):
        assert mpo.apply(cores, x, shape, strategy).shape == (*leading, shape.out_features)


@EVERY_SHAPE
def test_the_form_of_matrices_on_tpus(name, x64, monkeypatch):
    """Value, gradients and batching of what runs where a step is compiled for a TPU."""
    shape = SHAPES[name]
    cores, x = make(shape, np.float64)
    product = functools.partial(mpo.apply, shape=shape, plan="rebuild")
    wanted = dense(cores, shape)
    # Anew for each platform: jax keeps what it has traced of a function.
    slope = lambda: jax.jit(jax.grad(loss_of(product), (0, 1)))(cores, x)  # noqa: E731
    gradients = slope()
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    found = jax.jit(jax.vmap(lambda *c: mpo.to_matrix(c, shape)))(*(core[None] for core in cores))
    np.testing.assert_allclose(found[0], wanted, atol=1e-12 * np.abs(wanted).max())
    assert_tree_close(slope(), gradients, 1e-12)
