"""Routers: gates, gradients, statistics, padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import nn
from mpojax.nn.moe import routing

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.standard_normal((12, 4)), jnp.float32)
# One program: much faster to compile than one for each operation.
route = jax.jit(routing.route, static_argnums=1)
call = jax.jit(lambda router, x, key=None: router(x, key=key))
ROUTERS = ("switch", "switch_scale", "top2", "topk", "topk_normalized", "noisy_topk")


def settings(router, number=4, **options):
    return nn.ExpertSettings(number, router=router, **options)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class TestGates:
    def test_best_expert(self):
        best = np.argmax(LOGITS, -1)[:, None]
        p = np.max(softmax(np.asarray(LOGITS)), -1, keepdims=True)
        for router, gates in (("switch", np.ones_like(p)), ("switch_scale", p)):
            routed = route(LOGITS, settings(router))
            np.testing.assert_array_equal(routed.experts, best)
            np.testing.assert_allclose(routed.gates, gates, rtol=1e-6)
        np.testing.assert_array_equal(route(LOGITS, settings("switch")).gates, 1.0)

    def test_two_experts(self):
        order = np.argsort(-np.asarray(LOGITS), -1)[:, :2]
        p = np.take_along_axis(softmax(np.asarray(LOGITS)), order, -1)
        routed = route(LOGITS, settings("top2"))
        np.testing.assert_array_equal(routed.experts, order)
        np.testing.assert_allclose(routed.gates, p / p.sum(-1, keepdims=True), rtol=1e-6)

    def test_several_experts_by_probability(self):
        order = np.argsort(-np.asarray(LOGITS), -1)[:, :3]
        p = np.take_along_axis(softmax(np.asarray(LOGITS)), order, -1)
        scaled = p / p.sum(-1, keepdims=True)
        for router, gates in (("topk", p), ("topk_normalized", scaled)):
            routed = route(LOGITS, settings(router, k=3))
            np.testing.assert_array_equal(routed.experts, order)
            np.testing.assert_allclose(routed.gates, gates, rtol=1e-6)

    def test_noisy_top_k_is_the_softmax_of_the_kept(self):
        order = np.argsort(-np.asarray(LOGITS), -1)[:, :3]
        kept = np.take_along_axis(np.asarray(LOGITS), order, -1)
        routed = route(LOGITS, settings("noisy_topk", k=3))
        np.testing.assert_array_equal(routed.experts, order)
        np.testing.assert_allclose(routed.gates, softmax(kept), rtol=1e-6)

    def test_equal_logits_choose_different_experts(self):
        routed = route(jnp.zeros((3, 4)), settings("noisy_topk", k=4))
        np.testing.assert_array_equal(np.sort(routed.experts, -1), [[0, 1, 2, 3]] * 3)
        np.testing.assert_allclose(routed.gates, 0.25)

    def test_straight_through_gradient(self):
        """d gate / d logits is that of p_max, over p_max."""
        weight = RNG.standard_normal((12, 1)).astype(np.float32)

        def of(router):
            gates = jax.jit(jax.grad(lambda x: jnp.sum(weight * route(x, settings(router)).gates)))
            return gates(LOGITS)

        p = route(LOGITS, settings("switch_scale")).gates
        straight = np.asarray(of("switch"))
        np.testing.assert_allclose(straight * p, of("switch_scale"), rtol=1e-5, atol=1e-7)
        assert np.any(straight != 0.0)

    def test_gates_of_top2_have_the_gradient_of_the_formula(self, x64):
        x = jnp.asarray(LOGITS, jnp.float64)
        weight = jnp.asarray(RNG.standard_normal((12, 2)))

        def formula(x):  # softmax over the two largest logits
            return jnp.sum(weight * jax.nn.softmax(jax.lax.top_k(x, 2)[0], -1))

        def gates(x):
            return jnp.sum(weight * route(x, settings("top2")).gates)

        got, expected = jax.jit(lambda x: [jax.grad(f)(x) for f in (gates, formula)])(x)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


class TestStatistics:
    @pytest.mark.parametrize("router", ROUTERS)
    def test_uniform_and_collapsed(self, router):
        tokens, number = 16, 4
        uniform = 1e-4 * np.eye(number, dtype=np.float32)[np.arange(tokens) % number]
        found = route(uniform, settings(router)).statistics
        assert float(found.balance) == pytest.approx(1.0, abs=1e-3)
        assert float(found.entropy) == pytest.approx(math.log(number), abs=1e-3)
        if settings(router).experts_per_token == 1:
            collapsed = np.zeros((tokens, number), np.float32)
            collapsed[:, 2] = 200.0
            found = route(collapsed, settings(router)).statistics
            assert float(found.balance) == pytest.approx(number)
            assert float(found.entropy) == 0.0
            np.testing.assert_array_equal(found.load, [0, 0, 1, 0])

    def test_formulas(self):
        found = route(LOGITS, settings("top2")).statistics
        x = np.asarray(LOGITS, np.float64)
        p = softmax(x)
        chosen = np.argsort(-x, -1)[:, :2]
        load = np.bincount(chosen.reshape(-1), minlength=4) / chosen.size
        np.testing.assert_allclose(found.load, load, rtol=1e-6)
        np.testing.assert_allclose(found.probability, p.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(-1).mean(), rtol=1e-6)
        np.testing.assert_allclose(found.balance, 4 * (load * p.mean(0)).sum(), rtol=1e-6)
        z = np.log(np.exp(x).sum(-1)) ** 2
        np.testing.assert_allclose(found.z_loss, z.mean(), rtol=1e-6)
        assert (float(found.tokens), float(found.dropped)) == (12.0, 0.0)

    def test_balance_has_no_gradient_through_the_load(self):
        load = route(LOGITS, settings("switch")).statistics.load

        def balance(x):
            return route(x, settings("switch")).statistics.balance

        def formula(x):
            return 4 * jnp.sum(load * jnp.mean(jax.nn.softmax(x), 0))

        got, expected = jax.jit(lambda x: [jax.grad(f)(x) for f in (balance, formula)])(LOGITS)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)

    def test_dropped(self):
        found = route(LOGITS, settings("top2")).statistics
        assert float(found.with_kept(jnp.asarray(18), 2).dropped) == pytest.approx(0.25)

    @pytest.mark.parametrize("router", ROUTERS)
    def test_padding_is_never_counted(self, router):
        mask = np.array([True, False, True, True] * 3)
        garbage = np.where(mask[:, None], LOGITS, np.float32(np.nan))

        def loss(x):
            routed = route(x, settings(router), mask)
            some = routed.statistics
            return jnp.sum(routed.gates) + some.balance + some.z_loss + some.entropy, routed

        (_, routed), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(garbage)
        alone = route(np.asarray(LOGITS)[mask], settings(router))
        for one, other in zip(
            jax.tree.leaves(routed.statistics), jax.tree.leaves(alone.statistics), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        for array, value in ((routed.experts, 4), (routed.gates, 0.0), (gradient, 0.0)):
            np.testing.assert_array_equal(np.asarray(array)[~mask], value)
        assert np.all(np.isfinite(gradient))

    @pytest.mark.parametrize("tokens", [0, 3])
    def test_nothing_but_padding(self, tokens):
        found = route(jnp.zeros((tokens, 4)), settings("top2"), jnp.zeros(tokens, bool))
        for leaf in jax.tree.leaves(found.statistics):
            np.testing.assert_array_equal(leaf, 0.0)


class TestRouter:
    def test_start_and_parameters(self):
        router = nn.Router(64, settings("noisy_topk"), rngs=nnx.Rngs(0))
        kernel, bias = np.asarray(router.kernel[...]), np.asarray(router.bias[...])
        assert (kernel.shape, bias.shape) == ((64, 4), (4,))
        assert 0.9 / 8 < np.max(np.abs(kernel)) <= 1 / 8
        assert np.max(np.abs(bias)) <= 1 / 8
        assert nn.Router(8, settings("switch"), rngs=nnx.Rngs(0)).noise is None
        without = nn.Router(8, settings("switch", router_bias=False), rngs=nnx.Rngs(0))
        assert set(nnx.state(without)) == {"kernel"}

    def test_is_float32_whatever_comes_in(self):
        router = nn.Router(8, settings("switch_scale"), rngs=nnx.Rngs(0))
        x = RNG.standard_normal((5, 8)).astype(jnp.bfloat16)
        routed = call(router, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(routed.statistics)} == {jnp.dtype("float32")}
        np.testing.assert_array_equal(routed.gates, call(router, x.astype(np.float32)).gates)

    def test_noise_needs_a_key(self):
        router = nn.Router(8, settings("noisy_topk"), rngs=nnx.Rngs(0))
        x = RNG.standard_normal((200, 8)).astype(np.float32)
        quiet, again = call(router, x), call(router, x)
        np.testing.assert_array_equal(quiet.gates, again.gates)
        noisy = call(router, x, jax.random.key(1))
        assert np.mean(np.asarray(noisy.experts) != quiet.experts) > 0.1
        # The statistics are of what the router has learned, not of the draw.
        np.testing.assert_array_equal(noisy.statistics.probability, quiet.statistics.probability)
        loud = nnx.clone(router)
        loud.noise[...] = jax.device_put(np.full(loud.noise[...].shape, 3.0, np.float32))
        moved, still = call(loud, np.abs(x), jax.random.key(1)), call(router, np.abs(x))
        assert np.mean(np.asarray(moved.experts) != still.experts) > 0.5

    def test_noise_kernel_learns(self):
        router = nn.Router(8, settings("noisy_topk"), rngs=nnx.Rngs(0))
        x = jnp.asarray(RNG.standard_normal((20, 8)), jnp.float32)
        graph, state = nnx.split(router)

        def loss(state):
            return jnp.sum(nnx.merge(graph, state)(x, key=jax.random.key(1)).gates[:, 0] ** 2)

        assert np.any(np.asarray(jax.jit(jax.grad(loss))(state)["noise"][...]) != 0.0)
