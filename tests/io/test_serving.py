"""Exported programs, run in a process that has neither this library nor flax."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mpojax import io, models
from tests import marks
from tests.models import small, small_language

needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="flatbuffers is not installed"
)
RUN = """
import pathlib, sys
sys.modules |= dict.fromkeys(("mpojax", "flax"))
import jax, jax.export, safetensors.flax, safetensors.numpy
import jax.numpy as jnp

folder = pathlib.Path(sys.argv[1])
weights = safetensors.flax.load_file(folder / "model.safetensors")
given = safetensors.flax.load_file(folder / "given.safetensors")

def program(name):
    blob = bytearray((folder / f"{name}.jax_export").read_bytes())
    return jax.jit(jax.export.deserialize(blob).call)

made = {"forward": program("forward")(weights, *given.values())}
if (folder / "decode.jax_export").exists():
    ids, mask = given["0"], given["1"]
    mask = jnp.pad(mask, ((0, 0), (0, 4)), constant_values=1)
    logits, cache = program("prefill")(weights, ids, mask)
    made["prefill"], tokens, decode = logits, [], program("decode")
    for _ in range(4):
        tokens.append(jnp.argmax(logits, -1).astype(jnp.int32))
        logits, cache = decode(weights, tokens[-1], mask, cache)
    made["tokens"] = jnp.stack(tokens, 1)
safetensors.flax.save_file(made, folder / "made.safetensors")
"""


def run(folder: pathlib.Path, *given) -> dict[str, np.ndarray]:
    """What the programs of a folder give, in a process of their own."""
    given = {str(number): np.asarray(array, np.int32) for number, array in enumerate(given)}
    safetensors.numpy.save_file(given, folder / "given.safetensors")
    # The directory of flatbuffers may be another one than that of this environment.
    command = [sys.executable, "-c", f"import sys; sys.path += {sys.path!r}\n{RUN}", str(folder)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return safetensors.numpy.load_file(folder / "made.safetensors")


@needs_flatbuffers
@pytest.mark.parametrize(
    "make", marks.slow_but((small_language.chains,), (small_language.dense, small_language.chains))
)
def test_a_decoder(make, tmp_path):
    model = make(small_language.LLAMA)
    io.export_serving(model, tmp_path, batch_size=2, length=6, max_new_tokens=4)
    ids, mask = small_language.ids((2, 6)), small_language.left_padding(2, 0, length=6)
    made = run(tmp_path, ids, mask)
    expected = model(ids, mask)
    small_language.close(made["forward"][1], expected[1])
    small_language.close(made["forward"][0, 2:], expected[0, 2:])
    small_language.close(made["prefill"], expected[:, -1])
    texts = models.generate(model, ids, mask, max_new_tokens=4, sampling=models.Sampling())
    np.testing.assert_array_equal(made["tokens"], texts.ids)
    told = json.loads((tmp_path / "serving.json").read_text())
    assert told["programs"]["decode"]["takes"]["token"] == "int32[2]"
    assert told["programs"]["forward"]["gives"] == "float32[2, 6, 50]"
    assert told["programs"]["prefill"]["gives"][1]["position"] == "int32[]"


@needs_flatbuffers
def test_a_classifier(tmp_path):
    config = dataclasses.replace(small.BERT, num_labels=3)
    model = small.random_model(config)
    io.export_serving(model, tmp_path, batch_size=2, length=8)
    ids = small_language.ids((2, 8))
    mask, types = jnp.arange(8)[None] < jnp.array([[5], [8]]), jnp.zeros_like(ids)
    made = run(tmp_path, ids, mask, types)
    np.testing.assert_allclose(made["forward"], model(ids, mask, types), rtol=0, atol=1e-5)
    assert not (tmp_path / "decode.jax_export").exists()


@needs_flatbuffers
def test_a_folder_is_written_again_and_is_no_model(tmp_path):
    model = small_language.dense(small_language.GPT2)
    for length in (4, 5):
        io.export_serving(model, tmp_path, length=length, max_new_tokens=2)
    assert json.loads((tmp_path / "serving.json").read_text())["length"] == 5
    with pytest.raises(FileNotFoundError, match="holds no config"):
        io.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (small_language.T5, {}, "takes encoders and decoders; a EncoderDecoder is neither"),
        (small_language.GPT2, {"length": 30, "max_new_tokens": 3}, "33 tokens is longer than"),
        (small.BERT, {"length": 13}, "13 tokens is longer than max_positions=12"),
        (small.BERT, {"length": 0}, "length=0 must be an integer of at least 1"),
        (small.BERT, {"platforms": ("cpu", "gpus")}, "each one of 'cpu', 'cuda', 'rocm', 'tpu'"),
    ],
)
def test_bad_input(kind, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        io.export_serving(small.random_model(kind), tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_without_flatbuffers(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[serving\]'"):
        io.export_serving(small.random_model(small.BERT), tmp_path / "x", length=4)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt"):
        io.export_serving(small.random_model(small.BERT), tmp_path, length=4)
