"""Folders with the weights of a user's own module that are damaged, or are something else."""

import json

import pytest
from flax import nnx

from mpojax import compression, io

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


def test_gguf_file_is_not_loaded_into_a_module(own, tmp_path):
    path = tmp_path / "small.gguf"
    path.touch()
    with pytest.raises(ValueError, match="holds a whole model; load it without into="):
        io.load_pretrained(path, into=own)
