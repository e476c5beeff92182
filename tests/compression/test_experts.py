"""Feed-forward blocks become experts: the same function, chains, central cores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo
from tests.io.expert_helpers import (
    CONFIGS,
    EVERY,
    IDS,
    before,
    is_central,
    outputs,
    shaken,
    with_experts,
)
from tests.models import small_language as small


class TestStart:
    """The model with experts computes what the dense one does."""

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("gpt2", {"form": "mpoe", "router": "switch"}),
            ("gpt2", {"form": "mpoe", "router": "switch", "structure": "shared_core"}),
            ("gpt2", {"form": "unshared", "router": "top2"}),
            ("gpt2", {"form": "switch", "router": "noisy_topk", "k": 3}),
            ("llama", {"form": "mpoe", "router": "top2", "factorization": "separable"}),
            ("llama", {"form": "switch", "router": "switch"}),
            ("t5", {"form": "unshared", "router": "switch", "number": 1}),
            ("t5 1.1", {"form": "mpoe", "router": "noisy_topk", "share_bias": True}),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
    )
    def test_equals_the_dense_model(self, name, fields):
        model = with_experts(small.dense(CONFIGS[name]), **fields)
        blocks = model.config.feed_forwards()
        assert all(model.config.experts_of(path) for path in blocks)
        found, expected = np.asarray(outputs(model)), before(name)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)

    @pytest.mark.parametrize("form", ["mpoe", "unshared", "switch"])
    @pytest.mark.parametrize("name", ["gpt2", "t5 1.1"])
    def test_the_matrices_are_exact_copies(self, name, form):
        """To the last bit: the gauge "identity" needs no factorisation."""
        dense = models.to_arrays(small.dense(CONFIGS[name]))
        merged = models.to_arrays(
            compression.merge(with_experts(small.dense(CONFIGS[name]), form=form))
        )
        routers = {path for path in merged if "/router/" in path}
        assert len(routers) == 2 * len(CONFIGS[name].feed_forwards())
        assert set(merged) - routers == set(dense)
        for path, array in dense.items():
            copies = np.broadcast_to(array, merged[path].shape)
            is_expert = "feed_forward/" in path
            assert copies.shape == ((3, *array.shape) if is_expert else array.shape)
            np.testing.assert_array_equal(merged[path], copies, err_msg=path)

    @pytest.mark.parametrize("gauge", [g for g in mpo.GAUGES if g != "identity"])
    def test_other_gauges(self, gauge):
        dense = small.dense(small.GPT2)
        merged = models.to_arrays(compression.merge(with_experts(dense, gauge=gauge, cores=3)))
        for path, array in models.to_arrays(dense).items():
            scale = np.abs(array).max()
            copies = np.broadcast_to(array, merged[path].shape)
            np.testing.assert_allclose(merged[path], copies, rtol=0, atol=3e-6 * scale)

    def test_a_cap_truncates(self):
        dense = small.dense(small.GPT2)
        path = "layers/1/feed_forward/up"
        model = with_experts(dense, gauge="central", bond=2)
        assert set(model.shapes[path].bond_dims) == {2}
        merged = models.to_arrays(compression.merge(model))[f"{path}/kernel"]
        (small_one, _) = compression.compress(dense, [(path, {"bond": 2})])
        truncated = models.to_arrays(compression.merge(small_one))[f"{path}/kernel"]
        np.testing.assert_allclose(merged, np.broadcast_to(truncated, merged.shape), atol=1e-6)

    def test_factor_lists(self):
        factors = {"up": ((4, 4), (4, 6)), "down": ((2, 12), (4, 4))}
        model = with_experts(small.dense(small.GPT2), factors=factors, gauge="central")
        shape = model.shapes["layers/2/feed_forward/down"]
        assert (shape.in_factors, shape.out_factors) == factors["down"]
        # Of two cores the first is the central one.
        arrays = models.to_arrays(model)
        assert arrays["layers/2/feed_forward/down/cores/0"].ndim == 4
        assert arrays["layers/2/feed_forward/down/cores/1"].ndim == 5
        with pytest.raises(ValueError, match=r"layers/0/feed_forward/up: the identity gauge needs"):
            with_experts(small.dense(small.GPT2), factors=factors)

    def test_switch_scale_weighs_by_the_probability(self):
        """ "Switch Transformers": the gate is the chosen expert's probability."""
        dense = small.dense(small.GPT2)
        model = with_experts(dense, router="switch_scale")
        first = [jax.tree.map(lambda a: a[0], m.tower.stacks[0]) for m in (dense, model)]
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 16)), jnp.float32)
        plain, expert = (layer.feed_forward for layer in first)
        y, _ = jax.jit(lambda block, x: block(x))(expert, x)
        router = models.to_arrays(model)
        kernel, bias = (router[f"layers/0/feed_forward/router/{n}"] for n in ("kernel", "bias"))
        probability = np.max(jax.nn.softmax(x @ kernel + bias[None, None]), axis=-1)
        assert probability.max() < 0.9
        np.testing.assert_allclose(y, probability[..., None] * plain(x), rtol=1e-4, atol=1e-5)

    def test_routers_are_drawn_from_the_key(self):
        dense = small.dense(small.GPT2)
        one, same, other = (
            models.to_arrays(with_experts(dense, number=2, form="switch", seed=seed))
            for seed in (0, 0, 1)
        )
        name = "layers/1/feed_forward/router/kernel"
        np.testing.assert_array_equal(one[name], same[name])
        assert np.abs(one[name] - other[name]).max() > 0.1
        assert np.abs(one[name] - one[name.replace("/1/", "/2/")]).max() > 0.1
        assert np.abs(one[name]).max() <= 0.25  # 1 / sqrt(hidden)


