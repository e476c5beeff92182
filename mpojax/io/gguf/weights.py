"""LLaMA models of GGUF files -> (settings, flat dict of arrays).

Quantised weights become float32, so that they can be trained and decomposed. llama.cpp turns pairs
of neighbours in the heads of queries and keys, we turn halves: its files hold their rows in another
order, which is undone here (`permute` of `LlamaModel` in its conversion/llama.py).
"""

import os
import re
from collections.abc import Mapping

import numpy as np

from mpojax import checks, models
from mpojax.checks import flag, integer, number, sequence, text
from mpojax.io import generation_config, sizes
from mpojax.io.gguf.reader import GGUFFile
from mpojax.io.hf import language_models
from mpojax.io.hf.architectures import linear
from mpojax.io.hf.architectures import rows as join_rows
from mpojax.models.arrays import check_finite

_THEIRS, _OURS = "blk.{i}", "layers/{i}"
ROWS = join_rows(
    (
        ("token_embd.weight", "embeddings/word/table", "same"),
        (f"{_THEIRS}.attn_norm.weight", f"{_OURS}/attention_norm/scale", "same"),
        (f"{_THEIRS}.ffn_norm.weight", f"{_OURS}/feed_forward_norm/scale", "same"),
    ),
    linear(f"{_THEIRS}.attn_q", f"{_OURS}/attention/query"),
    linear(f"{_THEIRS}.attn_k", f"{_OURS}/attention/key"),
    linear(f"{_THEIRS}.attn_v", f"{_OURS}/attention/value"),
    linear(f"{_THEIRS}.attn_output", f"{_OURS}/attention/out"),
    linear(f"{_THEIRS}.ffn_gate", f"{_OURS}/feed_forward/gate"),
    linear(f"{_THEIRS}.ffn_up", f"{_OURS}/feed_forward/up"),
    linear(f"{_THEIRS}.ffn_down", f"{_OURS}/feed_forward/down"),
    (
        ("output_norm.weight", "final_norm/scale", "same"),
        ("output.weight", "head/kernel", "transpose"),
    ),
)
_TOKENS = {
    "bos_id": ("tokenizer.ggml.bos_token_id",),
    # End of text, of a turn, of a message.
    "eos_id": tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")),
    "pad_id": ("tokenizer.ggml.padding_token_id",),
}
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
}
_SIZE = integer(1, 2**31 - 1)
_COUNT = _SIZE | sequence(_SIZE)
_TYPES = {
    "general.architecture": text(100),
    "llama.attention.head_count": _COUNT,
    "llama.attention.head_count_kv": _COUNT,
    "llama.feed_forward_length": _COUNT,
    **dict.fromkeys(("llama.attention.key_length", "llama.attention.value_length"), _SIZE),
    "llama.rope.dimension_count": _SIZE,
    **dict.fromkeys(("llama.embedding_length", "llama.context_length"), _SIZE),
    "llama.attention.sliding_window": integer(),
    "llama.block_count": integer(1, 10_000),
    "llama.expert_count": integer(0),
    "llama.attention.layer_norm_rms_epsilon": number(above=0.0),
    "llama.attention.causal": flag(),
    "llama.rope.freq_base": number(above=0.0),
    "llama.rope.scaling.type": text(100),
    **dict.fromkeys(("llama.rope.scale_linear", "llama.rope.scaling.factor"), number()),
    **{key: integer() for keys in _TOKENS.values() for key in keys},
    **dict.fromkeys(_SAMPLING.values(), number()),
}
_FREQUENCIES = "rope_freqs.weight"
# Low and high frequency factors and first positions of LLaMA 3.1 to 3.3; files hold their effect.
_LLAMA3 = (1.0, 4.0, 8192)


def import_file(path: str | os.PathLike) -> tuple[models.DecoderConfig, dict[str, np.ndarray]]:
    """Settings and arrays of a GGUF file.

    Raises:
      ImportError: the package gguf is not installed.
      FileNotFoundError: no such file.
      ValueError: an unsupported architecture, setting or quantisation, a damaged file, non-finite
        weights, or tensors that are missing, unexpected or of another shape.
    """
    file = GGUFFile(path)
    file.check(_TYPES)
    architecture = file.need("general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"{file.path} holds a model of architecture {architecture!r}, which is not supported; "
            "of GGUF files only 'llama' is."
        )
    _check_settings(file)
    tensors = file.tensors()
    check_finite(tensors, str(file.path))
    config = _config(file, tensors)
    tensors.pop(_FREQUENCIES, None)
    sizes.check(config, tensors, str(file.path))
    for name, heads in (("attn_q", config.num_heads), ("attn_k", config.num_kv_heads)):
        for key in tensors:
            if re.fullmatch(rf"blk\.\d+\.{name}\.(weight|bias)", key):
                tensors[key] = _halves(tensors[key], heads, f"{file.path}: {key}")
    expected = models.array_shapes(config)
    table = language_models.name_table(ROWS, config, expected)
    return config, language_models.collect(table, tensors, expected, str(file.path))


