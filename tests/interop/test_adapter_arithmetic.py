"""Updates out of fine-tuned models, of other ranks, added and taken away."""

import numpy as np
import pytest
from flax import nnx

from mpojax import interop, models
from tests.interop.test_adapter_kinds import KINDS, MODELS, add, moved, outputs

LOW = ("layers/.*/(query|value)", {"rank": 3, "scale": 0.5})
BIAS = ("(?!head).*/bias", {"kind": "bias"})


def base(name="bert"):
    return models.build(MODELS[name], rngs=nnx.Rngs(1))


def updates(model):
    """{matrix path: update} by hand."""
    arrays, found = models.to_arrays(model), {}
    for path, settings in models.adapter_settings(model.config).items():
        scale = model.config.adapter_scale if settings.scale is None else settings.scale
        parts = (arrays[f"{path}/adapter/{n}"].astype(np.float64) for n in ("down", "up"))
        found[path] = scale * np.matmul(*parts)
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_what_merging_put_in_is_found_again(name):
    plain = base(name)
    rule = ("(.*/)?layers/.*/(query|value)", {"rank": 3})
    tuned = moved(add(plain, rule))
    found = interop.extract(plain, interop.merge(tuned), energy=1 - 1e-9)
    np.testing.assert_allclose(outputs(found), outputs(tuned), rtol=0, atol=2e-5)
    for path, update in updates(tuned).items():
        np.testing.assert_allclose(updates(found)[path], update, rtol=0, atol=1e-5)
    small = interop.extract(plain, interop.merge(tuned), rank=1)
    assert {s.rank for s in models.adapter_settings(small.config).values()} == {1}


def test_parameters_in_place_are_taken_over():
    plain = base()
    tuned = moved(add(plain, LOW, BIAS))
    found = interop.extract(plain, interop.merge(tuned), rank=3)
    assert set(models.adapter_arrays(found).values()) == {"low_rank", "bias"}
    np.testing.assert_allclose(outputs(found), outputs(tuned), rtol=0, atol=2e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_resized_to_the_nearest(energy):
    tuned = moved(add(base(), LOW))
    small = interop.resize(tuned, energy=energy)
    for path, update in updates(tuned).items():
        values = np.linalg.svd(update, compute_uv=False)
        error = np.sum((updates(small)[path] - update) ** 2)
        rank = models.adapter_settings(small.config)[path].rank
        np.testing.assert_allclose(error, np.sum(values[rank:] ** 2), atol=1e-9)
        assert np.sum(values[:rank] ** 2) >= (energy - 1e-6) * np.sum(values**2)
        assert rank == 1 or np.sum(values[: rank - 1] ** 2) < energy * np.sum(values**2)
    assert interop.resize(tuned, rank=2).config != tuned.config


def test_sums_of_updates():
    plain = base()
    one, other = (moved(add(plain, LOW, BIAS), seed) for seed in (0, 1))
    both = interop.add(plain, [one, other], [0.5, 2.0])
    pairs = [updates(m) for m in (one, other, both)]
    for path in pairs[0]:
        expected = 0.5 * pairs[0][path] + 2.0 * pairs[1][path]
        np.testing.assert_allclose(pairs[2][path], expected, rtol=0, atol=1e-6)
        assert models.adapter_settings(both.config)[path].rank == 6
    arrays = [models.to_arrays(m) for m in (plain, one, other, both)]
    for name in (n for n, kind in models.adapter_arrays(one).items() if kind == "bias"):
        zero, a, b, c = (each[name] for each in arrays)
        np.testing.assert_allclose(c, zero + 0.5 * (a - zero) + 2.0 * (b - zero), atol=1e-6)
    rounded = interop.add(plain, [one, other], [0.5, 2.0], rank=2)
    assert {s.rank for s in models.adapter_settings(rounded.config).values()} == {2}
    itself = interop.add(plain, [one], [1.0], rank=3)
    np.testing.assert_allclose(outputs(itself), outputs(one), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["low_rank", "mpo"])
def test_merged_and_taken_apart_again(kind):
    plain = base()
    tuned = moved(add(plain, KINDS[kind]))
    again = interop.unmerge(interop.merge(tuned), tuned)
    np.testing.assert_allclose(outputs(again), outputs(tuned), rtol=0, atol=5e-6)
    for name, array in models.to_arrays(plain).items():
        np.testing.assert_allclose(models.to_arrays(again)[name], array, rtol=0, atol=2e-7)


def test_a_scale_of_all_adapters_is_no_other_base():
    plain = base()
    tuned = moved(interop.add_adapters(plain, [LOW], scale=2.0, rngs=nnx.Rngs(0)))
    found = interop.add(plain, [tuned], [1.0])
    np.testing.assert_allclose(outputs(found), outputs(tuned), rtol=0, atol=2e-5)


def test_mistakes():
    plain = base()
    tuned = moved(add(plain, LOW))
    other = models.build(MODELS["bert"], rngs=nnx.Rngs(2))
    changed = models.to_arrays(interop.merge(tuned))
    changed["embeddings/word/table"] = changed["embeddings/word/table"] + 1
    table = models.from_arrays(plain.config, {}, changed)
    cases = [
        (lambda: interop.extract(plain, plain, rank=1), "are equal: there is nothing"),
        (lambda: interop.extract(plain, table, rank=1), "embeddings/word/table differ, too"),
        (lambda: interop.extract(plain, tuned, rank=1), "without adapters: merge them"),
        (lambda: interop.extract(plain, base("gpt2"), rank=1), "of different sizes"),
        (lambda: interop.extract(plain, interop.merge(tuned)), "give rank or energy"),
        (lambda: interop.resize(tuned, rank=0), "rank=0 must be"),
        (lambda: interop.resize(tuned, energy=1.5), "energy=1.5 must lie"),
        (lambda: interop.resize(plain, rank=1), "has no low-rank adapters"),
        (lambda: interop.add(other, [tuned], [1.0]), "model 0 was tuned on another base"),
        (lambda: interop.add(base("gpt2"), [tuned], [1.0]), "model 0 has another .* than the base"),
        (lambda: interop.add(plain, [tuned], []), "1 models and 0 weights"),
        (lambda: interop.add(plain, [add(plain, KINDS["mpo"])], [1.0]), "of kind 'mpo'; add takes"),
        (lambda: interop.resize(add(plain, KINDS["offset"]), rank=1), "has an offset start"),
        (lambda: interop.unmerge(plain, add(plain, KINDS["rescale"])), "'rescale' is no sum"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_merge_in_a_type_that_changes_weights_is_refused():
    tuned = moved(add(base(), LOW))
    with pytest.raises(
        ValueError, match=r"dtype='bfloat16' would change .* weights, .* of .*table"
    ):
        interop.merge(tuned, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype='int8' must be one of float32"):
        interop.merge(tuned, dtype="int8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merge_in_a_type_that_holds_every_weight(dtype):
    plain = base()
    rounded = {
        n: 2.0 ** np.round(np.log2(abs(a) + 0.01)) for n, a in models.to_arrays(plain).items()
    }
    plain = models.from_arrays(plain.config, {}, {n: np.float32(a) for n, a in rounded.items()})
    same = models.to_arrays(interop.merge(plain, dtype=dtype))
    for name, array in models.to_arrays(plain).items():
        np.testing.assert_array_equal(same[name], array)
