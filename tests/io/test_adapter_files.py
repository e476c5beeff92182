"""Adapters in files: the same model again, small files, and refusals that change nothing."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy

from mpojax import io, models
from tests import marks
from tests.io.test_adapter_kinds import KINDS, MODELS, add, moved, outputs

RULES = {**KINDS, "bias": (r"(?!head).*/bias", {"kind": "bias"})}


def base(name="bert", seed=1):
    return models.build(MODELS[name], rngs=nnx.Rngs(seed))


@pytest.mark.parametrize("kind", ["low_rank", "offset", "mpo", "bottleneck", "bias"])
def test_a_round_trip_on_the_base(tmp_path, kind):
    plain = base()
    tuned = moved(add(plain, RULES[kind]))
    io.save_adapter(tuned, tmp_path)
    loaded = io.load_adapter(plain, tmp_path)
    assert loaded.config.adapters == tuned.config.adapters
    np.testing.assert_array_equal(outputs(loaded), outputs(tuned))
    assert io.fingerprint(tuned) == io.fingerprint(add(plain, RULES[kind]))


def test_matrices_below_an_offset_start_belong_to_the_base_too(tmp_path):
    plain = base()
    io.save_adapter(moved(add(plain, RULES["offset"])), tmp_path)
    arrays = models.to_arrays(plain)
    name = next(n for n in arrays if n.endswith("attention/query/kernel"))
    arrays[name] = arrays[name] * np.float32(1.001)
    other = models.from_arrays(plain.config, {}, arrays)
    assert io.fingerprint(add(other, RULES["offset"])) == io.fingerprint(
        add(plain, RULES["offset"])
    )
    with pytest.raises(ValueError, match="was tuned on another base model"):
        io.load_adapter(other, tmp_path)


@pytest.mark.parametrize("kind", ["low_rank", "offset"])
def test_files_of_the_first_version(tmp_path, kind):
    """Those of offset starts drew other numbers."""
    plain = base()
    tuned = moved(add(plain, RULES[kind]))
    io.save_adapter(tuned, tmp_path)
    path = tmp_path / "adapter.json"
    path.write_text(path.read_text().replace('"format_version":2', '"format_version":1'))
    if kind == "offset":
        with pytest.raises(ValueError, match="has format version 1"):
            io.load_adapter(plain, tmp_path)
    else:
        loaded = io.load_adapter(plain, tmp_path)
        np.testing.assert_array_equal(outputs(loaded), outputs(tuned))


@pytest.mark.parametrize("name", marks.slow_but(("llama", "t5"), ("albert", "llama", "t5")))
def test_other_architectures(tmp_path, name):
    plain = base(name)
    tuned = moved(add(plain, RULES["low_rank"]))
    io.save_adapter(tuned, tmp_path)
    np.testing.assert_array_equal(outputs(io.load_adapter(plain, tmp_path)), outputs(tuned))


def test_a_file_is_as_large_as_its_parameters(tmp_path):
    config = models.EncoderConfig(50, 64, 12, 4, 128, max_positions=16)
    plain = models.build(config, rngs=nnx.Rngs(0))
    tuned = add(plain, ("layers/.*/(query|value)", {"rank": 8}))
    io.save_adapter(tuned, tmp_path)
    numbers = 12 * 2 * 8 * (64 + 64)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 4 * numbers + 4096


def test_layers_may_differ_in_shape(tmp_path):
    plain = base()
    rules = [("layers/0/attention/query", {"rank": 1}), ("layers/[1-9]/.*/query", {"rank": 3})]
    tuned = moved(add(plain, *rules))
    io.save_adapter(tuned, tmp_path)
    np.testing.assert_array_equal(outputs(io.load_adapter(plain, tmp_path)), outputs(tuned))


@pytest.mark.parametrize("kind", ["low_rank", "offset", "bias"])
def test_single_entries(tmp_path, kind):
    plain = base()
    start = add(plain, RULES[kind])
    rng, arrays, masks = np.random.default_rng(0), models.to_arrays(start), {}
    names = models.adapter_arrays(start)
    for name in names:
        masks[name] = rng.random(arrays[name].shape) < 0.2
        if kind == "low_rank":
            arrays[name] = np.zeros_like(arrays[name])  # what a dropped entry is
        noise = rng.standard_normal(arrays[name].shape).astype(np.float32)
        arrays[name] = arrays[name] + masks[name] * noise
    tuned = models.from_arrays(start.config, start.shapes, arrays)
    io.save_adapter(tuned, tmp_path, mask=masks)
    np.testing.assert_array_equal(outputs(io.load_adapter(plain, tmp_path)), outputs(tuned))
    kept = sum(np.count_nonzero(mask) for mask in masks.values())
    assert json.loads((tmp_path / "adapter.json").read_text())["parameters"] == kept
    with pytest.raises(ValueError, match="mask must have an array for each"):
        io.save_adapter(tuned, tmp_path, mask={})


def test_another_base_is_refused(tmp_path):
    io.save_adapter(moved(add(base(), RULES["low_rank"])), tmp_path)
    with pytest.raises(ValueError, match="was tuned on another base model"):
        io.load_adapter(base(seed=2), tmp_path)
    other = dataclasses.replace(MODELS["bert"], num_layers=2)
    with pytest.raises(ValueError, match="was tuned on another base model"):
        io.load_adapter(models.build(other, rngs=nnx.Rngs(1)), tmp_path)
    with pytest.raises(ValueError, match="has adapters already"):
        io.load_adapter(add(base(), RULES["low_rank"]), tmp_path)


def test_arrays_are_covered_both_ways(tmp_path):
    io.save_adapter(moved(add(base(), RULES["low_rank"])), tmp_path)
    path = tmp_path / "adapter.safetensors"
    tensors = safetensors_numpy.load_file(path)
    name = "layers/*/attention/query/adapter/down"
    changed = {n: t for n, t in tensors.items() if n != name} | {"more": np.zeros(2, np.float32)}
    changed["head/bias"] = np.zeros(7, np.float32)
    safetensors_numpy.save_file(changed, path)
    with pytest.raises(ValueError, match="does not fit") as error:
        io.load_adapter(base(), tmp_path)
    for line in (
        "missing: layers/0/attention/query/adapter/down",
        "unexpected: more",
        "shape mismatch: head/bias is (7,), must be (2,)",
    ):
        assert line in str(error.value)


def test_no_adapter_or_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no adapter\.json"):
        io.load_adapter(base(), tmp_path)
    with pytest.raises(ValueError, match="has no adapters to save"):
        io.save_adapter(base(), tmp_path)
    io.save_adapter(moved(add(base(), RULES["low_rank"])), tmp_path)
    for text, message in (("{}", "no description"), ('{"format_version":9}', "version 9")):
        (tmp_path / "adapter.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            io.load_adapter(base(), tmp_path)
