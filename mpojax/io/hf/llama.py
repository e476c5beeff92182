"""LLaMA 1 to 3 and its like: Mistral, Qwen2 and 3, SmolLM3, OLMo-2, Phi-3 and 4."""

import dataclasses
import re
from collections.abc import Mapping

from mpojax import models
from mpojax.checks import flag, integer, null, sequence
from mpojax.io.hf.family import Joint, Key, activation, extra, key, keys, only, token
from mpojax.io.hf.language_models import LanguageFamily, classes
from mpojax.io.hf.layer_kinds import rope, rope_keys, window_keys, windows
from mpojax.io.hf.names import linear, norm, table

KEYS = keys(
    key("vocab_size"),
    key("hidden_size"),
    key("num_hidden_layers", "num_layers"),
    key("num_attention_heads", "num_heads"),
    key("num_key_value_heads", "num_kv_heads", None, integer(1) | null()),
    key("head_dim", "head_size", None, integer(1) | null()),
    key("intermediate_size"),
    activation("hidden_act", "silu"),
    key("rms_norm_eps", "norm_eps", 1e-6),
    key("attention_dropout", "attention_dropout", 0.0),
    extra("tie_word_embeddings", flag(), False),
    *rope_keys(),
    token("bos_token_id", "bos_id", 1),
    token("eos_token_id", "eos_id", 2),
    token("pad_token_id", "pad_id"),
    only("quantization_config", None),
)
LAYER = "layers/{i}"
_UNEVEN = (
    "hidden_size={0.hidden_size} is no multiple of num_heads={0.num_heads}",
    lambda config: config.hidden_size % config.num_heads != 0,
)
_TWO_BIASES = (
    "attention_bias={0.attention_bias} with attention_out_bias={0.attention_out_bias}",
    lambda config: config.attention_bias != config.attention_out_bias,
)
# All four maps of attention have biases, or none.
ONE_BIAS = Joint(("attention_out_bias",), lambda v: {"attention_out_bias": v["attention_bias"]})
_NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "feed_forward_bias"), False)
QK_NORMS = {
    "layers.{i}.self_attn.q_norm": norm(f"{LAYER}/attention/query_norm"),
    "layers.{i}.self_attn.k_norm": norm(f"{LAYER}/attention/key_norm"),
}


def max_positions(default: int) -> Key:
    """The longest sequence."""
    return key("max_position_embeddings", "max_positions", default)


def _read_no_rope(values: Mapping) -> dict:
    """The layers without rotary positions; 1 in the list stands for one that has them."""
    layers = range(values["num_hidden_layers"])
    interval = values["no_rope_layer_interval"]
    # By the interval: 0, so none, in every `interval`-th layer; any other remainder counts as 1.
    has_rope = values["no_rope_layers"] or [(layer + 1) % interval for layer in layers]
    if len(has_rope) < len(layers):
        raise ValueError(f"no_rope_layers has {len(has_rope)} entries for {len(layers)} layers")
    return {"no_rope_layers": tuple(layer for layer in layers if not has_rope[layer])}


def _write_no_rope(config: models.DecoderConfig, _) -> dict:
    without = config.no_rope_layers
    return {"no_rope_layers": [int(layer not in without) for layer in range(config.num_layers)]}


def _slides_above(layer: int, values: Mapping) -> bool:
    """In the upper layers of Qwen2 and 3."""
    return layer >= values["max_window_layers"]


