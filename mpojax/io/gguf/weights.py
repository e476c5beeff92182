"""LLaMA models of GGUF files -> (settings, flat dict of arrays).

Quantised weights become float32, so that they can be trained and decomposed.
"""

import os
from collections.abc import Mapping

import numpy as np

from mpojax import models
from mpojax.checks import integer, number
from mpojax.io import generation_config
from mpojax.io.gguf.reader import GGUFFile
from mpojax.io.hf import names
from mpojax.io.hf.family import Description, Joint, extra, key, keys, only
from mpojax.io.hf.llama import LLAMA as LLAMA_OF_TRANSFORMERS
from mpojax.io.hf.names import Convert, linear, norm, table
from mpojax.io.weights import check_depth
from mpojax.models.arrays import check_finite

_FREQUENCIES = "rope_freqs.weight"
# Low and high frequency factors and first positions of LLaMA 3.1 to 3.3; files hold their effect.
_LLAMA3 = (1.0, 4.0, 8192)
_SIZE = integer(1, 2**31 - 1)
# A number, or one for each layer.
_COUNT = _SIZE.noted("the same in all layers")
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


def _pairs_to_halves(heads: str) -> Convert:
    """The order of a head's rotated features: llama.cpp turns pairs of neighbours, we turn halves.

    See `permute` of `LlamaModel` in its conversion/llama.py. `heads` is a field of the config.
    """

    def read(array: np.ndarray, config: models.DecoderConfig) -> np.ndarray:
        # (..., heads, head_size / 2, 2) -> (..., heads, 2, head_size / 2)
        pairs = array.reshape(*array.shape[:-1], getattr(config, heads), -1, 2)
        return pairs.swapaxes(-1, -2).reshape(array.shape)

    def write(array: np.ndarray, config: models.DecoderConfig) -> np.ndarray:
        # The way back: (..., heads, 2, head_size / 2) -> (..., heads, head_size / 2, 2)
        halves = array.reshape(*array.shape[:-1], getattr(config, heads), 2, -1)
        return halves.swapaxes(-1, -2).reshape(array.shape)

    return Convert(read, write)


def _sampling(values: Mapping) -> dict:
    """How tokens are chosen by default: greedy, where the file has none of these entries."""
    given = {name: values[key] for name, key in _SAMPLING.items() if values[key] is not None}
    # `sampling` fills in transformers' 50 where there is no top_k; 0 turns that off.
    chosen = generation_config.sampling({"do_sample": bool(given), "top_k": 0, **given})
    return {"sampling": chosen}


def _head_size(values: Mapping) -> int:
    return values["llama.attention.key_length"] or (
        values["llama.embedding_length"] // values["llama.attention.head_count"]
    )


def _check_head_sizes(values: Mapping) -> dict:
    size = _head_size(values)
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if values[name] not in (None, size):
            raise ValueError(f"{name}={values[name]} (supported: the head size, {size})")
    return {}


LLAMA = Description(
    config_class=models.DecoderConfig,
    fixed={
        **LLAMA_OF_TRANSFORMERS.fixed,
        "activation": "silu",
        "attention_dropout": 0.0,
    },
    tensors={
        "token_embd": table("embeddings/word"),
        "blk.{i}.attn_norm": norm("layers/{i}/attention_norm"),
        "blk.{i}.ffn_norm": norm("layers/{i}/feed_forward_norm"),
        "blk.{i}.attn_q": linear(
            "layers/{i}/attention/query", convert=_pairs_to_halves("num_heads")
        ),
        "blk.{i}.attn_k": linear(
            "layers/{i}/attention/key", convert=_pairs_to_halves("num_kv_heads")
        ),
        "blk.{i}.attn_v": linear("layers/{i}/attention/value"),
        "blk.{i}.attn_output": linear("layers/{i}/attention/out"),
        "blk.{i}.ffn_gate": linear("layers/{i}/feed_forward/gate"),
        "blk.{i}.ffn_up": linear("layers/{i}/feed_forward/up"),
        "blk.{i}.ffn_down": linear("layers/{i}/feed_forward/down"),
        "output_norm": norm("final_norm"),
        "output": linear("head"),
    },
    keys=keys(
        key("llama.embedding_length", "hidden_size", allowed=_SIZE),
        key("llama.block_count", "num_layers", allowed=integer(1, 10_000)),
        key("llama.context_length", "max_positions", allowed=_SIZE),
        key("llama.attention.head_count", "num_heads", allowed=_COUNT),
        key("llama.attention.head_count_kv", "num_kv_heads", None, _COUNT),
        key("llama.attention.key_length", "head_size", None, _SIZE),
        key("llama.feed_forward_length", "intermediate_size", allowed=_COUNT),
        key("llama.attention.layer_norm_rms_epsilon", "norm_eps", allowed=number(above=0.0)),
        key("llama.rope.freq_base", "rotary_base", 10_000.0, number(above=0.0)),
        extra("llama.attention.value_length", _SIZE),
        extra("llama.rope.dimension_count", _SIZE),
        extra("llama.attention.sliding_window", integer(), 0),
        *(extra(name, integer()) for group in _TOKENS.values() for name in group),
        *(extra(name, number()) for name in _SAMPLING.values()),
        only("llama.expert_count", 0),
        only("llama.rope.scaling.type", "none"),
        # Of older files, and of linear scaling without a type.
        only("llama.rope.scale_linear", 1, 0),
        only("llama.rope.scaling.factor", 1, 0),
        only("llama.attention.causal", True),
    ),
    joints=(Joint(("sampling",), _sampling), Joint(read=_check_head_sizes)),
    refused=(
        (
            "llama.attention.sliding_window={0[llama.attention.sliding_window]} (supported: 0)",
            lambda v: 0 < v["llama.attention.sliding_window"] < v["llama.context_length"],
        ),
    ),
)


