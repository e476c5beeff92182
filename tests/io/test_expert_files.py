"""Experts of feed-forward blocks: counts, files, mistakes."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from mpojax import compression, io, models
from tests.io import helpers
from tests.io.expert_helpers import CONFIGS, EVERY, outputs, shaken, with_experts
from tests.models import small_language as small


def equal_arrays(one, other):
    """To the last bit."""
    one, other = models.to_arrays(one), models.to_arrays(other)
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


class TestCounts:
    @pytest.mark.parametrize("form", ["mpoe", "unshared", "switch"])
    @pytest.mark.parametrize("name", ["gpt2", "t5 1.1"])
    def test_planned_are_real(self, name, form):
        config, number = CONFIGS[name], 5
        rules = [(EVERY, {"number": number, "form": form})]
        planned = compression.planned_experts(config, {}, rules)
        model = with_experts(small.dense(config), *rules)
        assert (model.config, model.shapes) == planned
        real = sum(models.count_parameters(model).values())
        assert real == sum(map(np.prod, models.array_shapes(*planned).values()))
        assert real == sum(array.size for array in models.to_arrays(model).values())
        dense = sum(models.count_parameters(small.dense(config)).values())
        blocks = len(config.feed_forwards())
        width, inner = config.hidden_size, config.intermediate_size
        maps = 3 if config.gated else 2
        per_block = width * number + number  # the router
        if config.feed_forward_bias:
            per_block += (number - 1) * (width + inner)
        if form == "switch":
            per_block += (number - 1) * maps * width * inner
        else:
            sizes = [[np.prod(c) for c in s.core_shapes] for s in model.shapes.values()][:maps]
            central = sum(s[2] for s in sizes)
            auxiliary = sum(map(sum, sizes)) - central
            per_block += number * auxiliary - maps * width * inner
            per_block += central * (1 if form == "mpoe" else number)
        assert real == dense + blocks * per_block

    def test_shared_biases(self):
        model = with_experts(small.dense(small.GPT2), share_bias=True, router_bias=False)
        arrays = models.to_arrays(model)
        assert arrays["layers/0/feed_forward/up/bias"].shape == (24,)
        assert not [path for path in arrays if path.endswith("router/bias")]


class TestFiles:
    def test_a_saved_model_is_the_same_with_one_central_core(self, tmp_path):
        model = with_experts(
            small.dense(small.LLAMA), router="top2", capacity_factor=2.0, gauge="symmetric"
        )
        io.save_pretrained(model, tmp_path)
        loaded = io.load_pretrained(tmp_path)
        assert (loaded.config, loaded.shapes) == (model.config, model.shapes)
        equal_arrays(loaded, model)
        assert models.count_parameters(loaded) == models.count_parameters(model)
        tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        for path, shape in model.shapes.items():
            cores = [name for name in tensors if name.startswith(f"{path}/cores/")]
            assert len(cores) == shape.num_cores
            for k, core in enumerate(shape.core_shapes):
                stacked = core if k == shape.central else (3, *core)
                assert tensors[f"{path}/cores/{k}"].shape == stacked
        central = nnx.to_flat_state(nnx.state(loaded, nnx.Param))
        paths = ["/".join(map(str, path)) for path, _ in central]
        assert sum("/shared/" in path for path in paths) == 3  # of up, gate and down; one stack
        io.save_pretrained(loaded, tmp_path)  # again, over it
        equal_arrays(io.load_pretrained(tmp_path), model)

    def test_merged_models_are_switch_experts(self):
        model = shaken(with_experts(small.dense(small.GPT2), number=2, cores=3))
        on_host, in_program = compression.merge(model), jax.jit(models.merged)(model)
        assert not on_host.shapes
        for name, array in models.to_arrays(on_host).items():
            other = models.to_arrays(in_program)[name]
            np.testing.assert_allclose(other, array, rtol=0, atol=1e-5 * np.abs(array).max())
        small.close(outputs(in_program), outputs(model), 1e-4)

    def test_transformers_has_no_such_model(self, tmp_path):
        for form in ("mpoe", "switch"):
            model = with_experts(small.dense(small.GPT2), form=form)
            with pytest.raises(ValueError, match="has experts in its feed-forward blocks"):
                io.export_huggingface(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("rules", "message"),
        [
            ([], "must be a non-empty list"),
            ([(EVERY, {})], "number is missing"),
            ([(EVERY, {"number": 2, "experts": 3})], "unknown 'experts' .known: number, form"),
            ([("layers/9/feed_forward", {"number": 2})], "'layers/9/feed_forward' matches no"),
            ([("layers/0/feed_forward/up", {"number": 2})], "matches no .*layers/<i>/feed_forward"),
            ([(EVERY, {"number": 0})], "number=0 must be an integer of at least 1"),
            ([(EVERY, {"number": 2.0})], "number=2.0 must be an integer"),
            ([(EVERY, {"number": 2}), ("layers/0/.*", {"number": 3})], "both match layers/0/feed"),
            (
                [(EVERY, {"number": 2, "form": "moe"})],
                "form='moe' must be one of 'mpoe', 'unshared', 's",
            ),
            ([(EVERY, {"number": 2, "router": "top1"})], "router='top1' must be one of 'switch', "),
            (
                [(EVERY, {"number": 1, "router": "top2"})],
                "sends a token to 2 experts, but number=1",
            ),
            ([(EVERY, {"number": 2, "bond": 4})], "gauge='identity' is exact only at full bonds"),
            (
                [(EVERY, {"number": 2, "bond": 0, "gauge": "left"})],
                "bond=0 must be an integer of at least 1",
            ),
            ([(EVERY, {"number": 2, "gauge": "middle"})], "gauge='middle' must be one of "),
            ([(EVERY, {"number": 2, "cores": 1})], "cores=1 must be an integer of at least 2"),
            (
                [(EVERY, {"number": 2, "factorization": "separable", "cores": 3})],
                "cores=3: separable chains have five",
            ),
            (
                [(EVERY, {"number": 2, "factors": {"query": ((4,), (4,))}})],
                r"factors=\{'query': .* must be a mapping of names out of up, gate",
            ),
            (
                [(EVERY, {"number": 2, "factors": {"up": ((4, 4), (4, 6))}})],
                r"layers/0/feed_forward/down \(24 x 16\): factors has no lists for 'down'",
            ),
            (
                [(EVERY, {"number": 2, "factors": {"up": ((2, 2), (4, 6)), "down": ((1,), (1,))}})],
                r"layers/0/feed_forward/up \(16 x 24\): ",
            ),
            ([(EVERY, {"number": 2, "capacity_factor": 0.0})], "would drop every token"),
        ],
    )
    def test_rules(self, rules, message):
        with pytest.raises(ValueError, match=message):
            compression.planned_experts(small.GPT2, {}, rules)
        with pytest.raises(ValueError, match=message):
            with_experts(small.dense(small.GPT2), *rules) if rules else compression.add_experts(
                small.dense(small.GPT2), rules, rngs=nnx.Rngs(0)
            )

    def test_blocks_with_experts(self):
        model = with_experts(small.dense(small.GPT2), ("layers/1/feed_forward", {"number": 2}))
        with pytest.raises(
            ValueError, match=r"layers/1/feed_forward, matched by .* has experts al"
        ):
            with_experts(model)

    def test_adapters(self):
        adapted = compression.add_adapters(
            small.dense(small.GPT2), [("layers/2/feed_forward/up", {"rank": 2})], rngs=nnx.Rngs(0)
        )
        with pytest.raises(ValueError, match="layers/2/feed_forward/up has an adapter, which exp"):
            with_experts(adapted)
        model = with_experts(adapted, ("layers/[01]/feed_forward", {"number": 2}))
        ranks = {path: s.rank for path, s in models.adapter_settings(model.config).items()}
        assert ranks == {"layers/2/feed_forward/up": 2}
        with pytest.raises(ValueError, match="matches no matrix"):
            compression.add_adapters(
                model, [("layers/0/feed_forward/up", {"rank": 2})], rngs=nnx.Rngs(0)
            )

    def test_encoders(self):
        for call in (
            lambda: with_experts(helpers.model()),
            lambda: compression.planned_experts(helpers.SETTINGS, {}, [(EVERY, {"number": 2})]),
        ):
            with pytest.raises(ValueError, match="encoder"):
                call()

    def test_experts_are_not_compressed(self):
        model = with_experts(small.dense(small.GPT2))
        with pytest.raises(ValueError, match="matches no matrix"):
            compression.compress(model, [("layers/./feed_forward/up", {"bond": 2})])
        both, report = compression.compress(model, [(".*/query", {"bond": 2})])
        assert {row.path.rpartition("/")[2] for row in report.rows} == {"query"}
        assert set(both.shapes) == {*model.shapes, *(row.path for row in report.rows)}
