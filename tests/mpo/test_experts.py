"""Matrices of experts around a shared central core: values, derivatives, counts, plans."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.mpo.experts import kernels
from tests import marks
from tests.mpo import chains, helpers

UP = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
CI = mpo.MPOShape((2, 3, 2, 2, 1), (2, 2, 6, 2, 2))
SHAPES = {name: shape for name, shape in chains.SHAPES.items() if shape.num_cores > 1} | {
    "24x96": CI,
    "right product first": mpo.MPOShape((2, 1, 2, 3, 4), (1, 2, 2, 3, 2)).with_bonds(5),
    "separable": mpo.separable_shape(12, 24),
}


def random_cores(shape, experts=3, share_central=True, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jax.device_put(
            rng.standard_normal(core if share_central and k == shape.central else (experts, *core))
            / math.sqrt(core[0])
        )
        for k, core in enumerate(shape.core_shapes)
    )


def of_expert(cores, e):
    return tuple(core[e] if core.ndim == 5 else core for core in cores)


def _flops(shape, strategy, experts, tokens):
    plan = mpo.plan_experts(shape, experts, tokens, training=False)
    return next(cost.flops for cost in plan.costs if cost.strategy == strategy)


def one_by_one(cores, shape):
    return jnp.stack([mpo.to_matrix(of_expert(cores, e), shape) for e in range(3)])


def product(rows, weights):
    """Rows in equal groups, one for each expert."""
    n = weights.shape[0]
    return (rows.reshape(n, -1, rows.shape[-1]) @ weights).reshape(*rows.shape[:-1], -1)


CASES = [(name, share, "cpu") for name in SHAPES for share in (True, False)] + [
    (name, True, "gpu") for name in SHAPES
]


# Every shape in both associations, and with cores of the experts' own in two of them.
QUICK = {case for case in CASES if case[1] or case[0] in ("five cores", "separable")}


@pytest.mark.parametrize(("name", "share_central", "backend"), marks.slow_but(QUICK, CASES))
def test_matrices_and_gradients_are_those_of_the_chains(
    x64, monkeypatch, name, share_central, backend
):
    """`backend` picks the association: one expert after the other, or all at once."""
    shape = SHAPES[name]
    cores = random_cores(shape, share_central=share_central)
    weight = np.random.default_rng(1).standard_normal((3, *_size(shape)))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    @jax.jit
    def all_ways(cores):
        results = []
        for function in (
            one_by_one,
            mpo.expert_matrices,
            lambda c, shape: mpo.expert_matrices(c, shape, keep=True),
        ):
            w, pull_back = jax.vjp(lambda c, function=function: function(c, shape), cores)
            results.append((w, *pull_back(weight)[0]))
        return results

    expected, *others = all_ways(cores)
    for other in others:
        for one, two in zip(other, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)
    einsum = helpers.rebuilt([np.asarray(core) for core in of_expert(cores, 1)])
    einsum = einsum[: shape.in_features, : shape.out_features]
    np.testing.assert_allclose(expected[0][1], einsum, rtol=1e-12, atol=1e-12)


def _size(shape):
    return shape.in_features, shape.out_features


@hypothesis.given(
    helpers.shapes(min_cores=2, max_cores=6, cut=True), st.booleans(), helpers.seeds()
)
@hypothesis.settings(max_examples=8)
def test_shared_core_is_the_product_with_the_matrices(shape, share_central, seed):
    with jax.enable_x64(True):
        cores = random_cores(shape, share_central=share_central, seed=seed)
        rows = np.random.default_rng(seed).standard_normal((6, shape.in_features))

        @jax.jit
        def all_ways(cores, rows):
            found = [
                mpo.apply_shared_core(cores, shape, rows, product, order)
                for order in kernels.ORDERS
            ]
            return product(rows, one_by_one(cores, shape)), *found

        expected, *found = all_ways(cores, rows)
        for y in found:
            np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", kernels.ORDERS)
def test_gradients_through_the_shared_core(x64, order):
    for shape in (CI, SHAPES["padded"]):
        cores = random_cores(shape)
        rows = np.random.default_rng(2).standard_normal((6, shape.in_features))

        def by_chain(cores, rows, shape=shape):
            return jnp.sum(jnp.sin(mpo.apply_shared_core(cores, shape, rows, product, order)))

        def by_matrices(cores, rows, shape=shape):
            return jnp.sum(jnp.sin(product(rows, one_by_one(cores, shape))))

        got, expected = (jax.jit(jax.grad(f, (0, 1)))(cores, rows) for f in (by_chain, by_matrices))
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def test_gradient_of_the_shared_core_is_the_sum_over_untied_copies(x64):
    cores = random_cores(CI)
    untied = tuple(
        np.stack([core] * 3) if k == CI.central else core for k, core in enumerate(cores)
    )
    used = np.asarray([1.0, 0.0, 2.0])[:, None, None]  # expert 1 gets no token

    def loss(cores):
        return jnp.sum(jnp.sin(mpo.expert_matrices(cores, CI)) * used)

    tied, each = map(jax.jit(jax.grad(loss)), (cores, untied))
    np.testing.assert_allclose(tied[CI.central], np.asarray(each[CI.central]).sum(0), rtol=1e-12)
    for k, gradient in enumerate(tied):
        if k != CI.central:
            np.testing.assert_array_equal(gradient[1], 0.0)
            assert np.all(np.any(np.asarray(gradient[::2]) != 0.0, axis=(1, 2, 3, 4)))


def test_derivative_keeps_the_cores_alone():
    cores = random_cores(CI)
    numbers = sum(core.size for core in cores)
    saved = [
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda c, f=f: jax.vjp(f, c)[1], cores)))
        for f in (
            lambda c: mpo.expert_matrices(c, CI),
            lambda c: mpo.expert_matrices(c, CI, keep=True),
        )
    ]
    assert saved[0] == numbers < saved[1]


def test_wide_cores_of_narrow_rows():
    cores = tuple(core.astype(jnp.float32) for core in random_cores(CI))
    rows = jnp.ones((6, 24), jnp.bfloat16)

    @jax.jit
    def both(cores, rows):
        expected = product(rows.astype(jnp.float32), mpo.expert_matrices(cores, CI))
        return mpo.apply_shared_core(cores, CI, rows, product), expected

    y, expected = both(cores, rows)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), expected, atol=0.05 * np.max(np.abs(expected)))


def test_wrong_cores_are_named():
    cores = random_cores(CI)
    with pytest.raises(ValueError, match=r"index 2 central"):
        mpo.expert_matrices(cores[:-1], CI)
    with pytest.raises(ValueError, match=r"cores have shapes"):
        mpo.expert_matrices((cores[0][:2], *cores[1:]), CI)
    with pytest.raises(ValueError, match=r"at least two cores"):
        mpo.expert_matrices((jnp.ones((3, 1, 2, 2, 1)),), mpo.MPOShape((2,), (2,)))
    with pytest.raises(ValueError, match=r"order='middle_first' must be one of 'right_first'"):
        mpo.apply_shared_core(cores, CI, jnp.ones((6, 24)), product, "middle_first")


class TestSeparable:
    def test_lists_of_the_usual_widths(self):
        up, down = mpo.separable_shape(768, 3072), mpo.separable_shape(3072, 768)
        assert up.in_factors == (1, 1, 2, 24, 16)
        assert up.out_factors == (12, 16, 16, 1, 1)
        assert up.bonds == (12, 192, 384, 16)
        assert down.in_factors == (1, 1, 16, 16, 12)
        assert down.out_factors == (16, 24, 2, 1, 1)
        assert down.bonds == (16, 384, 192, 12)
        sizes = [math.prod(core) for core in up.core_shapes]
        assert sizes == [144, 36_864, 2_359_296, 147_456, 256]
        assert [math.prod(core) for core in down.core_shapes] == [
            *(256, 147_456, 2_359_296, 36_864, 144)
        ]
        for shape in (up, down):
            assert shape.num_auxiliary_params == UP.num_auxiliary_params == 184_720
            one, two = (_flops(shape, "right_first", 1, tokens) for tokens in (1, 2))
            assert two - one == 6_488_064  # without merging the cores of the sides

    @hypothesis.given(st.integers(2, 400), st.integers(2, 400), st.integers(3, 7))
    def test_any_size(self, rows, columns, n):
        shape = mpo.separable_shape(rows, columns, n)
        assert _size(shape) == (rows, columns)
        assert shape.padded_in_features <= rows * 1.02
        assert shape.num_cores == n
        centre = shape.central
        assert math.prod(shape.in_factors[:centre]) == 1
        assert math.prod(shape.out_factors[centre + 1 :]) == 1
        padded = shape.padded_in_features * shape.padded_out_features
        assert shape.num_central_params == padded

    def test_holds_any_matrix(self, x64):
        shape = mpo.separable_shape(24, 96)
        w = helpers.random_matrix(shape)
        apply = jax.jit(lambda cores, x: mpo.apply_shared_core(cores, shape, x, product))
        for gauge in ("identity", "central"):
            cores = mpo.decompose(w, shape, gauge)
            own = tuple(
                core if k == shape.central else np.stack([core] * 2) for k, core in enumerate(cores)
            )
            x = np.random.default_rng(3).standard_normal((4, 24))
            np.testing.assert_allclose(apply(own, x), x @ w, rtol=1e-11, atol=1e-11)

    def test_too_few_cores(self):
        with pytest.raises(ValueError, match="at least three cores"):
            mpo.separable_shape(8, 8, 2)


class TestPlan:
    def test_flops_of_the_spec(self):
        for experts in (1, 8):
            flops = _flops(UP, "rebuild", experts, tokens=experts)
            assert flops == experts * (2_723_512_320 + 2 * 768 * 3072)
        plan = mpo.plan_experts(UP, 8, 4096, training=False)
        overhead = plan.costs[0].flops / (2 * 4096 * 768 * 3072) - 1
        assert overhead == pytest.approx(577 * 8 / 4096, rel=1e-3)

    @pytest.mark.parametrize(
        ("shape", "experts", "tokens", "expected"),
        [
            (UP, 8, 4096, "rebuild"),
            (UP.with_bonds(32), 8, 4096, "rebuild"),
            (UP.with_bonds(8), 64, 512, "shared_core"),
            (mpo.separable_shape(768, 3072), 8, 4096, "shared_core"),
            (mpo.separable_shape(3072, 768), 8, 4096, "shared_core"),
            (mpo.separable_shape(768, 3072), 8, 65_536, "rebuild"),
        ],
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_clear_cases(self, shape, experts, tokens, expected, training):
        plan = mpo.plan_experts(shape, experts, tokens, training=training, machine="cpu")
        assert ("rebuild" if plan.strategy == "rebuild" else "shared_core") == expected
        assert plan.chosen.seconds == min(cost.seconds for cost in plan.costs)

    def test_structure_and_remat(self):
        plan = mpo.plan_experts(UP, 8, 4096, structure="shared_core")
        assert plan.strategy in kernels.ORDERS
        built_again = mpo.plan_experts(UP, 8, 4096).costs[0]
        kept = mpo.plan_experts(UP, 8, 4096, remat=False).costs[0]
        assert built_again.flops > kept.flops
        assert kept.saved - built_again.saved == 4 * 8 * 768 * 3072

    def test_one_expert_after_the_other(self):
        few = {"machine": "cpu", "one_by_one": True}
        plan = mpo.plan_experts(UP.with_bonds(8), 64, 512, **few)
        assert plan.strategy == "two_groups"
        of_one = mpo.plan(UP.with_bonds(8), tokens=8, machine="cpu", strategy="two_groups")
        assert plan.chosen.variant == of_one.chosen.variant
        assert plan.chosen.flops == 64 * of_one.chosen.flops
        assert mpo.plan_experts(UP, 8, 4096, **few).strategy == "rebuild"
        assert len(mpo.plan_experts(UP, 8, 4096, machine="cpu").costs) == 3

    def test_own_central_cores_cost_the_same_flops(self):
        shared, own = (
            mpo.plan_experts(CI, 4, 100, share_central=share).costs for share in (True, False)
        )
        assert [cost.flops for cost in shared] == [cost.flops for cost in own]

    def test_is_hashable_and_prints(self):
        plan = mpo.plan_experts(CI, 4, 100)
        assert plan is mpo.plan_experts(CI, 4, 100)
        assert {plan: 1}
        text = str(plan)
        for fact in ("4 experts of 24 x 96", "100 tokens", "training", "left_first"):
            assert fact in text
        assert sum(line.startswith("*") for line in text.splitlines()) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((CI, 0, 5, None), "experts=0 must be an integer of at least 1"),
            ((mpo.MPOShape((2,), (2,)), 2, 5, None), "at least two cores"),
            ((CI, 2, 5, "chain"), "structure='chain' must be one of 'rebuild', 'shared_core'"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        *arguments, structure = arguments
        with pytest.raises(ValueError, match=message):
            mpo.plan_experts(*arguments, structure=structure)
