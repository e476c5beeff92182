"""Folders of ours that hold language models: settings and arrays come back as they were."""

import dataclasses
import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
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
    assert content["format_version"] == 10
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


MEMORY = """
import json, resource, sys
import jax
from mpojax import io
jax.device_put(0.0)
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = used()
model = io.load_pretrained(sys.argv[1], keep_16_bits=json.loads(sys.argv[2]))
print(used() - before)
"""


def _in_16_bits(folder, shards: int = 2, **sizes):
    """A folder of a LLaMA in bfloat16, in several files."""
    config = dataclasses.replace(helpers.LLAMA, **sizes)
    content, tensors = helpers.checkpoint(config)
    names, index = sorted(tensors), {}
    for part in range(shards):
        file = f"part-{part}.safetensors"
        held = {name: tensors[name].astype(jnp.bfloat16) for name in names[part::shards]}
        safetensors.numpy.save_file(held, folder / file)
        index |= dict.fromkeys(held, file)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    index = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def test_matrices_stay_in_16_bits(tmp_path):
    """The function is the same: a bfloat16 number is a float32 one, too."""
    _in_16_bits(tmp_path)
    plain, kept = (io.load_pretrained(tmp_path, keep_16_bits=keep) for keep in (False, True))
    for name, array in models.to_arrays(kept).items():
        is_matrix = name.endswith(("/kernel", "/table"))
        assert array.dtype == (jnp.bfloat16 if is_matrix else np.float32)
        np.testing.assert_array_equal(models.to_arrays(plain)[name], array.astype(np.float32))
    ids = np.arange(1, 9)[None]
    np.testing.assert_array_equal(plain(ids), kept(ids))


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "bits"), [(False, 32), (True, 16)])
def test_loading_needs_the_memory_of_the_model(tmp_path, keep, bits):
    """Tensors are read one after the other, and nothing is held twice."""
    sizes = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 2048, "num_layers": 8}
    _in_16_bits(tmp_path, **sizes, num_heads=8, num_kv_heads=8, head_size=64)
    shapes = models.array_shapes(io.load_pretrained(tmp_path).config).values()
    count = sum(math.prod(shape) for shape in shapes)
    command = [sys.executable, "-c", MEMORY, str(tmp_path), json.dumps(keep)]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used < 1.2 * count * bits // 8 + 40e6
