"""Folders of ours that hold language models: settings and arrays come back as they were."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models, mpo
from mpojax.nn.moe.settings import ExpertSettings
from tests.io import language_helpers as helpers


@pytest.mark.parametrize("name", [*helpers.CONFIGS, "llama 3"])
def test_folders_of_ours(tmp_path, name):
    """Dense and with chains and adapters; settings go through JSON exactly."""
    config = helpers.VARIANTS[name]
    model = models.from_arrays(config, {}, helpers.arrays(config))
    small, _ = compression.compress(model, [(".*/(query|up)", {"bond": 3})])
    small = compression.add_adapters(small, [(".*/value", {"rank": 2})], rngs=nnx.Rngs(0))
    for i, each in enumerate((model, small)):
        io.save_pretrained(each, tmp_path / str(i))
        again = io.load_pretrained(tmp_path / str(i))
        assert again.config == each.config
        assert again.shapes == each.shapes
        arrays = models.to_arrays(each)
        assert set(models.to_arrays(again)) == set(arrays)
        for path, array in models.to_arrays(again).items():
            np.testing.assert_array_equal(array, arrays[path])
    content = json.loads((tmp_path / "1" / "config.json").read_text(encoding="utf-8"))["mpojax"]
    assert content["format_version"] == 9
    assert content["kind"] == ("encoder_decoder" if name == "t5" else "decoder")
    assert "encoder" not in content


@pytest.mark.parametrize("share_central", [True, False])
def test_folders_with_experts(tmp_path, share_central):
    """A shared core is written once; the settings of experts go through JSON."""
    settings = ExpertSettings(number=3, router="top2", share_central=share_central)
    config = dataclasses.replace(
        helpers.GPT2, experts=(("layers/0/feed_forward", settings),), scan_boundaries=(1,)
    )
    shape = mpo.MPOShape((2, 3, 2), (4, 3, 4), (8, 8))
    shapes = {"layers/0/feed_forward/up": shape}
    model = models.from_arrays(config, shapes, helpers.arrays(config, shapes=shapes))
    io.save_pretrained(model, tmp_path)
    again = io.load_pretrained(tmp_path)
    assert (again.config, again.shapes) == (model.config, model.shapes)
    expected = models.to_arrays(model)
    core = "layers/0/feed_forward/up/cores/1"
    assert expected[core].ndim == (4 if share_central else 5)
    for path, array in models.to_arrays(again).items():
        np.testing.assert_array_equal(array, expected[path])
    with pytest.raises(ValueError, match="has experts in its feed-forward blocks"):
        io.export_huggingface(again, tmp_path / "out")


def test_folders_of_an_unknown_kind(tmp_path):
    model = models.from_arrays(helpers.GPT2, {}, helpers.arrays(helpers.GPT2))
    io.save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["mpojax"]["kind"] = "state_space"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError,
        match="kind='state_space' must be one of 'encoder'",
    ):
        io.load_pretrained(path.parent)
