"""Models that are read layer by layer: the same statistics and results as of whole ones, in 16 bits
as they are stored, kept in files, resumed.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import compression, io, models
from mpojax.compression import calibration as calibration_lib
from mpojax.compression import layer_statistics
from mpojax.compression.matrices import matrices_of
from tests import marks
from tests.models import small_language

CONFIG = dataclasses.replace(small_language.LLAMA, num_layers=2)
IDS = np.random.default_rng(0).integers(1, 20, (12, 9))
MASK = (np.arange(9) < np.array([9, 7, 3, 9, 5, 9] * 2)[:, None]).astype(np.int32)
BATCHES = [{"input_ids": IDS[i : i + 4], "attention_mask": MASK[i : i + 4]} for i in (0, 4, 8)]


@pytest.fixture(scope="module")
def model():
    return models.build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def calibration(model):
    return mj.calibrate(model, BATCHES, curvature=True)


@pytest.fixture(scope="module")
def folder_in_16_bits(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "model"
    arrays = {n: np.asarray(a).astype(jnp.bfloat16) for n, a in models.to_arrays(model).items()}
    mj.save(models.from_arrays(CONFIG, {}, arrays, keep_16_bits=True), folder)
    return folder


def same(one, other, **options):
    """Every statistic of two calibrations agrees."""
    assert set(one.statistics) == set(other.statistics)
    for path, entry in one.statistics.items():
        found = other.statistics[path]
        assert (found.count, found.fingerprint) == (entry.count, entry.fingerprint)
        np.testing.assert_allclose(found.covariance, entry.covariance, **options)


def test_layer_by_layer_gives_the_covariances_of_a_whole_pass(model, calibration):
    at_once = calibration_lib._at_once(matrices_of(model), BATCHES, None, False, None)
    same(calibration, at_once, rtol=1e-4, atol=1e-6)
    assert calibration.num_examples == at_once.num_examples == 12
    reads = {path: entry.reads for path, entry in calibration.statistics.items()}
    assert reads["layers/1/attention/value"] == reads["layers/1/attention/query"]
    assert reads["layers/1/feed_forward/up"] == reads["layers/1/feed_forward/gate"]


def test_curvatures_of_some_batches(model, calibration):
    found = mj.calibrate(model, BATCHES, curvature=True, curvature_tokens=70)
    same(calibration, found)
    alone = mj.calibrate(model, [BATCHES[0], BATCHES[2]][:1], curvature=True)
    some = mj.calibrate(model, BATCHES, curvature=True, curvature_tokens=36)
    path = "layers/0/feed_forward/down"
    wanted = alone.statistics[path].curvature
    np.testing.assert_allclose(some.statistics[path].curvature, wanted, rtol=1e-5)


def test_statistics_in_files_of_a_model_that_computes_in_16_bits(tmp_path):
    config = dataclasses.replace(CONFIG, num_layers=1, dtype="bfloat16")
    model = models.build(config, rngs=nnx.Rngs(0))
    whole = mj.calibrate(model, BATCHES[:1], curvature=True)
    found = mj.calibrate(model, BATCHES[:1], curvature=True, folder=tmp_path)
    same(whole, found, rtol=1e-6, atol=1e-9)
    for path, entry in whole.statistics.items():
        if entry.curvature is not None:
            moments = found.statistics[path].curvature
            np.testing.assert_allclose(moments, entry.curvature, rtol=1e-6, atol=1e-9)


def test_statistics_in_files_are_found_again(model, calibration, tmp_path, monkeypatch):
    forward, calls = layer_statistics._forward, []

    def counted(*args, names):
        calls.append(names)
        if len(calls) == 5 and not (tmp_path / "resumed").exists():
            raise KeyboardInterrupt
        return forward(*args, names=names)

    monkeypatch.setattr(layer_statistics, "_forward", counted)
    options = {"curvature": True, "folder": tmp_path / "files"}
    with pytest.raises(KeyboardInterrupt):
        mj.calibrate(model, BATCHES, **options)
    (tmp_path / "resumed").touch()
    calls.clear()
    found = mj.calibrate(model, BATCHES, **options)
    assert calls[:3] == [()] * 3  # the first layer's products are known
    assert len(calls[3]) == 4
    same(calibration, found, rtol=1e-6, atol=1e-9)
    for path, entry in calibration.statistics.items():
        if entry.curvature is not None:
            moments = found.statistics[path].curvature
            np.testing.assert_allclose(moments, entry.curvature, rtol=1e-5, atol=1e-9)
    assert not list((tmp_path / "files").glob("input of*"))
    calls.clear()
    same(found, mj.calibrate(model, BATCHES, **options))
    assert not calls  # everything is there
    # Of other texts nothing is taken.
    other = mj.calibrate(model, BATCHES[:1], **options)
    assert other.num_examples == 4


# What is best is one of the methods: tests/compression/test_choosing.py.
@pytest.mark.parametrize(
    "method", marks.slow_but({"whitened", "layerwise"}, ("whitened", "layerwise", "best"))
)
def test_16_bits_stay_16_bits(folder_in_16_bits, method):
    """Matrix by matrix from the files as from memory; what is saved is loaded as it was."""
    stored = io.open_pretrained(folder_in_16_bits)
    whole = io.load_pretrained(folder_in_16_bits, keep_16_bits=True)
    given = {"budget": 0.7, "calibration": IDS, "method": method}
    small, report = mj.compress(stored, **given)
    other, _ = mj.compress(whole, **given)
    assert report.parameters <= 0.7 * report.dense_parameters
    expected = models.to_arrays(other)
    for name, array in models.to_arrays(small).items():
        is_short = "/cores/" in name or name.endswith(("/kernel", "/table"))
        is_order = name.endswith("/cores/2")
        kind = np.int32 if is_order else jnp.bfloat16 if is_short else np.float32
        assert array.dtype == kind, name
        np.testing.assert_array_equal(array, expected[name])
    ids = jnp.asarray(IDS)
    saved = folder_in_16_bits.parent / method
    mj.save(small, saved)
    for keep in (True, False):
        again = io.load_pretrained(saved, keep_16_bits=keep)
        np.testing.assert_allclose(again(ids), small(ids), atol=1e-5)
    mj.save(small, saved, dtype="int8")
    assert io.load_pretrained(saved).shapes == small.shapes


def test_results_are_close_to_those_in_32_bits(model, folder_in_16_bits):
    given = {"budget": 0.7, "calibration": IDS, "method": "pivoted"}
    ids = jnp.asarray(IDS)
    outputs = [
        mj.compress(m, **given)[0](ids) for m in (model, io.open_pretrained(folder_in_16_bits))
    ]
    np.testing.assert_allclose(*outputs, atol=0.05 * float(jnp.abs(outputs[0]).max()))


def test_large_statistics_are_kept_in_files(model, monkeypatch):
    monkeypatch.setattr(compression.compressing, "_LARGE_STATISTICS", 1)
    opened = []
    monkeypatch.setattr(
        layer_statistics,
        "Arrays",
        lambda folder, mark, kind=layer_statistics.Arrays: (
            opened.append(folder) or kind(folder, mark)
        ),
    )
    given = {"budget": 0.7, "calibration": IDS, "method": "whitened"}
    by_files, _ = mj.compress(model, **given)
    monkeypatch.undo()
    by_memory, _ = mj.compress(model, **given)
    ids = jnp.asarray(IDS)
    np.testing.assert_allclose(by_files(ids), by_memory(ids), atol=1e-4)
    assert opened[0] is not None


def test_bad_arrays_are_named(model):
    arrays = dict(models.to_arrays(model))
    arrays["layers/1/attention/value/kernel"] = np.full_like(
        arrays["layers/1/attention/value/kernel"], np.nan
    )
    stored = models.StoredModel(CONFIG, {}, arrays)
    with pytest.raises(ValueError, match="batch 1: the inputs of layers/1/attention/out are NaN"):
        mj.calibrate(stored, BATCHES)
    with pytest.raises(ValueError, match="NaN or infinite: layers/1/attention/value"):
        mj.compress(stored, budget=0.7, calibration=BATCHES)
    del arrays["final_norm/scale"]
    with pytest.raises(ValueError, match="missing: final_norm/scale"):
        models.StoredModel(CONFIG, {}, arrays).load()
