"""Adapters added to models that have none: the same function, and clear errors."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models
from mpojax.methods import mpobert
from tests.models import small
from tests.models.test_kinds import IDS, MASK

ATTENTION = "layers/.*/(query|key|value|out)"
OUTSIDE = "pooler|embeddings/projection"
CONFIG = dataclasses.replace(small.ALBERT, num_labels=2, shared_roles=("central", "other"))


@pytest.fixture(scope="module")
def model():
    shapes = {p: s for p, s in small.all_shapes(CONFIG).items() if p.startswith("layers/")}
    return models.build(CONFIG, shapes, rngs=nnx.Rngs(1))


def add(model, rules, **changes):
    return compression.add_adapters(model, rules, rngs=nnx.Rngs(0), **changes)


def test_the_function_stays_and_every_layer_has_its_own(model):
    adapted = add(model, [(ATTENTION, {"rank": 3}), (OUTSIDE, {"rank": 2})])
    np.testing.assert_allclose(adapted(IDS, MASK), model(IDS, MASK), rtol=1e-5, atol=1e-6)
    arrays = models.to_arrays(adapted)
    rules = [(ATTENTION, {"rank": 3}), (OUTSIDE, {"rank": 2})]
    ranks = {p: s.rank for p, s in compression.adapter_settings(model.config, rules).items()}
    assert len(ranks) == 3 * 4 + 2
    for path, (rows, columns) in model.config.matrix_sizes().items():
        if path in ranks:
            assert arrays[f"{path}/adapter/down"].shape == (rows, ranks[path])
            assert not arrays[f"{path}/adapter/up"].any()
            assert arrays[f"{path}/adapter/up"].shape == (ranks[path], columns)
        else:
            assert f"{path}/adapter/down" not in arrays
    first, second = (arrays[f"layers/{i}/attention/query/adapter/down"] for i in (0, 1))
    assert np.any(first != second)
    assert models.count_parameters(adapted)["adapter"] == sum(
        rank * sum(CONFIG.matrix_sizes()[path]) for path, rank in ranks.items()
    )


def test_counts_are_those_of_a_model_made_with_adapters():
    size = {"hidden_size": 16, "vocab_size": 50, "num_heads": 2, "num_cores": 3}
    plain = models.build(*mpobert.settings(4, **size), rngs=nnx.Rngs(0))
    made = models.build(*mpobert.settings(4, adapter_rank=2, **size), rngs=nnx.Rngs(0))
    pattern, settings = made.config.adapters[0]
    adapted = add(plain, [(pattern, {"rank": settings.rank})])
    assert adapted.config == made.config
    expected = {name: a.shape for name, a in models.to_arrays(made).items()}
    assert {name: a.shape for name, a in models.to_arrays(adapted).items()} == expected


def test_merging_after_an_update_and_a_round_trip(model, tmp_path):
    adapted = add(model, [(".*", {"rank": 2})], scale=0.5)
    assert set(models.adapter_settings(adapted.config)) == set(CONFIG.adaptable())
    arrays = models.to_arrays(adapted)
    rng = np.random.default_rng(0)
    for path in arrays:
        if path.endswith("adapter/up"):
            arrays[path] = rng.standard_normal(arrays[path].shape).astype(np.float32)
    changed = models.from_arrays(adapted.config, adapted.shapes, arrays)
    assert np.max(np.abs(changed(IDS, MASK) - model(IDS, MASK))) > 1e-3
    np.testing.assert_allclose(
        compression.merge(changed)(IDS, MASK), changed(IDS, MASK), rtol=1e-4, atol=1e-4
    )
    io.save_pretrained(changed, tmp_path)
    loaded = io.load_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(IDS, MASK), changed(IDS, MASK))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([(ATTENTION, {"rank": 4, "alpha": 2})], "unknown 'alpha'.*known: kind, rank, "),
        ([(ATTENTION, {"rank": 0})], "rank=0 must be an integer of at least 1"),
        ([(ATTENTION, {"rank": 1, "stddev": 0.0})], r"stddev=0\.0 must be a finite number above 0"),
        ([(ATTENTION, {})], "rank"),
        ([("layers/./attention/q", {"rank": 1})], "matches no matrix. It must match a whole path"),
        ([("embeddings/word", {"rank": 1})], "matches no matrix"),
        ([(ATTENTION, {"rank": 1}), (".*query", {"rank": 1})], "both match layers/0/attention"),
        ([], "non-empty list"),
    ],
)
def test_mistakes_are_explained(model, rules, message):
    with pytest.raises(ValueError, match=message):
        add(model, rules)


def test_fresh_down_maps_have_the_deviation_of_their_rule(model):
    rules = [(".*/query", {"rank": 40}), (".*/key", {"rank": 40, "stddev": 0.5})]
    arrays = models.to_arrays(add(model, rules))
    for name, stddev in (("query", 16**-0.5), ("key", 0.5)):
        down = arrays[f"layers/0/attention/{name}/adapter/down"]
        np.testing.assert_allclose(np.std(down), stddev, rtol=0.15)


def test_a_matrix_has_one_adapter_and_all_have_one_scale(model):
    adapted = add(model, [(ATTENTION, {"rank": 1})])
    with pytest.raises(ValueError, match=r"has an adapter already, low_rank\(rank=1\)"):
        add(adapted, [(".*/query", {"rank": 2})])
    with pytest.raises(ValueError, match=r"scale=2\.0 differs"):
        add(adapted, [(".*/up", {"rank": 2})], scale=2.0)
    both = add(adapted, [(".*/up", {"rank": 2})])
    assert models.adapter_settings(both.config)["layers/2/feed_forward/up"].rank == 2