LLAMA = LanguageFamily(
    model_type="llama",
    classes=classes("Llama"),
    prefix="model.",
    embedding="embed_tokens.weight",
    ignored_buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    tensors={
        "embed_tokens": table("embeddings/word"),
        "layers.{i}.input_layernorm": norm(f"{LAYER}/attention_norm"),
        "layers.{i}.post_attention_layernorm": norm(f"{LAYER}/feed_forward_norm"),
        "layers.{i}.self_attn.q_proj": linear(f"{LAYER}/attention/query"),
        "layers.{i}.self_attn.k_proj": linear(f"{LAYER}/attention/key"),
        "layers.{i}.self_attn.v_proj": linear(f"{LAYER}/attention/value"),
        "layers.{i}.self_attn.o_proj": linear(f"{LAYER}/attention/out"),
        "layers.{i}.mlp.gate_proj": linear(f"{LAYER}/feed_forward/gate"),
        "layers.{i}.mlp.up_proj": linear(f"{LAYER}/feed_forward/up"),
        "layers.{i}.mlp.down_proj": linear(f"{LAYER}/feed_forward/down"),
        "norm": norm("final_norm"),
    },
    keys={
        **KEYS,
        **keys(
            max_positions(2048),
            key("attention_bias", "attention_bias", False),
            key("mlp_bias", "feed_forward_bias", False),
        ),
    },
    joints=(rope(), ONE_BIAS),
    fixed={
        "positions": "rotary",
        "norm": "rms_norm",
        "gated": True,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
    },
    misfits=(_UNEVEN, _TWO_BIASES),
)
MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    classes=classes("Mistral"),
    keys={
        **KEYS,
        **keys(
            max_positions(131_072),
            key("num_key_value_heads", "num_kv_heads", 8, integer(1) | null()),
            key("sliding_window", "sliding_window", 4096, integer(1) | null()),
        ),
    },
    joints=(rope(),),
    fixed={**LLAMA.fixed, **_NO_BIASES},
    misfits=(_UNEVEN,),
)
_OF_QWEN = keys(
    max_positions(32_768),
    key("num_key_value_heads", "num_kv_heads", 32, integer(1) | null()),
    *window_keys(4096, is_switched=True),
    extra("max_window_layers", integer(0), 28),
    token("bos_token_id", "bos_id"),
    token("eos_token_id", "eos_id"),
)
QWEN2 = dataclasses.replace(
    MISTRAL,
    model_type="qwen2",
    classes=classes("Qwen2"),
    keys={**KEYS, **_OF_QWEN},
    joints=(rope(), windows(_slides_above, is_switched=True)),
    fixed={**MISTRAL.fixed, "attention_bias": True},
)
QWEN3 = dataclasses.replace(
    QWEN2,
    model_type="qwen3",
    classes=classes("Qwen3"),
    tensors={**LLAMA.tensors, **QK_NORMS},
    keys={
        **QWEN2.keys,
        **keys(
            key("head_dim", "head_size", 128),
            key("attention_bias", "attention_bias", False),
        ),
    },
    joints=(*QWEN2.joints, ONE_BIAS),
    fixed={**LLAMA.fixed, "feed_forward_bias": False, "qk_norm": "head"},
    misfits=(_TWO_BIASES,),
)
SMOLLM3 = dataclasses.replace(
    LLAMA,
    model_type="smollm3",
    classes=classes("SmolLM3"),
    keys={
        **LLAMA.keys,
        **keys(
            max_positions(32_768),
            key("num_key_value_heads", "num_kv_heads", 4, integer(1) | null()),
            extra("tie_word_embeddings", flag(), True),
            extra("no_rope_layers", sequence(integer(0, 1)) | null()),
            extra("no_rope_layer_interval", integer(1), 4),
            *window_keys(None, is_switched=True),
            token("bos_token_id", "bos_id", 128_000),
            token("eos_token_id", "eos_id", 128_001),
            token("pad_token_id", "pad_id", 128_004),
        ),
    },
    joints=(
        rope(2_000_000.0),
        ONE_BIAS,
        Joint(("no_rope_layers",), _read_no_rope, _write_no_rope),
        windows(lambda layer, v: layer in _read_no_rope(v)["no_rope_layers"], is_switched=True),
    ),
)
# No norm before a part: post_attention_layernorm, which in LLaMA comes before the feed-forward
# block, is here of the output of attention.
OLMO2 = dataclasses.replace(
    LLAMA,
    model_type="olmo2",
    classes=classes("Olmo2", "lm", "none", "classifier"),
    tensors={
        **{n: t for n, t in LLAMA.tensors.items() if not n.endswith("layernorm")},
        **QK_NORMS,
        "layers.{i}.post_attention_layernorm": norm(f"{LAYER}/attention_output_norm"),
        "layers.{i}.post_feedforward_layernorm": norm(f"{LAYER}/feed_forward_output_norm"),
    },
    keys={
        **KEYS,
        **keys(
            max_positions(2048),
            key("attention_bias", "attention_bias", False),
            key("rms_norm_eps", "norm_eps", 1e-5),
            token("bos_token_id", "bos_id"),
            token("eos_token_id", "eos_id", 50_279),
            token("pad_token_id", "pad_id", 1),
        ),
    },
    fixed={
        **LLAMA.fixed,
        "feed_forward_bias": False,
        "qk_norm": "whole",
        "pre_norm": False,
        "output_norm": True,
    },
)
PHI3 = dataclasses.replace(
    LLAMA,
    model_type="phi3",
    classes=classes("Phi3"),
    tensors={
        **{n: t for n, t in LLAMA.tensors.items() if not re.search(r"\.([qkv]|gate|up)_proj", n)},
        "layers.{i}.self_attn.qkv_proj": linear(
            *(f"{LAYER}/attention/{name}" for name in ("query", "key", "value"))
        ),
        "layers.{i}.mlp.gate_up_proj": linear(
            *(f"{LAYER}/feed_forward/{name}" for name in ("gate", "up"))
        ),
    },
    keys={
        **KEYS,
        **keys(
            max_positions(4096),
            key("rms_norm_eps", "norm_eps", 1e-5),
            key("sliding_window", "sliding_window", None, integer(1) | null()),
            key("resid_pdrop", "dropout", 0.0),
            key("embd_pdrop", "embedding_dropout", 0.0),
            token("eos_token_id", "eos_id", 32_000),
            token("pad_token_id", "pad_id", 32_000),
        ),
    },
    joints=(rope(fraction=1.0, types=("longrope",)),),
    fixed={"positions": "rotary", "norm": "rms_norm", "gated": True, **_NO_BIASES},
    misfits=(),
)