def import_file(path: str | os.PathLike, check: bool = True) -> tuple[models.DecoderConfig, dict]:
    """Settings and arrays of a GGUF file, dequantised once and held in memory.

    Args:
      path: of the file.
      check: False does neither: each array is dequantised when it is read.

    Raises:
      ImportError: the package gguf is not installed.
      FileNotFoundError: no such file.
      ValueError: an unsupported architecture, setting or quantisation, a damaged file, non-finite
        weights, or tensors that are missing, unexpected or of another shape.
    """
    file = GGUFFile(path)
    source = str(file.path)
    if (architecture := file.need("general.architecture")) != "llama":
        raise ValueError(
            f"{source} holds a model of architecture {architecture!r}, which is not supported; of "
            "GGUF files only 'llama' is."
        )
    values = LLAMA.values(_content(file), source)
    tensors = file.tensors()
    if check:
        tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
        check_finite(tensors, source)
    settings = LLAMA.settings(values, source) | _of_tensors(values, tensors, source)
    config = LLAMA.config(settings, source)
    check_depth(config, tensors, source)
    shapes = models.array_shapes(config)
    return config, names.read(LLAMA.tensors_of(config, shapes), tensors, shapes, config, source)


def _content(file: GGUFFile) -> dict:
    """What a file says about the keys of the description."""
    found = {name: file.get(name) for name in LLAMA.keys}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _plain(value):
    """One number for equal ones of all layers; a float32 as the decimal that was written.

    That is 1e-05, not 9.999999747378752e-06.
    """
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            value = float(str(np.float32(value)))
    return value


def _of_tensors(values: Mapping, tensors: dict, source: str) -> dict:
    """Settings that the tensors decide; takes the frequencies out of them."""
    vocab_size = len(tensors.get("token_embd.weight", ()))
    frequencies = tensors.pop(_FREQUENCIES, None)
    frequencies = None if frequencies is None else np.asarray(frequencies)
    found = {
        "vocab_size": vocab_size,
        "tied": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in tensors,
        "feed_forward_bias": "blk.0.ffn_up.bias" in tensors,
        "rotary_scaling": _scaling(values, frequencies, source),
    }
    for field, names_of_it in _TOKENS.items():
        ids = [values[name] for name in names_of_it]
        found[field] = generation_config.token_ids(f"{field[:3]}_token_id", ids, vocab_size)
    return found


def _scaling(values: Mapping, divisors: np.ndarray | None, source: str) -> tuple | None:
    """LLaMA 3's scaling of which a file holds the effect: a divisor for each frequency.

    Raises:
      ValueError: they are of another scaling.
    """
    if divisors is None:
        return None
    size, base = _head_size(values), values["llama.rope.freq_base"]
    # Positions of a whole turn of pair i: lambda_i = 2 pi base^(2 i / size).
    wavelengths = 2 * np.pi * base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    # The slowest pairs (b = 0 below) are divided by the whole factor.
    factor = float(np.max(divisors))
    low, high, first = _LLAMA3
    # b = 0 below `low` turns in the first positions, 1 above `high`; the frequency is
    # (1 - b) f / factor + b f, so its divisor is 1 / ((1 - b) / factor + b).
    blend = np.clip((first / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - blend) / factor + blend)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise ValueError(
            f"{source}: {_FREQUENCIES} is not the scaling of rotary positions of LLaMA 3.1 "
            f"(factors {low:g} and {high:g}, {first} positions), which alone is supported."
        )
    return (factor, *_LLAMA3)
