"""Attention by kernels that form no scores: which path is taken, and that all give the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import devices, models, training
from mpojax.models.decoder import causal_mask
from mpojax.nn import attention, flash, masks
from mpojax.training.aot import topology
from tests import marks

LENGTH, HEADS, SIZE = 256, 2, 32
ROW = jnp.arange(LENGTH, dtype=jnp.int32)
REAL = jnp.arange(LENGTH)[None] < jnp.asarray([[LENGTH], [150]])
SEGMENTS = (ROW // 100)[None].repeat(2, 0)


def draw(seed, heads=HEADS, length=LENGTH):
    values = np.random.default_rng(seed).standard_normal((2, length, heads, SIZE))
    return jnp.asarray(values, jnp.bfloat16)


def windows(kind):
    """Masks of alternating layers, as the layer of that kind sees them."""
    made = [causal_mask(ROW, LENGTH, window, REAL, is_whole=True) for window in (None, 64)]
    return masks.stack(made).of_layer(jnp.int32(kind))


CASES = {
    "everything": (lambda: None, 2, None),
    "causal, padding, grouped": (
        lambda: causal_mask(ROW, LENGTH, real=REAL, is_whole=True),
        1,
        None,
    ),
    "window, soft cap": (lambda: causal_mask(ROW, LENGTH, 64, is_whole=True), 2, 5.0),
    "packed": (lambda: masks.of_segments(SEGMENTS, REAL), 2, None),
    "padding": (lambda: models.self_attention_mask(REAL), 2, None),
    "first kind of layer": (lambda: windows(0), 1, None),
    "second kind of layer": (lambda: windows(1), 1, None),
}


# Padding is also in the second case; of two kinds of layers the one with a window stays.
@pytest.mark.parametrize(
    "case", marks.slow_but(CASES.keys() - {"padding", "first kind of layer"}, CASES)
)
def test_splash_is_the_products(case):
    make, kv_heads, softcap = CASES[case]
    arrays = draw(0), draw(1, kv_heads), draw(2, kv_heads)
    real = REAL[:, :, None, None]  # what padding makes is thrown away

    def loss(path, *arrays):
        mixed = attention.attend(*arrays, make(), scale=0.2, softcap=softcap, path=path)
        mixed = jnp.where(real, mixed, 0).astype(jnp.float32)
        return jnp.sum(draw(3).astype(jnp.float32) * mixed), mixed

    def found(path):
        step = jax.value_and_grad(functools.partial(loss, path), (0, 1, 2), has_aux=True)
        (_, mixed), gradients = jax.jit(step)(*arrays)
        return mixed, *gradients

    for own, expected in zip(found("splash"), found("products"), strict=True):
        own, expected = (np.asarray(each, np.float32) for each in (own, expected))
        np.testing.assert_allclose(own, expected, atol=0.02 * np.abs(expected).max())


class TestPath:
    """The table of docs/concepts/attention.md."""

    def chosen(self, monkeypatch, target="v5e", shape=(2, 1024, 12, 64), mask=None, **changes):
        platform = devices.CHIPS[target].platform if target in devices.CHIPS else target
        monkeypatch.setattr(devices, "platform", lambda: platform)
        monkeypatch.setattr(devices, "target", lambda: target)
        q = jax.ShapeDtypeStruct(shape, changes.pop("dtype", jnp.bfloat16))
        options = {"has_bias": False, "softcap": None, "has_dropout": False} | changes
        return flash.path(q, q, mask, **options)

    @pytest.mark.parametrize(
        ("target", "changes", "path"),
        [
            ("v5e", {}, "splash"),
            ("v6e", {"softcap": 50.0}, "splash"),
            ("v5e", {"has_bias": True}, "products"),
            ("v5e", {"has_dropout": True}, "products"),
            ("v5e", {"dtype": jnp.float32}, "products"),
            ("v5e", {"shape": (2, 384, 12, 64)}, "products"),
            ("v5e", {"shape": (2, 1000, 12, 64)}, "products"),
            ("h100", {}, "cudnn"),
            ("h200", {"shape": (2, 1024, 8, 256)}, "cudnn"),
            ("a100", {"shape": (2, 1024, 8, 256)}, "products"),
            ("h100", {"softcap": 50.0}, "products"),
            ("v100", {}, "products"),
            ("gpu", {}, "products"),
            ("cpu", {}, "products"),
        ],
    )
    def test_targets_and_features(self, monkeypatch, target, changes, path):
        assert self.chosen(monkeypatch, target, **changes) == path

    def test_masks(self, monkeypatch):
        row = jnp.arange(1024, dtype=jnp.int32)
        causal = causal_mask(row, 1024, 128, is_whole=True)
        assert causal.reaches == ((127, 0),)
        assert self.chosen(monkeypatch, mask=causal) == "splash"
        behind_a_cache = causal_mask(row, 1024, is_whole=False)
        assert self.chosen(monkeypatch, mask=behind_a_cache) == "products"
        assert self.chosen(monkeypatch, mask=causal.array) == "products"


def test_what_cudnn_is_asked_for(monkeypatch):
    """Its kernel runs on GPUs alone: here its arguments."""
    asked = {}
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *_, **options: asked.update(options)
    )
    arrays = draw(0), draw(1), draw(2)
    flash.attend("cudnn", *arrays, causal_mask(ROW, LENGTH, 64, is_whole=True), 0.2)
    assert asked["mask"] is None
    assert (asked["is_causal"], asked["local_window_size"]) == (True, (63, 0))
    flash.attend("cudnn", *arrays, masks.of_segments(SEGMENTS, REAL), 0.2)
    assert asked["mask"].shape == (2, 1, LENGTH, LENGTH)
    assert not asked["is_causal"]
    # It refuses a mask of (2, 1, 1, keys).
    flash.attend("cudnn", *arrays, models.self_attention_mask(REAL), 0.2)
    assert asked["mask"].shape == (2, 1, LENGTH, LENGTH)
    np.testing.assert_array_equal(asked["mask"][:, 0, 7], REAL)


@pytest.mark.skipif(not topology.is_installed(), reason="libtpu is not installed: the extra tpu")
class TestCompiled:
    def temporaries(self, length, path=None, axes=None, slice_name="v5e:1x1"):
        """MiB of a forward and backward pass that the TPU compiler plans."""

        def loss(q, k, v, real):
            row = jnp.arange(length, dtype=jnp.int32)
            mask = causal_mask(row, length, real=real, is_whole=True)
            mixed = attention.attend(q, k, v, mask, scale=0.125, path=path)
            return jnp.sum(mixed.astype(jnp.float32))

        q, k = (jax.ShapeDtypeStruct((32, length, n, 64), jnp.bfloat16) for n in (8, 4))
        real = jax.ShapeDtypeStruct((32, length), bool)
        with jax.set_mesh(training.make_mesh(axes or {}, topology.describe(slice_name))):
            compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, real).compile()
        if path is None:
            assert "splash_mha_dkv_segmented" in compiled.as_text()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    @pytest.mark.slow
    def test_memory_is_linear_in_the_length(self):
        kernel = [self.temporaries(length) for length in (1024, 2048, 4096)]
        assert kernel[1] < 2.2 * kernel[0]
        assert kernel[2] < 2.3 * kernel[1]  # the kernel pads what it keeps of each row
        assert kernel[1] < 0.1 * self.temporaries(2048, "products")

    @pytest.mark.slow
    def test_over_a_mesh(self):
        self.temporaries(1024, axes={"data": 2, "tensor": 2}, slice_name="v5e:2x2")


def test_masks_are_what_models_had():
    """The arrays: causal, of a window, of padding, of packed texts."""
    seen = causal_mask(ROW[:4], 4, 2, REAL[:, :4], is_whole=True).array
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, (2, 1, 4, 4)))
    packed = masks.of_segments(jnp.asarray([[0, 0, 1]]), jnp.asarray([[True, True, False]]))
    np.testing.assert_array_equal(packed.array[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert packed.key_segments.tolist() == [[0, 0, -1]]
