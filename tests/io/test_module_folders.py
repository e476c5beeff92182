"""Folders with the weights of a user's own module that are damaged, or are something else."""

import json

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, mpo
from mpojax.compression.matrices import matrices_of

PATH = "layers/0"


@pytest.fixture(name="own", scope="module")
def own_fixture():
    return nnx.Sequential(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), nnx.relu)


@pytest.fixture(name="folder")
def folder_fixture(own, tmp_path):
    small, _ = compression.compress(own, bond=8)
    io.save_pretrained(small, tmp_path / "model")
    return tmp_path / "model"


def change(folder, **entries):
    """Changes the description in config.json."""
    content = json.loads((folder / "config.json").read_text())
    content["mpojax"] |= entries
    (folder / "config.json").write_text(json.dumps(content))


def wide(**fields):
    """Description of a chain for the 64 x 64 matrix."""
    return {"in_features": 64, "out_features": 64, "bonds": None} | fields


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"shapes": {PATH: wide(in_factors=[20000, 1], out_factors=[20000, 1], bonds=[1])}},
            "need 400,000,001 parameters",
        ),
        (
            {"shapes": {}, "adapters": {PATH: {"kind": "low_rank", "rank": 10**7}}},
            "need 1,280,000,000 parameters",
        ),
        (
            {"shapes": {}, "adapters": {PATH: {"kind": "mpo", "bond": 1, "num_cores": 64}}},
            "do not fit the module",
        ),
        ({"shapes": {PATH: wide(in_factors="ab", out_factors=[64])}}, "in_factors='ab' must be"),
        ({"shapes": {PATH: wide(in_factors=[64])}}, "out_factors is missing"),
        ({"format_version": 9}, "format version 9; .* Update mpojax"),
    ],
)
def test_damaged_description_is_an_error_before_anything_is_allocated(
    own, folder, entries, message
):
    change(folder, **entries)
    with pytest.raises(ValueError, match=message):
        io.load_pretrained(folder, into=own)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_pivoted_chains_come_back(own, tmp_path, dtype):
    kernel = np.asarray(own.layers[0].kernel[...])
    cores, shape = mpo.pivot(mpo.low_rank(kernel, 24))
    small = matrices_of(own).with_chains({PATH: (shape, list(cores))})
    io.save_pretrained(small, tmp_path / "model", dtype=dtype)
    again = io.load_pretrained(tmp_path / "model", into=own)
    x = np.eye(64, dtype=np.float32)
    tolerance = 1e-6 if dtype == "float32" else 0.05
    np.testing.assert_allclose(again(x), small(x), rtol=0, atol=tolerance)
    order, expected = (each.layers[0].cores[2][...] for each in (again, small))
    np.testing.assert_array_equal(order, expected)


def test_gguf_file_is_not_loaded_into_a_module(own, tmp_path):
    path = tmp_path / "small.gguf"
    path.touch()
    with pytest.raises(ValueError, match="holds a whole model; load it without into="):
        io.load_pretrained(path, into=own)
