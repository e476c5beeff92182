"""Rows times the matrices of their experts, given by cores: every strategy, value and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo, training
from mpojax.nn.moe import dispatch, grouped_matmul
from mpojax.training.aot import hlo, topology
from tests import marks

NUMBER = 4
# Expert 3 gets no token, expert 1 more than a block.
EXPERTS = jnp.asarray([1, 0, 1, 2, 1, NUMBER, 0, 1, 2, 1])[:, None]
SHAPES = {
    "five cores": mpo.MPOShape((2, 3, 2, 2, 1), (2, 2, 3, 2, 2)).with_bonds(3),
    "two cores": mpo.MPOShape((3, 2), (2, 4)),
    "padded": mpo.MPOShape((2, 2, 3), (2, 3, 2), (3, 4), 11, 10),
    "separable": mpo.separable_shape(12, 24),
}


def strategies(shape):
    """A plan for each strategy and direction."""
    plan = mpo.plan_experts(shape, NUMBER, 10, one_by_one=True)
    for cost in plan.costs:
        variants = [cost.variant]
        if cost.strategy == "three_groups":
            variants = [(None, True), (None, False)]
        elif cost.strategy == "two_groups":
            cuts = {shape.central, shape.central + 1} & set(range(1, shape.num_cores))
            variants = [(cut, way) for cut in cuts for way in (True, False)]
        for variant in variants:
            yield dataclasses.replace(plan, chosen=dataclasses.replace(cost, variant=variant))


def cores_of(shape, share_central):
    rng = np.random.default_rng(0)
    return tuple(
        jax.device_put(
            rng.standard_normal(core if share_central and k == shape.central else (NUMBER, *core))
        )
        for k, core in enumerate(shape.core_shapes)
    )


CASES = [*((name, True) for name in SHAPES), ("five cores", False)]


@pytest.mark.parametrize(
    ("name", "share_central", "kind"),
    # Each kind of layout for some shapes: the strategies see its rows alone.
    marks.slow_but(
        {
            *(("five cores", True, "capacity"), ("five cores", False, "block")),
            *(("separable", True, "block"), ("padded", True, "capacity")),
        },
        [(*case, kind) for case in CASES for kind in ("capacity", "block")],
    ),
)
def test_every_strategy(x64, name, share_central, kind):
    shape = SHAPES[name]
    layout = dispatch.make_layout(EXPERTS, NUMBER, kind, capacity=5, block=2)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((10, shape.in_features))
    weight = rng.standard_normal((10, shape.out_features))
    plans = list(strategies(shape))
    assert len({plan.strategy for plan in plans}) == 5

    def plain(cores, rows):
        own = [tuple(core[e] if core.ndim == 5 else core for core in cores) for e in range(NUMBER)]
        matrices = jnp.stack([mpo.to_matrix(one, shape) for one in own])
        return grouped_matmul.matmul(layout, rows[:, None], matrices)[:, 0]

    def by(plan, remat=True):
        return lambda cores, rows: grouped_matmul.chain_matmul(
            layout, shape, cores, rows, plan, remat
        )

    @jax.jit
    def outcomes(cores, x):
        results = []
        for function in (plain, by(plans[0], remat=False), *map(by, plans)):

            def loss(cores, x, function=function):
                rows = function(cores, dispatch.gather(layout, x))
                y = dispatch.combine(layout, rows, jnp.ones((10, 1)))
                return jnp.sum(jnp.sin(y) * weight), y

            results.append(jax.value_and_grad(loss, (0, 1), has_aux=True)(cores, x))
        return results

    expected, *found = outcomes(cores_of(shape, share_central), x)
    for other in found:
        for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def test_experts_without_tokens_are_not_rebuilt():
    """Whatever their cores hold does not matter, and their derivative is exactly zero."""
    shape = SHAPES["five cores"]
    cores = tuple(core.astype(jnp.float32) for core in cores_of(shape, True))

    def with_idle(value):
        changed = [np.array(core) for core in cores]
        for core in changed:
            if core.ndim == 5:
                core[3] = value
        return tuple(changed)

    layout = dispatch.make_layout(EXPERTS, NUMBER, "block", block=2)
    plan = mpo.plan_experts(shape, NUMBER, 10, structure="rebuild")
    x = jnp.ones((10, shape.in_features))

    def loss(cores):
        rows = dispatch.gather(layout, x)
        rows = grouped_matmul.chain_matmul(layout, shape, cores, rows, plan)
        return jnp.sum(dispatch.combine(layout, rows, jnp.ones((10, 1))))

    run = jax.jit(jax.value_and_grad(loss))
    expected, gradients = run(cores)
    assert float(run(with_idle(np.nan))[0]) == float(expected)
    for k, (one, two) in enumerate(zip(run(with_idle(7.0))[1], gradients, strict=True)):
        np.testing.assert_array_equal(one, two)
        if k != shape.central:
            np.testing.assert_array_equal(np.asarray(one)[3], 0.0)


def test_half_precision_of_every_strategy():
    shape = SHAPES["five cores"]
    layout = dispatch.make_layout(EXPERTS, NUMBER, "block", block=2)
    cores = tuple(core.astype(jnp.float32) for core in cores_of(shape, True))
    rows = dispatch.gather(layout, jnp.ones((10, shape.in_features)))
    plans = list(strategies(shape))

    @jax.jit
    def outcomes(cores, rows):
        def loss(cores, plan):
            y = grouped_matmul.chain_matmul(layout, shape, cores, rows, plan)
            assert y.dtype == rows.dtype
            return jnp.sum(y[:9].astype(jnp.float32) ** 2)

        return [jax.grad(loss)(cores, plan) for plan in plans]

    half, whole = outcomes(cores, rows.astype(jnp.bfloat16)), outcomes(cores, rows)
    for one, other in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0.1, atol=0.03 * np.abs(other).max())


def test_loops_are_for_the_cpu(monkeypatch):
    layout = dispatch.make_layout(EXPERTS, NUMBER, "block", block=2)
    assert grouped_matmul.runs_one_by_one(layout)
    assert not grouped_matmul.runs_one_by_one(dataclasses.replace(layout, kind="ragged"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not grouped_matmul.runs_one_by_one(layout)


def test_derivatives_of_ragged_products_by_kernels():
    """Against autodiff: an expert without rows, rows that are no expert's, rests of tiles."""
    rng = np.random.default_rng(0)
    x, w, dy = (
        jnp.asarray(rng.standard_normal(size), jnp.float32)
        for size in ((150, 20), (3, 20, 24), (150, 24))
    )
    counts = jnp.asarray([90, 0, 40], jnp.int32)
    dy = jnp.where(jnp.arange(150)[:, None] < 130, dy, 0.0)

    def gradients(product):
        return jax.vjp(lambda x, w: product(x, w, counts), x, w)[1](dy)

    found, expected = gradients(grouped_matmul.ragged_dot), gradients(jax.lax.ragged_dot)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not topology.is_installed(), reason="libtpu is not installed: the extra tpu")
def test_no_token_meets_every_expert_on_a_tpu():
    layout = dispatch.make_layout(jnp.zeros((4096, 1), jnp.int32), 8, "ragged")
    x, w = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((4096, 1, 768), (8, 768, 3072)))

    def loss(x, w):
        return jnp.sum(grouped_matmul.matmul(layout, x, w).astype(jnp.float32))

    with jax.set_mesh(training.make_mesh({}, topology.describe("v5e:1x1"))):
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile()
    assert "tgmm" in compiled.as_text()
    work = hlo.Program(compiled.as_text()).work()
    # dx and dW; XLA's own derivative takes 9 such products.
    assert sum(each.flops for each in work) < 2.1 * 2 * 4096 * 768 * 3072
