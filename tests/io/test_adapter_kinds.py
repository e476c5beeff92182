"""Every kind of adapter on every kind of model: no effect at first, one function when merged."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models, nn, training
from tests import marks
from tests.models import small, small_language
from tests.models.test_kinds import IDS as TEXTS
from tests.models.test_kinds import MASK

MODELS = {
    "bert": dataclasses.replace(small.BERT, num_labels=2),
    "albert": dataclasses.replace(small.ALBERT, num_labels=2),
    "distilbert": dataclasses.replace(small.DISTILBERT, num_labels=2),
    "mobilebert": dataclasses.replace(small.MOBILEBERT, num_labels=2),
    "gpt2": small_language.GPT2,
    "llama": small_language.LLAMA,
    "t5": small_language.T5,
}
MATRICES = r"(.*/)?layers/\d+/.*/(query|value|up|down)"
KINDS = {
    "low_rank": (MATRICES, {"rank": 3, "scale": 0.5}),
    "offset": (MATRICES, {"rank": 3, "start": "offset", "offset_seed": 7}),
    "mpo": (MATRICES, {"kind": "mpo", "num_cores": 3, "bond": 4}),
    "mpo_2": (MATRICES, {"kind": "mpo", "num_cores": 2, "bond": 4}),
    "rescale": (r"(.*/)?layers/\d+/.*/(key|value)", {"kind": "rescale"}),
    "rescale_input": (r"(.*/)?layers/\d+/.*/down", {"kind": "rescale", "side": "input"}),
    "bottleneck": (r"(.*/)?layers/\d+/.*/(out|down)", {"kind": "bottleneck", "width": 5}),
}
IDS = small_language.ids((3, 9))


def add(model, *rules):
    return compression.add_adapters(model, list(rules), rngs=nnx.Rngs(0))


@jax.jit
def _outputs(model):
    if isinstance(model, models.EncoderDecoder):
        return model.forward(IDS, None, IDS[:, :5]).logits
    return model(IDS) if isinstance(model, models.LanguageModel) else model(TEXTS, MASK)


def outputs(model):
    return np.asarray(_outputs(model))


def moved(model, seed=0):
    """The model with other numbers in its adapters."""
    rng, arrays = np.random.default_rng(seed), models.to_arrays(model)
    for path in models.adapter_arrays(model):
        noise = 0.1 * rng.standard_normal(arrays[path].shape)
        arrays[path] = (arrays[path] + noise).astype(np.float32)
    return models.from_arrays(model.config, model.shapes, arrays)


@pytest.mark.parametrize(
    ("name", "kind"),
    # All kinds on an encoder, all models with one: the other pairs show no more of either.
    [("bert", kind) for kind in KINDS]
    + marks.slow_but({("t5", "low_rank"), ("t5", "rescale")}, [("t5", kind) for kind in KINDS])
    + [(name, kind) for name in MODELS if name not in ("bert", "t5") for kind in ("low_rank",)]
    + [("llama", "rescale_input")]
    + marks.slow_but((), [("gpt2", "bottleneck"), ("albert", "mpo")]),
)
def test_no_effect_at_first_and_merged_exactly(name, kind):
    base = models.build(MODELS[name], rngs=nnx.Rngs(1))
    plain, adapted = outputs(base), add(base, KINDS[kind])
    np.testing.assert_allclose(outputs(adapted), plain, rtol=0, atol=5e-6)
    changed = moved(adapted)
    found = outputs(changed)
    assert np.max(np.abs(found - plain)) > 1e-4
    if kind == "bottleneck":
        with pytest.raises(ValueError, match="is not linear: no matrix can take it in"):
            compression.merge(changed)
        return
    for merged in (compression.merge(changed), jax.jit(models.merged)(changed)):
        assert not merged.config.adapters
        assert models.array_shapes(merged.config) == models.array_shapes(base.config)
        np.testing.assert_allclose(outputs(merged), found, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", MODELS)
def test_only_adapters_and_head_are_trained(name):
    base = models.build(MODELS[name], rngs=nnx.Rngs(1))
    model = (
        add(base, KINDS["low_rank"], (r".*/bias|.*norm.*/bias", {"kind": "bias"}))
        if (name not in ("llama", "t5"))
        else add(base, KINDS["low_rank"], (".*norm.*", {"kind": "norm_scale"}))
    )
    arrays = models.adapter_arrays(model)
    _, trained, _ = training.state.split(model, models.adapter_filter(model))
    flat = training.state.flatten(trained)
    logical = models.logical_arrays(model, flat)
    heads = {path for path in logical if path.startswith("head/")}
    assert set(logical) - heads == set(arrays)
    assert bool(heads) == (name in ("bert", "albert", "distilbert", "mobilebert"))
    assert not any(path.startswith("head/") for path in arrays)
    back = models.stacked_arrays(model, logical)
    assert set(back) == set(flat)
    for path, array in back.items():
        np.testing.assert_array_equal(array, flat[path])


def test_layers_tuned_in_place_are_a_stack_of_their_own():
    base = models.build(dataclasses.replace(small.BERT, num_labels=2), rngs=nnx.Rngs(1))
    model = add(base, (r"layers/1/.*/bias", {"kind": "bias"}))
    assert model.config.scan_boundaries == (1, 2) or model.config.num_layers == 2
    np.testing.assert_allclose(outputs(model), outputs(base), rtol=0, atol=2e-6)
    tuned = models.adapter_arrays(model)
    assert tuned
    assert all(path.startswith("layers/1/") for path in tuned)
    models.adapter_filter(model)


def test_cores_of_a_compressed_model_are_tuned_in_place():
    base = models.build(dataclasses.replace(small.BERT, num_labels=2), rngs=nnx.Rngs(1))
    chain, _ = compression.compress(base, [(MATRICES, {"cores": 3})])
    model = add(chain, (".*", {"kind": "cores"}))
    tuned = models.adapter_arrays(model)
    assert tuned
    assert all(path.endswith(("/cores/0", "/cores/2")) for path in tuned)


def test_a_round_trip_through_a_folder(tmp_path):
    model = moved(add(small_language.dense(small_language.LLAMA), *list(KINDS.values())[2:3]))
    io.save_pretrained(model, tmp_path)
    loaded = io.load_pretrained(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lora", "rank": 2}, "kind='lora' must be one of 'low_rank', 'mpo'"),
        ({"kind": "low_rank"}, "rank=None must be an integer"),
        ({"kind": "bottleneck", "rank": 2, "width": 2}, "rank=2 has no meaning with kind"),
        ({"kind": "mpo"}, "needs bond or bonds"),
        ({"kind": "mpo", "bond": 2, "bonds": (2, 2)}, "needs bond or bonds"),
        ({"kind": "rescale", "side": "left"}, "side='left' must be one of 'output', 'input'"),
        ({"rank": 2, "start": "half"}, "start='half' must be one of 'zero', 'offset'"),
        ({"rank": 2, "offset_seed": 3}, "offset_seed=3 has no meaning with start='zero'"),
        (
            {"kind": "mpo", "bond": 2, "start": "offset"},
            "start='offset' has no meaning with kind='mpo'",
        ),
        ({"kind": "bias"}, "matches no array of kind 'bias'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        add(small_language.dense(small_language.LLAMA), ("layers/.*/query", settings))


def test_offsets_differ_by_layer_and_module():
    model = add(models.build(small.BERT, rngs=nnx.Rngs(1)), KINDS["offset"])
    arrays = models.to_arrays(model)
    names = [name for name in arrays if name.endswith("attention/query/adapter/down")]
    names += [name.replace("query", "value") for name in names]
    random = {arrays[name].tobytes() for name in names}
    assert len(random) == len(names) == 2 * small.BERT.num_layers


def test_offset_beside_a_chain_is_refused():
    base = models.build(small.BERT, rngs=nnx.Rngs(1))
    chain, _ = compression.compress(base, [(MATRICES, {"cores": 3})])
    with pytest.raises(ValueError, match="is in MPO form: an offset start"):
        add(chain, KINDS["offset"])


@pytest.mark.parametrize(
    ("hidden", "inner", "num", "bias", "all_six", "bottleneck_16"),
    [
        (768, 3072, 12, 102_144, 1_327_104, 36_888 * 16 + 18_432),
        (1024, 4096, 24, 271_360, 3_538_944, None),
    ],
)
def test_published_counts(hidden, inner, num, bias, all_six, bottleneck_16):
    heads = hidden // 64
    config = models.EncoderConfig(
        *(30_522, hidden, num, heads, inner), max_positions=512, pooling="pooler", num_labels=2
    )
    layer = r"layers/\d+/"

    def count(pattern, **settings):
        chosen = dataclasses.replace(config, adapters=((pattern, nn.AdapterSettings(**settings)),))
        model = nnx.eval_shape(lambda: models.build(chosen, rngs=nnx.Rngs(0)))
        sizes = models.array_shapes(chosen)
        return sum(int(np.prod(sizes[path])) for path in models.adapter_arrays(model))

    six = layer + ".*/(query|key|value|out|up|down)"
    assert count(f"({layer}|embeddings/).*bias", kind="bias") == bias
    assert count("(?!head).*bias", kind="bias") == bias + hidden
    assert count(six, rank=8) == all_six
    assert count(layer + ".*/(query|value)", rank=1) == num * 4 * hidden
    assert count(layer + "attention/.*", rank=1) == num * 8 * hidden
    if bottleneck_16 is not None:
        found = count(layer + ".*/(out|down)", kind="bottleneck", width=16)
        assert found == bottleneck_16
