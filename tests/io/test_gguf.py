"""Models of GGUF files: small ones written here, and the real SmolLM2 where it is installed."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import io, models
from mpojax.io.gguf import reader
from tests.io import gguf_helpers
from tests.io import language_helpers as helpers

gguf = gguf_helpers.gguf


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_the_model_it_was_made_of(tmp_path, tied):
    config = dataclasses.replace(gguf_helpers.CONFIG, tied=tied)
    path = gguf_helpers.write(tmp_path / "small.gguf", config, bos_token_id=1, eos_token_id=2)
    for source in (path, str(path), tmp_path):
        model = io.load_pretrained(source)
        assert model.config == config
    for name, array in helpers.arrays(config).items():
        np.testing.assert_array_equal(models.to_arrays(model)[name], array)


def test_weights_that_nobody_checks_are_dequantised_when_they_are_read(tmp_path, monkeypatch):
    path, dequantize = gguf_helpers.write(tmp_path / "small.gguf"), gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("a tensor was read"))
    stored = io.open_pretrained(path, check=False)
    monkeypatch.setattr(gguf, "dequantize", dequantize)
    for name, array in models.to_arrays(stored.load()).items():
        np.testing.assert_array_equal(array, helpers.arrays(gguf_helpers.CONFIG)[name])


def test_biases_and_widths_of_heads(tmp_path):
    config = dataclasses.replace(
        gguf_helpers.CONFIG,
        **dict.fromkeys(("attention_bias", "attention_out_bias", "feed_forward_bias"), True),
        head_size=6,
        num_kv_heads=2,
        bos_id=None,
        eos_id=None,
    )
    path = gguf_helpers.write(tmp_path / "small.gguf", config, key_length=6, value_length=6)
    model = io.load_pretrained(path)
    assert model.config == config
    for name, array in helpers.arrays(config).items():
        np.testing.assert_array_equal(models.to_arrays(model)[name], array)


# Largest error of an entry, in parts of the largest entry.
ERRORS = {"F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2, "Q5_0": 0.07, "Q5_1": 0.05}
ERRORS |= {"Q4_0": 0.14, "Q4_1": 0.1}


@pytest.mark.parametrize("name", ERRORS)
def test_quantised_files(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    path = gguf_helpers.write(tmp_path / "small.gguf", quantised=kind)
    arrays = models.to_arrays(io.load_pretrained(path))
    for path, array in helpers.arrays(gguf_helpers.CONFIG).items():
        assert arrays[path].dtype == np.float32
        scale = np.abs(array).max()
        np.testing.assert_allclose(arrays[path], array, rtol=0, atol=ERRORS[name] * scale)


def _scales_of_k(packed: bytes) -> list[tuple[int, int]]:
    """(scale, minimum) of 8 groups, 6 bits each: get_scale_min_k4 in ggml-quants.c."""
    found = [(packed[j] & 63, packed[j + 4] & 63) for j in range(4)]
    for j in range(4, 8):
        scale = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
        found.append((scale, (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)))
    return found


def _q4_k(block: bytes) -> list[float]:
    """dequantize_row_q4_K."""
    d, least = np.frombuffer(block[:4], np.float16).astype(float)
    values = []
    for group, (scale, minimum) in enumerate(_scales_of_k(block[4:16])):
        quants = block[16 + 32 * (group // 2) : 48 + 32 * (group // 2)]
        values += [d * scale * (q >> 4 * (group % 2) & 15) - least * minimum for q in quants]
    return values


def _q5_k(block: bytes) -> list[float]:
    """dequantize_row_q5_K."""
    d, least = np.frombuffer(block[:4], np.float16).astype(float)
    high, values = block[16:48], []
    for group, (scale, minimum) in enumerate(_scales_of_k(block[4:16])):
        quants = block[48 + 32 * (group // 2) : 80 + 32 * (group // 2)]
        for q, bits in zip(quants, high, strict=True):
            value = (q >> 4 * (group % 2) & 15) + 16 * (bits >> group & 1)
            values.append(d * scale * value - least * minimum)
    return values


def _q6_k(block: bytes) -> list[float]:
    """dequantize_row_q6_K."""
    d = float(np.frombuffer(block[208:], np.float16)[0])
    scales, values = np.frombuffer(block[192:208], np.int8), np.zeros(256)
    for half in range(2):
        low, high = block[64 * half :], block[128 + 32 * half :]
        for i in range(32):
            for part in range(4):
                q = (
                    low[i + 32 * (part % 2)] >> 4 * (part // 2) & 15
                    | (high[i] >> 2 * part & 3) << 4
                )
                at = 128 * half + 32 * part + i
                values[at] = d * int(scales[at // 16]) * (q - 32)
    return list(values)


def _q2_k(block: bytes) -> list[float]:
    """dequantize_row_q2_K."""
    d, least = np.frombuffer(block[80:], np.float16).astype(float)
    values = []
    for at in range(256):
        scale, q = block[at // 16], block[16 + 32 * (at // 128) + at % 32]
        values.append(d * (scale & 15) * (q >> 2 * (at // 32 % 4) & 3) - least * (scale >> 4))
    return values


def _q3_k(block: bytes) -> list[float]:
    """dequantize_row_q3_K."""
    high, quants, packed = block[:32], block[32:96], block[96:108]
    d, values = float(np.frombuffer(block[108:], np.float16)[0]), []
    for at in range(256):
        group = at // 16
        low = packed[group % 8] >> 4 * (group // 8) & 15
        scale = (low | (packed[8 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32
        q = quants[32 * (at // 128) + at % 32] >> 2 * (at // 32 % 4) & 3
        values.append(d * scale * (q - 4 * (not high[at % 32] >> at // 32 & 1)))
    return values


K_QUANTS = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
# First byte of each 16-bit factor in a block.
FACTORS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants(tmp_path, name):
    """Random blocks against what the code of ggml says, entry by entry."""
    kind = gguf.GGMLQuantizationType[name]
    config = dataclasses.replace(gguf_helpers.CONFIG, hidden_size=256, head_size=None, num_layers=1)
    rng, size = np.random.default_rng(0), gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (config.intermediate_size, size), dtype=np.uint8)
    for at in FACTORS[name]:
        blocks[:, at : at + 2] = (
            rng.random((len(blocks), 1), np.float32).astype(np.float16).view(np.uint8)
        )
    tensors = gguf_helpers.tensors_of(config, helpers.arrays(config))
    tensors["blk.0.ffn_up.weight"] = (blocks, kind)
    model = io.load_pretrained(gguf_helpers.write(tmp_path / "k.gguf", config, tensors))
    found = models.to_arrays(model)["layers/0/feed_forward/up/kernel"].T
    expected = [K_QUANTS[name](block.tobytes()) for block in blocks]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_types_that_cannot_be_undone(tmp_path):
    tensors = gguf_helpers.tensors_of(gguf_helpers.CONFIG, helpers.arrays(gguf_helpers.CONFIG))
    tensors["blk.0.attn_v.weight"] = np.zeros((16, 32), np.int8)
    path = gguf_helpers.write(tmp_path / "small.gguf", tensors=tensors)
    with pytest.raises(ValueError, match=r"tensor blk\.0\.attn_v\.weight has type I8, which the"):
        io.load_pretrained(path)


def test_types_that_no_one_knows(tmp_path):
    path = gguf_helpers.write(tmp_path / "small.gguf")
    content = path.read_bytes()
    # A tensor's name is followed by its number of axes, their sizes, and its type.
    name = b"blk.0.attn_v.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(content[:at] + (250).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(ValueError, match=r"quantisation that the package gguf does not know.*250"):
        io.load_pretrained(path)


def test_llama_3_frequencies(tmp_path):
    """Files hold what the scaling does to each frequency."""
    scaling = (8.0, 1.0, 4.0, 8192)
    base = 500_000.0
    waves = 2 * np.pi * base ** (np.arange(0, 16, 2) / 16)
    divisors = []
    for wave in waves:  # conversion of llama.cpp, LlamaModel.generate_extra_tensors
        if wave < 8192 / 4.0:
            divisors.append(1.0)
        elif wave > 8192 / 1.0:
            divisors.append(8.0)
        else:
            smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
            divisors.append(1 / ((1 - smooth) / 8.0 + smooth))
    assert 1.0 < sorted(set(divisors))[1] < 8.0
    config = dataclasses.replace(
        gguf_helpers.CONFIG, rotary_base=base, rotary_scaling=scaling, bos_id=None, eos_id=None
    )
    tensors = gguf_helpers.tensors_of(config, helpers.arrays(config))
    tensors["rope_freqs.weight"] = np.asarray(divisors, np.float32)
    path = gguf_helpers.write(tmp_path / "small.gguf", config, tensors)
    assert io.load_pretrained(path).config == config
    tensors["rope_freqs.weight"] = np.linspace(1, 8, 8, dtype=np.float32)
    path = gguf_helpers.write(tmp_path / "other.gguf", config, tensors)
    with pytest.raises(ValueError, match="is not the scaling of rotary positions of LLaMA 3"):
        io.load_pretrained(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', which is not supported.*only 'llama'"),
        ({"expert_count": 4}, "llama.expert_count=4"),
        ({"rope_scaling_type": gguf.RopeScalingType.LINEAR}, "rope.scaling.type='linear'"),
        ({"float32": ("llama.rope.scale_linear", 2.0)}, "rope.scale_linear=2 "),
        ({"float32": ("llama.rope.scaling.factor", 4.0)}, "rope.scaling.factor=4 "),
        ({"sliding_window": 8}, "llama.attention.sliding_window=8"),
        ({"value_length": 8}, r"value_length=8 \(supported: the head size, 16\)"),
        ({"uint16": ("split.count", 2)}, "is one of 2 parts"),
    ],
)
def test_unsupported_files(tmp_path, settings, message):
    path = gguf_helpers.write(tmp_path / "small.gguf", **settings)
    with pytest.raises(ValueError, match=message) as error:
        io.load_pretrained(path)
    assert "small.gguf" in str(error.value)


def test_tensors_are_covered_both_ways(tmp_path):
    tensors = gguf_helpers.tensors_of(gguf_helpers.CONFIG, helpers.arrays(gguf_helpers.CONFIG))
    del tensors["blk.1.ffn_gate.weight"]
    tensors["blk.0.more"] = np.zeros(3, np.float32)
    tensors["output_norm.weight"] = np.zeros(31, np.float32)
    with pytest.raises(ValueError, match=r"weights in .*small.gguf do not fit") as error:
        io.load_pretrained(gguf_helpers.write(tmp_path / "small.gguf", tensors=tensors))
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        "missing: blk.1.ffn_gate.weight",
        "shape mismatch: output_norm.weight is (31,), must be (32,)",
        "unexpected: blk.0.more",
    ]


def test_damaged_files_and_folders_of_several(tmp_path, monkeypatch):
    path = gguf_helpers.write(tmp_path / "small.gguf")
    whole = path.read_bytes()
    for name, content in (
        ("cut.gguf", whole[: len(whole) // 2]),
        ("header.gguf", whole[:200]),
        ("empty.gguf", b""),
        ("other.gguf", b"something else that is long enough"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} .* is not a complete GGUF file"):
            io.load_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="holds 5 GGUF files"):
        io.load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no GGUF file at"):
        io.gguf_tokenizer(tmp_path / "none.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[gguf\]'"):
        io.load_pretrained(path)


def test_config_json_comes_before_a_file(tmp_path):
    gguf_helpers.write(tmp_path / "small.gguf")
    assert reader.find(tmp_path) == tmp_path / "small.gguf"
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert reader.find(tmp_path) is None


@pytest.mark.slow
def test_the_real_model():
    """It knows what comes next."""
    smollm2 = gguf_helpers.smollm2()
    model = io.load_pretrained(smollm2)
    config = model.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (30, 9, 3)
    assert (config.rotary_base, config.norm_eps, config.tied) == (100_000.0, 1e-5, True)
    assert sum(models.count_parameters(model).values()) == 134_515_008
    backend = io.gguf_tokenizer(smollm2)
    for text, word in (
        ("The capital of France is", " Paris"),
        ("One, two, three, four,", " five"),
        ("Monday, Tuesday, Wednesday, Thursday,", " Friday"),
    ):
        ids = jnp.asarray([backend.encode(text).ids])
        logits = jax.jit(lambda model, ids: model(ids))(model, ids)
        assert backend.decode([int(jnp.argmax(logits[0, -1]))]) == word