class TestChains:
    """Matrices in MPO form already."""

    def test_they_are_kept(self):
        compressed, _ = compression.compress(
            small.dense(small.GPT2), [(".*/(query|up|down)", {"bond": 3, "cores": 3})]
        )
        model = with_experts(compressed, cores=5)
        assert model.shapes == compressed.shapes
        held, arrays = models.to_arrays(compressed), models.to_arrays(model)
        for path in (p for p in compressed.shapes if "feed_forward" in p):
            np.testing.assert_array_equal(arrays[f"{path}/cores/1"], held[f"{path}/cores/1"])
            for k in (0, 2):
                core = held[f"{path}/cores/{k}"]
                np.testing.assert_array_equal(
                    arrays[f"{path}/cores/{k}"], np.broadcast_to(core, (3, *core.shape))
                )
        small.close(outputs(model), outputs(compressed), 1e-5)

    def test_dense_experts_are_their_matrices(self):
        compressed, _ = compression.compress(small.dense(small.GPT2), [(".*/up", {"bond": 3})])
        model = with_experts(compressed, form="switch")
        assert not model.shapes
        kernel = models.to_arrays(model)["layers/0/feed_forward/up/kernel"]
        merged = models.to_arrays(compression.merge(compressed))["layers/0/feed_forward/up/kernel"]
        np.testing.assert_allclose(kernel, np.broadcast_to(merged, kernel.shape), atol=1e-6)

    def test_a_chain_of_one_core_has_nothing_to_own(self):
        shapes = {"layers/0/feed_forward/up": mpo.MPOShape((16,), (24,))}
        with pytest.raises(ValueError, match="layers/0/feed_forward/up is a chain of one core"):
            compression.planned_experts(small.GPT2, shapes, [(EVERY, {"number": 2})])
        compression.planned_experts(small.GPT2, shapes, [(EVERY, {"number": 2, "form": "switch"})])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "switch", "bond": 4, "gauge": "central"}, "bond=4 has no meaning with form="),
        ({"form": "switch", "structure": "rebuild"}, "structure='rebuild' has no meaning"),
        ({"form": "switch", "cores": 3}, "cores=3 has no meaning"),
        ({"k": 3}, "k=3 has no meaning with router='switch'"),
        ({"factorization": "separable", "factors": {"up": ((4, 4), (4, 6))}}, "with factors"),
    ],
)
def test_fields_that_would_do_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        compression.planned_experts(small.GPT2, {}, [(EVERY, {"number": 2, **fields})])


class TestParts:
    def test_rules_for_layers(self):
        """Other experts in other layers, added one after the other; the rest stays dense."""
        dense = small.dense(small.GPT2)
        model = with_experts(dense, ("layers/0/feed_forward", {"number": 2}))
        model = with_experts(model, ("layers/2/feed_forward", {"number": 4, "form": "switch"}))
        found = [model.config.experts_of(f"layers/{i}/feed_forward") for i in range(3)]
        assert [s and s.number for s in found] == [2, None, 4]
        assert {path.split("/")[1] for path in model.shapes} == {"0"}
        routing = model.forward(IDS).routing
        assert [s.load.shape for s in routing] == [(1, 2), (1, 4)]
        np.testing.assert_array_equal(model(IDS), before("gpt2"))

    def test_one_tower_of_two(self):
        model = with_experts(small.dense(small.T5), ("decoder/.*", {"number": 2}))
        assert all(path.startswith("decoder/") for path in model.shapes)
        small.close(outputs(model), before("t5"), 1e-5)


# Of one mixture: mpo/test_experts.py.
@pytest.mark.slow
def test_the_gradient_of_a_central_core_is_the_sum_over_untied_copies():
    """Of the whole model, with experts that differ and losses of the routers."""
    tied = shaken(with_experts(small.dense(small.GPT2), cores=3, router="top2"))
    ((pattern, settings),) = tied.config.experts
    settings = dataclasses.replace(settings, share_central=False)
    config = dataclasses.replace(tied.config, experts=((pattern, settings),))
    copies = {
        name: np.broadcast_to(a, (3, *a.shape)) if is_central(tied, name) else a
        for name, a in models.to_arrays(tied).items()
    }
    untied = models.from_arrays(config, tied.shapes, copies)

    @jax.jit
    def gradient(model):
        definition, variables = nnx.split(model)

        def loss(variables):
            output = nnx.merge(definition, variables).forward(IDS)
            balance = sum(jnp.sum(s.balance) for s in output.routing)
            return jnp.mean(jax.nn.log_softmax(output.logits)[..., 7]) + 0.1 * balance

        value, found = jax.value_and_grad(loss)(variables)
        return value, nnx.merge(definition, found)

    (value, tied_one), (other, untied_one) = gradient(tied), gradient(untied)
    assert float(value) == pytest.approx(float(other), rel=1e-6)
    found, expected = models.to_arrays(tied_one), models.to_arrays(untied_one)
    seen = 0
    for name, array in found.items():
        whole = expected[name].sum(0) if is_central(tied, name) else expected[name]
        seen += is_central(tied, name) and np.abs(array).max() > 1e-6
        scale = max(np.abs(whole).max(), 1e-3)  # biases of keys have none
        np.testing.assert_allclose(array, whole, rtol=0, atol=1e-4 * scale, err_msg=name)
    assert seen == 6
