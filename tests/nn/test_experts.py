"""Feed-forward blocks of experts: equal to dense blocks, to each other, to hand-written sums."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from mpojax import mpo, nn
from mpojax.nn.moe import maps
from tests import marks

pytestmark = pytest.mark.usefixtures("as_users_compile")

HIDDEN, INNER = 24, 96
SHAPES = {
    "up": mpo.MPOShape((2, 3, 2, 2, 1), (2, 2, 6, 2, 2)),
    "down": mpo.MPOShape((2, 2, 6, 2, 2), (2, 3, 2, 2, 1)),
    "gate": mpo.MPOShape((2, 3, 2, 2, 1), (2, 2, 6, 2, 2)),
}
TWO = {name: SHAPES[name] for name in ("up", "down")}
SEPARABLE = {
    "up": mpo.separable_shape(HIDDEN, INNER),
    "down": mpo.separable_shape(INNER, HIDDEN),
}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, HIDDEN))
MASK = RNG.random((3, 5)) < 0.8


def block(shapes=None, number=4, activation="gelu", dtype="float32", options=None, **settings):
    rng = np.random.default_rng(1)
    settings = nn.ExpertSettings(number, **settings)

    def make():
        sizes = (HIDDEN, INNER, activation, shapes, settings)
        return nn.ExpertFeedForward(*sizes, dtype=dtype, rngs=nnx.Rngs(0), **(options or {}))

    def draw(path, empty):
        # Biases of their own, or no test would miss one; matrices of the usual variance.
        inputs = {"cores": empty.shape[-4:-2], "bias": ()}
        kind = next((kind for kind in inputs if kind in path), None)
        scale = math.prod(inputs.get(kind, empty.shape[-2:-1])) ** -0.5
        return (scale * rng.standard_normal(empty.shape)).astype(empty.dtype)

    # By numpy: initialising as users do compiles a program for each operation.
    empty = jax.tree.map(lambda like: np.empty(like.shape, like.dtype), nnx.eval_shape(make))
    return with_values(empty, draw)


def with_values(module, change):
    graph, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        new = change("/".join(map(str, path)), np.asarray(variable[...]))
        flat[path] = variable.replace(jax.device_put(new))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def in_double(module):
    """With experts in float64; a router is float32 always."""
    return with_values(
        module,
        lambda path, value: value if path.startswith("router") else value.astype(np.float64),
    )


def named(state):
    return {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(state)}


@jax.jit
def call(module, x, mask=None, dropout_key=None, router_key=None):
    """One program: much faster to compile than one for each operation."""
    return module(x, mask, dropout_key, router_key)


def other_settings(module, **changes):
    """The same parameters with other settings."""
    settings = dataclasses.replace(module.settings, **changes)
    changed = nnx.clone(module)
    changed.block = dataclasses.replace(module.block, settings=settings)
    return changed


def outcome(module, x, mask=MASK):
    """Output, statistics and all gradients of a loss of both."""
    graph, state = nnx.split(module)

    @jax.jit
    def run(state, x):
        def loss(state, x):
            y, found = nnx.merge(graph, state)(x, mask)
            extra = found.balance + found.z_loss
            return jnp.sum(jnp.sin(y)) + extra.astype(y.dtype), (y, found)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    (_, (y, found)), (d_state, dx) = run(state, x)
    return y, found, named(d_state), dx


def assert_same(one, other, tolerance=1e-11):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # The router and what follows from it alone is float32.
        close = tolerance if a.dtype == np.float64 else 2e-6
        np.testing.assert_allclose(a, b, rtol=close, atol=close)


def dense_upcycled(shapes, router, activation="relu", use_bias=False, number=4, **settings):
    """(a block whose experts all compute one dense feed-forward, that function), float64."""
    made = block(
        shapes,
        number,
        activation,
        "float64",
        {"use_bias": use_bias},
        router=router,
        **settings,
    )
    rng = np.random.default_rng(2)
    up, down = rng.standard_normal((HIDDEN, INNER)), rng.standard_normal((INNER, HIDDEN))
    weights = {"up": up / HIDDEN**0.5, "down": down / INNER**0.5}
    biases = {"up": rng.standard_normal(INNER), "down": rng.standard_normal(HIDDEN)}
    cores = {
        name: mpo.decompose(weights[name], shape, "identity") for name, shape in shapes.items()
    }

    def change(path, value):
        owner, name, kind, *index = (*path.split("/"), None, None)[:4]
        if owner == "router":
            return value
        if kind == "bias":
            return np.broadcast_to(biases[name], value.shape)
        new = weights[name] if kind == "kernel" else cores[name][int(index[0])]
        return np.broadcast_to(new, value.shape)

    def function(x):
        inner = x @ weights["up"] + (biases["up"] if use_bias else 0)
        inner = nn.ACTIVATIONS[activation](inner)
        return np.asarray(inner) @ weights["down"] + (biases["down"] if use_bias else 0)

    return with_values(made, change), function


class TestUpcycled:
    @pytest.mark.parametrize("router", ["switch", "top2", "noisy_topk"])
    @pytest.mark.parametrize("shapes", [{}, TWO, {"up": SHAPES["up"]}], ids=["dense", "mpo", "up"])
    def test_is_the_dense_block_for_every_router(self, x64, router, shapes):
        made, function = dense_upcycled(shapes, router, "gelu", use_bias=True)
        y, _ = call(made, X, MASK)
        expected = np.where(MASK[..., None], function(X), 0)
        # The gates of two experts are float32: their sum is 1 to its rounding.
        close = 1e-12 if router == "switch" else 1e-6
        np.testing.assert_allclose(y, expected, rtol=close, atol=close)

    @pytest.mark.parametrize("number", marks.slow_but((1, 5), (1, 2, 5)))
    @pytest.mark.parametrize("structure", ["rebuild", "shared_core"])
    def test_for_every_number_of_experts(self, x64, number, structure):
        made, function = dense_upcycled(SEPARABLE, "switch", number=number, structure=structure)
        np.testing.assert_allclose(call(made, X)[0], function(X), rtol=1e-12, atol=1e-12)

    def test_scaled_switch_gives_the_probability_times_it(self, x64):
        made, function = dense_upcycled(TWO, "switch_scale")
        p = np.max(_probabilities(made, X), -1, keepdims=True)
        np.testing.assert_allclose(call(made, X)[0], p * function(X), rtol=1e-6, atol=1e-7)

    def test_homogeneity_of_relu_and_the_straight_through_gradient(self, x64):
        """dL/dp_max = <dL/dy, y> / p_max; FFN(g x) = g FFN(x) without biases."""
        made, function = dense_upcycled(TWO, "switch")
        np.testing.assert_allclose(function(3.0 * X), 3.0 * function(X), rtol=1e-12)
        gates = np.full((15, 1), 0.3)
        experts = _chosen(made, X.reshape(15, -1))
        parameters = _parameters(made)
        run = jax.jit(functools.partial(maps.run, made.block, parameters, key=None))
        of_output, _ = run(X.reshape(15, -1), experts, gates)
        of_input, _ = run(0.3 * X.reshape(15, -1), experts, np.ones((15, 1)))
        np.testing.assert_allclose(of_output, of_input, rtol=1e-12, atol=1e-13)

        dy = np.random.default_rng(4).standard_normal((15, HIDDEN))
        p = np.max(_probabilities(made, X.reshape(15, -1)), -1, keepdims=True)

        def loss(p):
            straight = p / jax.lax.stop_gradient(p)
            return jnp.sum(dy * run(X.reshape(15, -1), experts, straight)[0])

        expected = np.sum(dy * function(X.reshape(15, -1)), -1, keepdims=True) / p
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(p), expected, rtol=1e-9)


def _probabilities(made, x):
    kernel, bias = (np.float64(v[...]) for v in (made.router.kernel, made.router.bias))
    return special.softmax(x @ kernel + bias, axis=-1)


@jax.jit
def _routed(made, x, mask):
    return made.router(x, mask)


def _chosen(made, x, mask=None):
    return np.asarray(_routed(made, x, mask).experts)


def _parameters(made):
    return jax.tree.map(
        lambda v: v[...],
        (made.experts, made.shared),
        is_leaf=lambda part: isinstance(part, nnx.Variable),
    )


class TestDispatch:
    WAYS = (
        {"dispatch": "block"},
        {"dispatch": "ragged"},
        {"dispatch": "capacity"},
        {"dispatch": "auto", "capacity_factor": 4.0},
        {"dispatch": "auto", "remat": False},
        {"dispatch": "auto", "structure": "shared_core"},
        {"dispatch": "ragged", "structure": "shared_core"},
        {"dispatch": "auto", "capacity_factor": 4.0, "structure": "shared_core"},
    )

    @pytest.mark.parametrize(
        ("ways", "router", "shapes", "options", "settings"),
        [
            (WAYS[:4], "switch", TWO, {}, {}),
            (WAYS[4:], "top2", TWO, {"use_bias": False}, {}),
            (WAYS[1::3], "switch_scale", SEPARABLE, {"use_bias": False}, {}),
            (WAYS[::5], "top2", SHAPES, {"gated": True}, {"share_bias": True}),
            (
                WAYS[3::4],
                *("noisy_topk", {"down": SHAPES["down"]}),
                *({}, {"share_central": False, "k": 3}),
            ),
        ],
    )
    def test_all_ways_agree_with_every_expert_on_every_token(
        self, x64, ways, router, shapes, options, settings
    ):
        made = block(shapes, 4, "silu", "float64", options, router=router, **settings)
        made = in_double(made)
        plain = other_settings(made, dispatch="dense", structure="rebuild", remat=False)
        expected = outcome(plain, X)
        np.testing.assert_array_equal(expected[0][~MASK], 0.0)
        for way in ways:
            assert_same(outcome(other_settings(made, **way), X), expected)

    def test_tokens_permute(self, x64):
        made = in_double(block(TWO, dtype="float64"))
        order = np.random.default_rng(3).permutation(15)
        y, found = call(made, X.reshape(15, -1))
        other, same = call(made, X.reshape(15, -1)[order])
        np.testing.assert_allclose(other, y[order], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(same.load, found.load)

    def test_experts_can_be_relabelled(self, x64):
        made = in_double(block(SHAPES, dtype="float64", options={"gated": True}, router="top2"))
        order = np.asarray([2, 0, 3, 1])

        def change(path, value):
            if path.startswith("router"):
                return value[..., order]
            return value[order] if path.startswith("experts") else value

        y, found = call(made, X, MASK)
        other, moved = call(with_values(made, change), X, MASK)
        # The router is float32: sums over experts in another order.
        np.testing.assert_allclose(other, y, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(moved.load, found.load[order])

    def test_dropped_tokens_come_out_as_zero_and_are_counted(self):
        made = block(TWO, capacity_factor=0.5)
        made.router.kernel[...] = jnp.zeros((HIDDEN, 4))
        made.router.bias[...] = jnp.asarray([5.0, 0.0, 0.0, 0.0])
        y, found = call(made, jnp.asarray(X, jnp.float32), MASK)
        kept = np.any(np.asarray(y) != 0.0, -1).reshape(-1)
        real = np.flatnonzero(MASK.reshape(-1))
        capacity = math.ceil(0.5 * 15 / 4)
        np.testing.assert_array_equal(np.flatnonzero(kept), real[:capacity])
        assert float(found.dropped) == pytest.approx(1 - capacity / len(real))
        assert float(found.balance) > 3.5

    @pytest.mark.parametrize(
        ("router", "tokens"),
        marks.slow_but(
            {("top2", 3)},
            [(router, tokens) for router in ("switch", "top2") for tokens in (1, 3)],
        ),
    )
    def test_few_tokens_read_their_experts_alone(self, x64, router, tokens):
        """Fewer assignments than experts: parameters of the others may hold anything."""
        made = in_double(block(SEPARABLE, 8, dtype="float64", router=router))
        x, mask = X.reshape(15, -1)[:tokens], np.asarray([True, False, True])[:tokens]
        chosen = np.unique(_chosen(made, x, mask))
        chosen = chosen[chosen < 8]
        unused = [e for e in range(7) if e not in chosen]

        def spoil(path, value):
            value = np.array(value)
            if path.startswith("experts"):
                value[unused] = np.nan
            return value

        expected = outcome(other_settings(made, dispatch="dense"), x, mask)
        for structure in ("rebuild", "shared_core"):
            assert_same(outcome(other_settings(made, structure=structure), x, mask), expected)
        y, _ = call(with_values(made, spoil), x, mask)
        np.testing.assert_allclose(y, expected[0], rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("dispatch", ["dense", "capacity", "block", "ragged"])
    def test_nothing_to_do(self, dispatch):
        made = block(TWO, dispatch=dispatch)
        for shape in ((0, HIDDEN), (2, 0, HIDDEN)):
            y, found = call(made, jnp.zeros(shape))
            assert y.shape == shape
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
        found = outcome(made, jnp.asarray(X, jnp.float32), np.zeros((3, 5), bool))
        np.testing.assert_array_equal(found[0], 0.0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


class TestSharing:
    def test_gradient_of_the_central_core_is_the_sum_over_untied_copies(self, x64):
        tied = in_double(block(TWO, dtype="float64", share_central=True))
        own = in_double(block(TWO, dtype="float64", share_central=False))
        values = {path: np.array(value) for path, value in named(nnx.state(tied)).items()}

        def change(path, value):
            shared = values.get(path.replace("experts/", "shared/"))
            return np.broadcast_to(values.get(path, shared), value.shape)

        # One expert gets no token.
        bias = values["router/bias"]
        bias[3] = -100.0
        own, tied = with_values(own, change), with_values(tied, lambda p, _: values[p])
        y, found, of_tied, _ = outcome(tied, X)
        used = np.flatnonzero(found.load)
        assert len(used) > 1
        assert 3 not in used
        other, _, of_own, _ = outcome(own, X)
        np.testing.assert_allclose(y, other, rtol=1e-12, atol=1e-13)
        for name in TWO:
            central = np.asarray(of_tied[f"shared/{name}/cores/2"])
            each = np.asarray(of_own[f"experts/{name}/cores/2"])
            np.testing.assert_allclose(central, each.sum(0), rtol=1e-10, atol=1e-12)
            assert np.any(central != 0.0)
            for k in (0, 1, 3, 4):
                gradient = np.asarray(of_tied[f"experts/{name}/cores/{k}"])
                moved = np.any(gradient != 0.0, axis=(1, 2, 3, 4))
                np.testing.assert_array_equal(np.flatnonzero(moved), used)

    def test_parameters(self):
        made = block(TWO, 8, router="noisy_topk")
        shapes = {p: v.shape for p, v in named(nnx.state(made)).items()}
        expected = {
            "router/kernel": (24, 8),
            "router/noise": (24, 8),
            "router/bias": (8,),
            "experts/up/bias": (8, 96),
            "experts/down/bias": (8, 24),
        }
        for name, shape in TWO.items():
            for k, core in enumerate(shape.core_shapes):
                where = "shared" if k == 2 else "experts"
                expected[f"{where}/{name}/cores/{k}"] = core if k == 2 else (8, *core)
        assert shapes == expected
        # The small shape of the spec: 16, 576, 2,304, 64, 4.
        sizes = [math.prod(core) for core in TWO["up"].core_shapes]
        assert sizes == [16, 576, 2304, 64, 4]
        assert TWO["up"].bonds == (4, 24, 8, 2)

    def test_own_biases_and_centres(self):
        made = block(TWO, share_central=False, share_bias=True)
        flat = named(nnx.state(made))
        assert flat["experts/up/cores/2"].shape == (4, *TWO["up"].core_shapes[2])
        assert flat["shared/up/bias"].shape == (96,)
        assert not any("shared" in path and "cores" in path for path in flat)
        assert set(block({}, options={"use_bias": False}).shared) == set()
        assert nn.role_of(made.experts["up"]["cores"]["2"]) == "central"
        assert nn.role_of(made.experts["up"]["cores"]["0"]) == "auxiliary"

    def test_start_has_the_variance_of_other_layers(self):
        shapes, settings = {"up": SHAPES["up"]}, nn.ExpertSettings(16)
        made = nn.ExpertFeedForward(HIDDEN, INNER, "gelu", shapes, settings, rngs=nnx.Rngs(0))
        own, shared = jax.tree.map(np.asarray, _parameters(made))
        cores = {**own["up"]["cores"], **shared["up"]["cores"]}
        rebuild = jax.jit(functools.partial(mpo.expert_matrices, shape=SHAPES["up"]))
        up = np.asarray(rebuild([cores[str(k)] for k in range(5)]))
        down = own["down"]["kernel"]
        assert np.mean(up**2) == pytest.approx(1 / HIDDEN, rel=0.3)
        assert np.mean(down**2) == pytest.approx(1 / INNER, rel=0.05)
        correlation = np.corrcoef(up.reshape(16, -1))[np.triu_indices(16, 1)]
        assert np.max(np.abs(correlation)) < 0.6  # experts are sampled independently
        np.testing.assert_array_equal(own["up"]["bias"], 0.0)


class TestCalls:
    def test_half_precision(self):
        made = block(SHAPES, dtype="bfloat16", options={"gated": True}, router="top2")
        y, found = call(made, jnp.asarray(X, jnp.bfloat16), MASK)
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        assert {v.dtype for v in named(nnx.state(made)).values()} == {jnp.dtype("float32")}
        wide = nnx.clone(made)
        wide.dtype = "float32"
        expected, _ = call(wide, jnp.asarray(X, jnp.bfloat16), MASK)
        np.testing.assert_allclose(np.float32(y), expected, atol=0.1)

    def test_inner_dropout_needs_a_key(self):
        made = block(TWO, options={"inner_dropout": 0.5})
        x = jnp.asarray(X, jnp.float32)
        np.testing.assert_array_equal(call(made, x)[0], call(made, x)[0])
        dropped, _ = call(made, x, dropout_key=jax.random.key(0))
        assert np.any(np.asarray(dropped) != np.asarray(call(made, x)[0]))

    def test_router_key_reaches_the_router(self):
        made = block(TWO, router="noisy_topk")
        x = jnp.asarray(X, jnp.float32)
        moved = call(made, x, router_key=jax.random.key(0))[1].load
        assert np.any(np.asarray(moved) != np.asarray(call(made, x)[1].load))

    def test_stacked_layers_run_in_a_scan(self):
        """As the models hold them: a leading axis of layers, statistics stacked."""
        layer = block(TWO, router="top2")
        stack = jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf] * 2)), layer)
        x = jnp.asarray(X, jnp.float32)

        def body(x, layer):
            y, found = layer(x, MASK)
            return x + y, found

        _, found = jax.jit(lambda x, stack: jax.lax.scan(body, x, stack))(x, stack)
        assert found.load.shape == (2, 4)
        np.testing.assert_allclose(found.tokens, MASK.sum())

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: block(activation="tanh"), "activation 'tanh' is not one of"),
            (lambda: block({"gate": SHAPES["gate"]}), "map 'gate'; the block has up, down"),
            (lambda: block({"up": SHAPES["down"]}), "matrix 96 x 24; the block needs 24 x 96"),
            (lambda: block()(jnp.zeros((3, 8))), "last axis must be hidden_size=24"),
            (
                lambda: block()(jnp.zeros((3, 24)), jnp.ones((2,), bool)),
                r"mask has shape \(2,\); it must be that of the tokens, \(3,\)",
            ),
        ],
    )
    def test_mistakes_are_named(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("backend", "settings", "kind"),
    [
        ("cpu", {}, "block"),
        ("gpu", {}, "ragged"),
        ("gpu", {"capacity_factor": 1.25}, "capacity"),
        ("gpu", {"dispatch": "block"}, "block"),
    ],
)
def test_the_layout_is_chosen_by_backend(monkeypatch, backend, settings, kind):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert block(**settings).block.kind == kind


def test_a_shared_expert_is_a_dense_block_times_a_sigmoid():
    """Beside the experts, whose width is theirs; every map of it may be a chain."""
    settings = {"router": "topk", "k": 2, "router_bias": False, "intermediate_size": 32}
    with_shared = block(None, activation="silu", options={"gated": True}, shared_size=8, **settings)
    without = block(None, activation="silu", options={"gated": True}, **settings)
    assert without.experts["up"]["kernel"].shape == (4, HIDDEN, 32)
    x = jnp.asarray(X, jnp.float32)

    @jax.jit
    def both(with_shared, without):
        dense, gate = with_shared.shared_expert, with_shared.shared_expert_gate
        expected = without(x)[0] + jax.nn.sigmoid(gate(x)) * dense(x)
        return with_shared(x)[0], expected

    np.testing.assert_allclose(*both(with_shared, without), rtol=1e-5, atol=1e-5)
    shape = mpo.MPOShape.balanced(HIDDEN, 8, n=3)
    chain = block({"shared_expert/up": shape}, shared_size=8, **settings)
    assert chain.shapes == {}
    assert chain.shared_expert.up.shape == shape
    with pytest.raises(ValueError, match="shapes has a map 'shared_expert/up'"):
        block({"shared_expert/up": shape}, **settings)
