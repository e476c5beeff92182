"""Tables of names: several arrays in one tensor, changes of values, layers, optional parts."""

import types

import numpy as np
import pytest

from mpojax.io.hf import names
from mpojax.io.hf.names import Convert, conv1d, linear, norm

CONFIG = types.SimpleNamespace(num_heads=2, gated=True)
# As Gemma has its norms.
PLUS_ONE = Convert(lambda array, _: array + 1, lambda array, _: array - 1)


def _by_head(array, config, parts=3):
    """(heads, parts, head size) in the last axis to (parts, heads, head size), as GPT-NeoX."""
    split = array.reshape(*array.shape[:-1], config.num_heads, parts, -1)
    return split.swapaxes(-2, -3).reshape(array.shape)


def _to_heads(array, config, parts=3):
    split = array.reshape(*array.shape[:-1], parts, config.num_heads, -1)
    return split.swapaxes(-2, -3).reshape(array.shape)


MODULES = {
    "h.{i}.qkv": linear(
        "layers/{i}/query",
        "layers/{i}/key",
        "layers/{i}/value",
        convert=Convert(_by_head, _to_heads),
    ),
    "h.{i}.ffn.{j}.up": conv1d("layers/{i}/feed_forwards/{j}/up"),
    "h.{i}.gate": linear("layers/{i}/gate", when=lambda config: config.gated),
    "h.{i}.up_and_gate": linear("layers/{i}/gate", when=lambda config: not config.gated),
    "norm": norm("final_norm", convert=PLUS_ONE),
}
MARKS = {"i": [(0, 0), (1, 2)], "j": [(0, 0), (1, 1)]}


def _arrays():
    rng = np.random.default_rng(0)
    shapes = {"final_norm/scale": (6,)}
    for layer in (0, 2):
        for name in ("query", "key", "value", "gate"):
            shapes[f"layers/{layer}/{name}/kernel"] = (6, 4)
        shapes[f"layers/{layer}/query/bias"] = shapes[f"layers/{layer}/key/bias"] = (4,)
        shapes[f"layers/{layer}/value/bias"] = (4,)
        for block in range(2):
            shapes[f"layers/{layer}/feed_forwards/{block}/up/kernel"] = (6, 5)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_there_and_back():
    arrays = _arrays()
    wanted = names.tensors_of(MODULES, MARKS, CONFIG, arrays)
    tensors = {name: tensor.join(arrays, CONFIG) for name, tensor in wanted.items()}
    assert set(tensors) == {
        *(f"h.{i}.{name}" for i in (0, 1) for name in ("qkv.weight", "qkv.bias", "gate.weight")),
        *(f"h.{i}.ffn.{j}.up.weight" for i in (0, 1) for j in (0, 1)),
        "norm.weight",
    }
    # Torch's orientation; the first head's query, key and value, then those of the second head.
    key = arrays["layers/2/key/kernel"]
    np.testing.assert_array_equal(tensors["h.1.qkv.weight"][2:4], key[:, :2].T)
    np.testing.assert_array_equal(tensors["h.1.qkv.weight"][8:10], key[:, 2:].T)
    np.testing.assert_allclose(tensors["norm.weight"] + 1, arrays["final_norm/scale"], rtol=1e-6)
    shapes = {path: array.shape for path, array in arrays.items()}
    again = names.read(wanted, tensors, shapes, CONFIG, "FOLDER")
    assert again.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_allclose(again[path], array, rtol=0, atol=1e-6)


def test_shapes_are_those_of_the_file():
    arrays = _arrays()
    wanted = names.tensors_of(MODULES, MARKS, CONFIG, arrays)
    tensors = {name: tensor.join(arrays, CONFIG) for name, tensor in wanted.items()}
    tensors["h.0.qkv.weight"] = tensors["h.0.qkv.weight"][:-1]
    shapes = {path: array.shape for path, array in arrays.items()}
    with pytest.raises(ValueError, match=r"h.0.qkv.weight is \(11, 6\), must be \(12, 6\)"):
        names.read(wanted, tensors, shapes, CONFIG, "FOLDER")
