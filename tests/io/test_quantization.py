"""Cores in 8 bits: rounding, files, what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

import mpojax as mj
from mpojax import models, mpo
from mpojax.io import quantization
from tests.io import helpers

CORE = np.random.default_rng(0).standard_normal((3, 8, 5, 2)).astype(np.float32)


def small_model(pivoted=False):
    """An encoder with a low-rank map, perhaps pivoted, and a chain."""
    shapes = {
        "layers/0/attention/query": mpo.MPOShape.low_rank(12, 12, 4, pivoted=pivoted),
        "layers/1/feed_forward/up": mpo.MPOShape((3, 4), (4, 6)).with_bonds(6),
    }
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.permutation(size[0]).astype(np.int32)
        if name.endswith("query/cores/2")
        else rng.standard_normal(size).astype(np.float32)
        for name, size in models.array_shapes(helpers.SETTINGS, shapes).items()
    }
    return models.from_arrays(helpers.SETTINGS, shapes, arrays)


def test_rounding_by_columns():
    quantized, scale = quantization.quantize(CORE)
    assert (quantized.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (1, 1, 5, 2))
    np.testing.assert_array_equal(np.abs(quantized.astype(int)).max((0, 1)), 127)
    assert np.all(np.abs(quantized * scale - CORE) <= scale * (0.5 + 1e-5))
    doubled, _ = quantization.quantize(CORE * np.float32(2) ** np.arange(5)[:, None])
    np.testing.assert_array_equal(doubled, quantized)  # a column's scale is its own
    zero, scale = quantization.quantize(np.zeros_like(CORE))
    assert not zero.any()
    assert np.isfinite(scale).all()


def test_experts_have_scales_of_their_own():
    stacked = np.stack([CORE, 10 * CORE])
    quantized, scale = quantization.quantize(stacked)
    np.testing.assert_array_equal(quantized[0], quantized[1])
    assert scale.shape == (2, 1, 1, 5, 2)
    again = quantization.dequantized({"a": quantized, "a_scale": scale})
    assert list(again) == ["a"]
    assert np.all(np.abs(again["a"] - stacked) <= scale * (0.5 + 1e-5))


@pytest.mark.parametrize("pivoted", [False, True])
def test_folders_of_ours(tmp_path, pivoted):
    model = small_model(pivoted)
    mj.save(model, tmp_path / "whole")
    mj.save(model, tmp_path / "small", dtype="int8")
    held = safetensors.numpy.load_file(tmp_path / "small" / "model.safetensors")
    cores = [name for name, array in held.items() if array.dtype == np.int8]
    assert len(cores) == 4
    before, after = models.to_arrays(model), models.to_arrays(mj.load(tmp_path / "small"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        if name not in cores:
            np.testing.assert_array_equal(after[name], array)
        else:
            error = np.linalg.norm(after[name] - array) / np.linalg.norm(array)
            assert 1e-4 < error < 0.01
    bits = {name: held[name].nbytes + held[f"{name}_scale"].nbytes for name in cores}
    assert all(size < before[name].nbytes for name, size in bits.items())
    mj.save(mj.load(tmp_path / "small"), tmp_path / "again", dtype="int8")  # rounded once
    again = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    for name in cores:
        np.testing.assert_array_equal(again[name], held[name])


def test_damaged_scales(tmp_path):
    mj.save(small_model(), tmp_path / "small", dtype="int8")
    path = tmp_path / "small" / "model.safetensors"
    held = safetensors.numpy.load_file(path)
    mark = json.loads((tmp_path / "small" / "config.json").read_text())["mpojax"]["fingerprint"]
    name = "layers/0/attention/query/cores/0_scale"
    for broken, message in (
        ({n: a for n, a in held.items() if n != name}, "it is missing"),
        ({**held, name: np.ones((1, 12, 1, 4), np.float32)}, r"it has shape \(1, 12, 1, 4\)"),
    ):
        safetensors.numpy.save_file(broken, path, {"mpojax": mark})
        with pytest.raises(ValueError, match=rf"{name} must have shape \(1, 1, 1, 4\); {message}"):
            mj.load(tmp_path / "small")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype='int8' is about the cores of chains"):
        mj.save(helpers.model(), tmp_path / "dense", dtype="int8")
    with pytest.raises(ValueError, match="dtype='int4' must be one of 'float32', 'int8'"):
        mj.save(small_model(), tmp_path / "dense", dtype="int4")
    with pytest.raises(ValueError, match="format='huggingface_mpo' is about the cores of chains"):
        mj.save(helpers.model(), tmp_path / "dense", format="huggingface_mpo")
    assert not (tmp_path / "dense").exists()
