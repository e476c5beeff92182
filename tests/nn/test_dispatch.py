"""Layouts of experts' tokens, and products with them, against loops over tokens."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax.nn.moe import dispatch, grouped_matmul

NUMBER, TOKENS, WIDTH, OUT = 3, 7, 4, 5


# One program: much faster to compile than one for each operation.
make_layout = jax.jit(
    dispatch.make_layout, static_argnames=("number", "kind", "capacity", "block", "limit")
)


def layout_of(experts, kind, number=NUMBER, capacity=None, **options):
    experts = jnp.asarray(experts, jnp.int32).reshape(len(experts), -1)
    capacity = len(experts) if capacity is None else capacity
    return make_layout(experts, number, kind, capacity=capacity, **options)


def test_capacities_of_the_spec():
    for tokens, number, capacity in ((4096, 8, 640), (4096, 16, 320), (128, 16, 10)):
        assert dispatch.capacity_of(tokens, number, 1.25) == capacity
    assert dispatch.capacity_of(128, 16, 1.25, multiple=4) == 12
    assert dispatch.capacity_of(10, 1, 1.1) == 11


class TestByHand:
    """Tokens 0..4 go to experts 1, 0, 1, -, 1 (the fourth is padding)."""

    EXPERTS = (1, 0, 1, NUMBER, 1)
    X = jnp.arange(10.0).reshape(5, 2) + 1

    def test_capacity(self):
        layout = layout_of(self.EXPERTS, "capacity", capacity=2)
        assert layout.assignment.tolist() == [1, 5, 0, 2, 5, 5]
        assert layout.slot[:, 0].tolist() == [2, 0, 3, 6, 6]  # the last is dropped
        assert layout.counts.tolist() == [1, 2, 0]
        assert int(layout.kept()) == 3
        rows = dispatch.gather(layout, self.X)
        np.testing.assert_array_equal(rows, [[3, 4], [0, 0], [1, 2], [5, 6], [0, 0], [0, 0]])
        gates = jnp.asarray([[0.5], [1.0], [2.0], [9.0], [9.0]], jnp.float32)
        y = dispatch.combine(layout, rows, gates)
        np.testing.assert_array_equal(y, [[0.5, 1], [3, 4], [10, 12], [0, 0], [0, 0]])

    @pytest.mark.parametrize("kind", ["block", "ragged"])
    def test_sorted(self, kind):
        layout = layout_of(self.EXPERTS, kind, block=2)
        filled = [1, 0, 2, 4, 5]
        assert layout.assignment.tolist() == filled + [5] * (2 if kind == "block" else 0)
        assert layout.starts.tolist() == [0, 1, 4]
        assert layout.counts.tolist() == [1, 3, 0]
        assert layout.slot[:, 0].tolist() == [1, 0, 2, layout.rows, 3]
        rows = dispatch.gather(layout, self.X)
        np.testing.assert_array_equal(rows[:5], [[3, 4], [1, 2], [5, 6], [9, 10], [0, 0]])

    def test_first_choices_come_first(self):
        """Token 1's first choice wins over token 0's second one."""
        layout = layout_of([[0, 1], [1, 2], [1, 0]], "capacity", capacity=1)
        assert layout.slot.tolist() == [[0, 3], [1, 2], [3, 3]]
        assert int(layout.kept()) == 3

    def test_few(self):
        layout, chosen = dispatch.layout_of_few(jnp.asarray([[4, 1], [8, 8]]), 8)
        assert chosen.tolist() == [4, 7, 1, 7]
        assert layout.slot.tolist() == [[0, 2], [4, 4]]
        assert int(layout.kept()) == 2
        crowded, _ = dispatch.layout_of_few(jnp.asarray([[4], [4], [5]]), 8, capacity=1)
        assert crowded.slot[:, 0].tolist() == [0, 3, 2]

    def test_limit_makes_fewer_rows(self):
        layout = layout_of([0, NUMBER, NUMBER, 2, NUMBER, NUMBER], "block", block=2, limit=3)
        assert layout.rows == 5
        assert layout.assignment.tolist() == [0, 3, 6, 6, 6]


def by_loops(experts, gates, x, w, bias):
    """sum over a token's experts of gate * (x w_e + b_e); padding and dropped ones left out."""
    y = np.zeros((len(x), w.shape[2]))
    for t, choices in enumerate(experts):
        for j, e in enumerate(choices):
            if e < len(w):
                y[t] += gates[t, j] * (x[t] @ w[e] + bias[e])
    return y


def by_layout(layout, gates, x, w, bias):
    rows = dispatch.gather(layout, x)
    rows = grouped_matmul.matmul(layout, rows[:, None], w)[:, 0]
    rows = grouped_matmul.add_bias(layout, rows, bias)
    return dispatch.combine(layout, rows, gates)


@st.composite
def assignments(draw):
    """(T, k) experts, of a token all different, some tokens padding; all kinds of loads."""
    k = draw(st.integers(1, NUMBER))
    favourite = draw(st.none() | st.integers(0, NUMBER - 1))
    rows = []
    for _ in range(TOKENS):
        choices = list(draw(st.permutations(range(NUMBER))))
        if favourite is not None:
            choices.remove(favourite)
            choices.insert(0, favourite)
        rows.append([NUMBER] * k if draw(st.booleans()) else choices[:k])
    return np.asarray(rows)