def _check_settings(file: GGUFFile):
    """Raises ValueError that names every setting that is not supported."""
    problems = []
    if experts := file.get("llama.expert_count", 0):
        problems.append(f"llama.expert_count={experts} (supported: 0)")
    scaling = file.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        problems.append(f"llama.rope.scaling.type={scaling!r} (supported: 'none')")
    # Of older files, and of linear scaling without a type.
    for key in ("llama.rope.scale_linear", "llama.rope.scaling.factor"):
        if scaling == "none" and (value := file.get(key, 1.0)) not in (0.0, 1.0):
            problems.append(f"{key}={value:g} (supported: 1)")
    window = file.get("llama.attention.sliding_window", 0)
    if 0 < window < file.need("llama.context_length"):
        problems.append(f"llama.attention.sliding_window={window} (supported: 0)")
    size = _head_size(file)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (value := file.get(key, size)) != size:
            problems.append(f"{key}={value} (supported: the head size, {size})")
    if file.get("llama.attention.causal", True) is False:
        problems.append("llama.attention.causal=False")
    if problems:
        raise ValueError(
            f"{file.path} has a configuration that is not supported: {'; '.join(problems)}."
        )


def _config(file: GGUFFile, tensors: Mapping[str, np.ndarray]) -> models.DecoderConfig:
    heads = _count(file, "llama.attention.head_count", file.need("llama.attention.head_count"))
    vocab_size = len(tensors.get("token_embd.weight", ()))
    base = float(file.get("llama.rope.freq_base", 10_000.0))
    ids = {
        name: [i for key in keys if (i := file.get(key)) is not None and i < vocab_size]
        for name, keys in _TOKENS.items()
    }
    try:
        return models.DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=file.need("llama.embedding_length"),
            num_layers=file.need("llama.block_count"),
            num_heads=heads,
            num_kv_heads=_count(file, "llama.attention.head_count_kv", heads),
            head_size=_head_size(file),
            intermediate_size=_count(file, "llama.feed_forward_length", None),
            max_positions=file.need("llama.context_length"),
            positions="rotary",
            rotary_base=base,
            rotary_scaling=_scaling(file, tensors.get(_FREQUENCIES), base),
            norm="rms_norm",
            norm_eps=_decimal(file.need("llama.attention.layer_norm_rms_epsilon")),
            activation="silu",
            gated=True,
            attention_bias="blk.0.attn_q.bias" in tensors,
            attention_out_bias="blk.0.attn_output.bias" in tensors,
            feed_forward_bias="blk.0.ffn_up.bias" in tensors,
            tied="output.weight" not in tensors,
            dropout=0.0,
            embedding_dropout=0.0,
            attention_dropout=0.0,
            pad_id=next(iter(ids["pad_id"]), None),
            bos_id=next(iter(ids["bos_id"]), None),
            eos_id=tuple(ids["eos_id"]),
            sampling=_sampling(file),
        )
    except ValueError as error:
        raise ValueError(f"{file.path} has an impossible configuration: {error}") from error


def _sampling(file: GGUFFile) -> models.Sampling:
    """How tokens are chosen by default: greedy, where the file has none of these entries."""
    found = {name: file.get(key) for name, key in _SAMPLING.items()}
    given = {name: _decimal(value) for name, value in found.items() if value is not None}
    return generation_config.sampling({"do_sample": bool(given), "top_k": 0, **given})


def _count(file: GGUFFile, key: str, default: int | None) -> int | None:
    """A size that files may give for each layer.

    Raises:
      ValueError: it differs between layers.
    """
    value = file.get(key, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(
                f"{key} differs between layers, which is not supported: {checks.shortened(value)}."
            )
        value = value[0]
    return value


def _head_size(file: GGUFFile) -> int:
    heads = _count(file, "llama.attention.head_count", None) or 1
    return file.get("llama.attention.key_length", file.need("llama.embedding_length") // heads)


def _halves(array: np.ndarray, heads: int, where: str) -> np.ndarray:
    """Rows (heads x pairs x 2, ...) to (heads x 2 x pairs, ...)."""
    if array.shape[0] % (2 * heads):
        raise ValueError(f"{where} has {array.shape[0]} rows, no multiple of 2 x {heads} heads.")
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _scaling(file: GGUFFile, divisors: np.ndarray | None, base: float) -> tuple | None:
    """LLaMA 3's scaling of which a file holds the effect: a divisor for each frequency.

    Raises:
      ValueError: they are of another scaling.
    """
    if divisors is None:
        return None
    size = _head_size(file)
    waves = 2 * np.pi * base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factor = float(np.max(divisors))
    low, high, first = _LLAMA3
    blend = np.clip((first / waves - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - blend) / factor + blend)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise ValueError(
            f"{file.path}: {_FREQUENCIES} is not the scaling of rotary positions of LLaMA 3.1 "
            f"(factors {low:g} and {high:g}, {first} positions), which alone is supported."
        )
    return (factor, *_LLAMA3)


def _decimal(value: float) -> float:
    """A float32 of a file as the decimal that was written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
