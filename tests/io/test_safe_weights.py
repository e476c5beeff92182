"""Weight files: shards, pickles, damage, full disks."""

import errno
import json
import os
import resource
import stat

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mpojax.io import weights as safe_weights
from mpojax.models.arrays import check_finite
from tests.io import helpers

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def _write_shards(folder, shards, weight_map):
    for name, tensors in shards.items():
        safetensors.numpy.save_file(tensors, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / safe_weights.INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")


def test_written_files_read_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    weights = {**WEIGHTS, "transposed": WEIGHTS["a"].T, "half": np.ones(3, jnp.bfloat16)}
    safe_weights.write_folder(folder, weights, {"producer": "test"}, {"note.txt": "text"})
    read = safe_weights.read_checkpoint(folder)
    assert set(read) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert safe_weights.read_metadata(folder / "model.safetensors") == {"producer": "test"}
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "note.txt"]


def test_shards_are_joined(tmp_path):
    shards = {"m-1.safetensors": {"a": WEIGHTS["a"]}, "m-2.safetensors": {"b": WEIGHTS["b"]}}
    _write_shards(tmp_path, shards, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    read = safe_weights.read_checkpoint(tmp_path)
    np.testing.assert_array_equal(read["a"], WEIGHTS["a"])
    np.testing.assert_array_equal(read["b"], WEIGHTS["b"])


@pytest.mark.parametrize(
    ("shards", "weight_map", "error", "message"),
    [
        ({"m-1": {"a": "a"}}, {"a": "m-1", "b": "m-2"}, FileNotFoundError, "lacks the shards m-2"),
        ({"m-1": {"a": "a"}}, {"a": "m-1", "b": "m-1"}, ValueError, r"missing \['b'\]"),
        ({"m-1": {"a": "a", "b": "b"}}, {"a": "m-1"}, ValueError, r"unexpected \['b'\]"),
        (
            {"m-1": {"a": "a"}, "m-2": {"a": "a", "b": "b"}},
            {"a": "m-1", "b": "m-2"},
            ValueError,
            "repeats tensors of another shard: a",
        ),
        ({}, {"a": "../m-1"}, ValueError, "names shards outside its folder: ../m-1"),
        ({}, "nothing", ValueError, "not a valid index of shards"),
    ],
    ids=["lost shard", "missing", "unexpected", "twice", "outside", "no map"],
)
def test_shards_that_do_not_fit_their_index(tmp_path, shards, weight_map, error, message):
    shards = {name: {key: WEIGHTS[key] for key in keys} for name, keys in shards.items()}
    _write_shards(tmp_path, shards, weight_map)
    with pytest.raises(error, match=message):
        safe_weights.read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cposix\nsystem\n.")
    for read, target in (
        (safe_weights.read_checkpoint, tmp_path),
        (safe_weights.read_weights, tmp_path / name),
    ):
        with pytest.raises(ValueError, match=name) as error:
            read(target)
        assert "never unpickles" in str(error.value)
        assert "weights_only=True" in str(error.value)


def test_a_folder_or_file_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no weights: expected model\.safetensors"):
        safe_weights.read_checkpoint(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()  # the folder of a run
    with pytest.raises(FileNotFoundError, match=r"Its folder .*model does; give that"):
        safe_weights.read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        safe_weights.read_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 40, -3], ids=["empty", "no header", "in header", "in data"])
def test_truncated_files_are_named(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is not a complete safetensors file") as error:
        safe_weights.read_weights(path)
    assert f"{path} ({path.stat().st_size} bytes)" in str(error.value)
    assert "copy or download it again" in str(error.value)


def test_corrupt_headers_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        safe_weights.read_weights(path)


def test_non_finite_weights_are_all_named():
    bad = {
        "fine": np.ones(3, np.float32),
        "whole": np.arange(3),
        "first": np.array([1, np.nan, np.inf], np.float32),
        "second": np.array([np.inf, 0], jnp.bfloat16),
    }
    with pytest.raises(ValueError, match="NaN or infinite") as error:
        check_finite(bad, "FOLDER")
    assert "FOLDER holds" in str(error.value)
    assert "first (2 of 3 elements), second (1 of 2 elements)." in str(error.value)
    check_finite({"fine": bad["fine"], "whole": bad["whole"]}, "FOLDER")


def test_a_full_disk_keeps_what_was_there(tmp_path):
    """A real failure of the system call: this process may write no file above 2 kB."""
    folder = tmp_path / "model"
    safe_weights.write_folder(folder, WEIGHTS, {"producer": "old"}, {"config.json": "old"})
    before = helpers.snapshot(folder)
    large, config = {"a": np.zeros(2000, np.float32)}, {"config.json": "new"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as first:
            safe_weights.write_folder(folder, large, {}, config)
        with pytest.raises(OSError, match="cannot write"):
            safe_weights.write_folder(tmp_path / "fresh", large, {}, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first.value.errno == errno.EFBIG
    assert f"cannot write {folder}: " in str(first.value)
    assert "nothing has been changed" in str(first.value)
    assert helpers.snapshot(folder) == before
    assert not (tmp_path / "fresh").exists()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*file/model: a file stands where"):
        safe_weights.write_folder(tmp_path / "file" / "model", WEIGHTS, {}, {})
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_an_interrupted_write_leaves_no_trace(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(safe_weights, "_write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        safe_weights.write_folder(tmp_path / "new", WEIGHTS, {}, {"config.json": "x"})
    assert not (tmp_path / "new").exists()


def test_a_kill_between_renames_leaves_nothing_that_loads_by_mistake(tmp_path, monkeypatch):
    safe_weights.write_folder(tmp_path, WEIGHTS, {}, {"config.json": "old", "vocab.txt": "old"})
    replace, order = os.replace, []

    def fail_at_the_end(source, target):
        order.append(target.name)
        if target.name == "config.json":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_end)
    with pytest.raises(OSError, match=r"the folder is half-written: save again"):
        safe_weights.write_folder(tmp_path, WEIGHTS, {}, {"config.json": "new", "vocab.txt": "new"})
    assert order == ["model.safetensors", "vocab.txt", "config.json"]
    assert sorted(helpers.snapshot(tmp_path)) == ["model.safetensors", "vocab.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        safe_weights.write_folder(tmp_path, WEIGHTS, {}, {"config.json": "x"})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