@jax.jit
def _value_and_gradients(layout, gates, x, w, bias):
    def loss(*arguments):
        y = by_layout(layout, *arguments)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(gates, x, w, bias)
    return y, gradients


@hypothesis.given(assignments(), st.integers(0, 2**32 - 1))
def test_all_kinds_agree_with_loops_in_value_and_gradient(experts, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((TOKENS, WIDTH)))
        w = jnp.asarray(rng.standard_normal((NUMBER, WIDTH, OUT)))
        bias = jnp.asarray(rng.standard_normal((NUMBER, OUT)))
        gates = jnp.asarray(rng.standard_normal(experts.shape))
        arguments = (gates, x, w, bias)
        expected = by_loops(experts, *(np.asarray(a) for a in arguments))
        reference = None
        for kind in dispatch.KINDS:
            layout = layout_of(experts, kind, block=2)
            y, gradients = _value_and_gradients(layout, *arguments)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
            assert int(layout.kept()) == np.sum(experts < NUMBER)
            reference = reference or gradients  # of "dense", the first: plain operations alone
            for one, other in zip(gradients, reference, strict=True):
                # The gate of an assignment that does not exist has no derivative.
                exists = experts < NUMBER if one is gradients[0] else True
                np.testing.assert_allclose(
                    np.where(exists, one, 0), np.where(exists, other, 0), rtol=1e-11, atol=1e-11
                )


@pytest.mark.parametrize("kind", dispatch.KINDS)
@pytest.mark.parametrize("load", ["one expert", "nobody"])
def test_extreme_loads(kind, load):
    experts = np.full((TOKENS, 1), 1 if load == "one expert" else NUMBER)
    arguments = (
        jnp.ones((TOKENS, 1)),
        jnp.ones((TOKENS, WIDTH)),
        jnp.ones((NUMBER, WIDTH, OUT)),
        jnp.ones((NUMBER, OUT)),
    )
    y, gradients = _value_and_gradients(layout_of(experts, kind, block=2), *arguments)
    np.testing.assert_allclose(y, WIDTH + 1.0 if load == "one expert" else 0.0)
    _, _, dw, d_bias = gradients
    for gradient in (dw, d_bias):
        assert np.all(np.isfinite(gradient))
        idle = [0, 2] if load == "one expert" else [0, 1, 2]
        np.testing.assert_array_equal(np.asarray(gradient)[idle], 0.0)


def test_dropped_tokens_contribute_nothing():
    experts = np.asarray([[0], [0], [0], [1]])
    layout = layout_of(experts, "capacity", capacity=2)
    x = jnp.ones((4, WIDTH))
    y, (_, dx, _, _) = _value_and_gradients(
        layout, jnp.ones((4, 1)), x, jnp.ones((NUMBER, WIDTH, OUT)), jnp.ones((NUMBER, OUT))
    )
    np.testing.assert_array_equal(y[2], 0.0)
    np.testing.assert_array_equal(dx[2], 0.0)
    assert np.all(np.asarray(y)[[0, 1, 3]] == WIDTH + 1)


@pytest.mark.parametrize("kind", ["capacity", "block", "ragged"])
def test_gather_and_combine_are_transposes_without_scatters(kind):
    experts = jnp.asarray([[0, 1], [2, 0], [NUMBER, NUMBER], [2, 1]])
    layout = layout_of(experts, kind, block=2, capacity=1)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((4, WIDTH)).astype(np.float32) for _ in range(2))
    rows = rng.standard_normal((layout.rows, WIDTH)).astype(np.float32)
    rows[np.asarray(layout.assignment) >= 8] = 0
    ones = np.ones((4, 2), np.float32)

    @jax.jit
    def both(x, y, rows):
        gathered, gather = jax.vjp(lambda x: dispatch.gather(layout, x), x)
        combined, combine = jax.vjp(lambda rows: dispatch.combine(layout, rows, ones), rows)
        return gathered, combined, *gather(rows), *combine(y), dispatch.gather(layout, y)

    gathered, combined, of_gather, of_combine, expected = map(np.asarray, both(x, y, rows))
    np.testing.assert_allclose(np.vdot(gathered, rows), np.vdot(x, combined), rtol=1e-5)
    np.testing.assert_allclose(of_gather, combined, rtol=1e-6)
    np.testing.assert_allclose(of_combine, expected, rtol=1e-6)
    text = str(
        jax.make_jaxpr(jax.grad(lambda *a: jnp.sum(by_layout(layout, *a)), (0, 1, 2, 3)))(
            ones, x, np.ones((NUMBER, WIDTH, OUT), np.float32), np.ones((NUMBER, OUT), np.float32)
        )
    )
    assert "scatter" not in text


def test_a_half_precision_sum_over_blocks_is_wide():
    tokens = 2048
    layout = layout_of([0] * tokens, "block", block=8)
    x = jnp.ones((tokens, 1), jnp.bfloat16)

    def loss(w):
        return jnp.sum(grouped_matmul.matmul(layout, x[:tokens, None], w)[:tokens])

    x = jnp.concatenate([x, jnp.zeros((8, 1), jnp.bfloat16)])
    dw = jax.jit(jax.grad(loss))(jnp.ones((NUMBER, 1, 1), jnp.bfloat16))
    assert float(dw[0, 0, 0]) == tokens  # in bfloat16, 256 + 1 = 256


def test_default_block_follows_the_load():
    assert dispatch.default_block(4096, 8) == 128
    assert dispatch.default_block(512, 64) == 8
    assert dispatch.default_block(3, 64) == 8
