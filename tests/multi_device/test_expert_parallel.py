"""Experts divided over devices compute what one device computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mpojax import mpo, nn, training
from tests import marks

HIDDEN, INNER, NUMBER = 8, 16, 8
SHAPES = {
    "up": mpo.MPOShape((2, 2, 2), (2, 4, 2)),
    "down": mpo.MPOShape((2, 4, 2), (2, 2, 2)),
}
MESHES = {
    "data": {"data": 8},
    "expert": {"data": 1, "expert": 8},
    "data, expert": {"data": 2, "expert": 4},
    "all": {"data": 1, "fsdp": 2, "tensor": 2, "expert": 2},
}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 5, HIDDEN)).astype(np.float32)
MASK = RNG.random((8, 5)) < 0.8


@functools.cache
def block(form, router="switch", **settings):
    return nn.ExpertFeedForward(
        *(HIDDEN, INNER, "gelu"),
        {"mpo": SHAPES, "dense": None}[form],
        nn.ExpertSettings(NUMBER, router=router, **settings),
        rngs=nnx.Rngs(0),
    )


def outcome(module, x, mask, mesh=None, place=lambda path: P()):
    """Output, statistics and gradients of a loss of both, on a mesh."""
    graph, state = nnx.split(module)

    @jax.jit
    def run(state, x):
        def loss(state, x):
            y, found = nnx.merge(graph, state)(x, mask)
            return jnp.sum(jnp.sin(y)) + found.balance + found.z_loss, (y, found)

        (_, (y, found)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)
        return y, found, gradients

    if mesh is None:
        return run(state, x)
    with jax.set_mesh(mesh):
        state = jax.tree.map_with_path(
            lambda path, v: jax.device_put(
                v, NamedSharding(mesh, place(jax.tree_util.keystr(path)))
            ),
            state,
        )
        return run(state, x)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-5)


def split_experts(path):
    return P("expert") if "'experts'" in path else P()


@functools.cache
def on_one_device(form, router, **settings):
    return outcome(block(form, router, **settings), X, MASK)


@pytest.mark.parametrize(
    ("mesh", "form", "router", "dispatch"),
    marks.slow_but(
        {
            ("all", "mpo", "switch", "auto"),
            ("data, expert", "mpo", "top2", "ragged"),
        },
        [
            *((mesh, "mpo", "switch", "auto") for mesh in MESHES),
            ("data, expert", "dense", "top2", "auto"),
            ("data, expert", "mpo", "top2", "ragged"),
        ],
    ),
)
def test_every_mesh_gives_the_same_numbers(mesh, form, router, dispatch):
    made = block(form, router, dispatch=dispatch)
    found = outcome(made, X, MASK, training.make_mesh(MESHES[mesh]), split_experts)
    assert_same(found, on_one_device(form, router, dispatch=dispatch))


def test_a_capacity_that_holds_all_gives_the_same_numbers():
    made = block("mpo", "top2", capacity_factor=float(NUMBER))
    found = outcome(made, X, MASK, training.make_mesh(MESHES["data, expert"]), split_experts)
    assert_same(found, on_one_device("mpo", "top2", dispatch="ragged"))


def test_tokens_need_not_divide():
    made = block("mpo")
    x, mask = X[:3], MASK[:3]
    found = outcome(made, x, mask, training.make_mesh(MESHES["data, expert"]))
    assert_same(found, outcome(made, x, mask))


def test_all_tokens_to_one_expert_and_none_at_all():
    made = nnx.clone(block("mpo"))
    made.router.bias[...] = jnp.zeros(NUMBER).at[3].set(100.0)
    mesh = training.make_mesh(MESHES["data, expert"])
    assert_same(outcome(made, X, MASK, mesh), outcome(made, X, MASK))
    y, *others = outcome(made, X, np.zeros_like(MASK), mesh)
    np.testing.assert_array_equal(y, 0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(others))


def test_drops_are_counted_over_all_devices():
    made = nnx.clone(block("mpo", capacity_factor=1.0))
    made.router.bias[...] = jnp.zeros(NUMBER).at[3].set(100.0)
    with jax.set_mesh(training.make_mesh(MESHES["data, expert"])):
        y, found = jax.jit(lambda made, x: made(x))(made, X)
    # Each of 8 devices has 5 tokens, and each expert takes ceil(5 / 8) = 1 of them.
    kept = np.any(np.asarray(y) != 0.0, axis=-1)
    np.testing.assert_array_equal(kept.sum(-1), 1)
    assert float(found.dropped) == pytest.approx(1 - 8 / 40)


def test_gradients_of_experts_stay_where_the_experts_are():
    mesh = training.make_mesh(MESHES["data, expert"])
    made = block("mpo")
    _, _, (gradients, _) = outcome(made, X, MASK, mesh, split_experts)
    for path, leaf in nnx.to_flat_state(gradients):
        if path[0] == "experts":
            assert leaf[...].addressable_shards[0].data.shape[0] == NUMBER // 4, path


def test_layers_in_a_scan_with_dropout():
    def make(key):
        settings = nn.ExpertSettings(NUMBER, router="top2")
        return nn.ExpertFeedForward(
            *(HIDDEN, INNER, "gelu", SHAPES, settings), inner_dropout=0.5, rngs=nnx.Rngs(key)
        )

    stack = nnx.vmap(make)(jax.random.split(jax.random.key(0), 2))

    @jax.jit
    def run(stack, x, key):
        def body(x, layer):
            y, found = layer(x, MASK, dropout_key=key)
            return x + y, found

        return jax.lax.scan(jax.checkpoint(body), x, stack)

    with jax.set_mesh(training.make_mesh(MESHES["data, expert"])):
        y, found = run(stack, X, jax.random.key(1))
        assert found.load.shape == (2, NUMBER)
        np.testing.assert_allclose(found.tokens, MASK.sum())
        same, _ = run(stack, X, jax.random.key(1))
        other, _ = run(stack, X, jax.random.key(2))
    np.testing.assert_array_equal(y, same)
    assert np.any(np.asarray(y != other))


def test_experts_that_do_not_divide_are_named_before_compiling():
    made = nn.ExpertFeedForward(
        *(HIDDEN, INNER, "gelu", SHAPES, nn.ExpertSettings(6)), rngs=nnx.Rngs(0)
    )
    with (
        jax.set_mesh(training.make_mesh(MESHES["data, expert"])),
        pytest.raises(ValueError, match=r"6 experts cannot be divided .* of size 4"),
    ):
        jax.eval_shape(lambda made, x: made(x), made, X)
