"""LLaMA 1 to 3 and its like: Mistral without a sliding window, Qwen2."""

import dataclasses
from collections.abc import Mapping

from mpojax import checks, models
from mpojax.checks import anything, flag, integer, mapping, null, number, sequence, text
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only, token
from mpojax.io.hf.language_models import LanguageFamily
from mpojax.io.hf.names import linear, norm, table

_SCALING = (
    *("factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
)
_ROPE_FIELDS = {
    **dict.fromkeys((*_SCALING, "rope_theta", "partial_rotary_factor"), number() | null()),
    **dict.fromkeys(("rope_type", "type"), text(100)),
}


def _read_rope(values: Mapping) -> dict:
    """Base and scaling of rotary positions; newer files keep both in `rope_parameters`.

    Raises:
      ValueError: a scaling other than that of LLaMA 3.
    """
    rope = values["rope_scaling"] or values["rope_parameters"] or {}
    checks.check(rope, _ROPE_FIELDS, "rotary positions")
    base, part = (rope.get(n, values[n]) for n in ("rope_theta", "partial_rotary_factor"))
    base = 10_000.0 if base is None else base
    if part not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor={part!r} (supported: 1.0)")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rotary_base": base, "rotary_scaling": None}
    if kind != "llama3":
        raise ValueError(f"rope_type={kind!r} of rotary positions (supported: default, llama3)")
    rope = {_SCALING[-1]: values["max_position_embeddings"], **rope}
    if missing := [name for name in _SCALING if rope.get(name) is None]:
        raise ValueError(f"rope_type='llama3' without {', '.join(missing)}")
    return {"rotary_base": base, "rotary_scaling": tuple(rope[name] for name in _SCALING)}


def _write_rope(config: models.DecoderConfig, _) -> dict:
    """The keys of old and of new files, for both versions of transformers."""
    base, scaling = config.rotary_base, None
    if config.rotary_scaling is not None:
        scaling = dict(zip(_SCALING, config.rotary_scaling, strict=True)) | {"rope_type": "llama3"}
    parameters = {"rope_theta": base, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": base, "rope_scaling": scaling, "rope_parameters": parameters}


ROPE = Joint(("rotary_base", "rotary_scaling"), _read_rope, _write_rope)
_KEYS = keys(
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
    *(extra(name, mapping(anything()) | null()) for name in ("rope_scaling", "rope_parameters")),
    *(extra(name, number() | null()) for name in ("rope_theta", "partial_rotary_factor")),
    token("bos_token_id", "bos_id", 1),
    token("eos_token_id", "eos_id", 2),
    token("pad_token_id", "pad_id"),
    only("quantization_config", None),
)
_WINDOW = extra("sliding_window", integer() | null(), 4096)


def _is_windowed(values: Mapping) -> bool:
    """True if attention reaches less far than the longest sequence."""
    window = values["sliding_window"]
    return window is not None and window < values["max_position_embeddings"]


_LAYER = "layers/{i}"
_UNEVEN = (
    "hidden_size={0.hidden_size} is no multiple of num_heads={0.num_heads}",
    lambda config: config.hidden_size % config.num_heads != 0,
)
LLAMA = LanguageFamily(
    model_type="llama",
    classes={"lm": "LlamaForCausalLM"},
    prefix="model.",
    embedding="embed_tokens.weight",
    ignored_buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    tensors={
        "embed_tokens": table("embeddings/word"),
        "layers.{i}.input_layernorm": norm(f"{_LAYER}/attention_norm"),
        "layers.{i}.post_attention_layernorm": norm(f"{_LAYER}/feed_forward_norm"),
        "layers.{i}.self_attn.q_proj": linear(f"{_LAYER}/attention/query"),
        "layers.{i}.self_attn.k_proj": linear(f"{_LAYER}/attention/key"),
        "layers.{i}.self_attn.v_proj": linear(f"{_LAYER}/attention/value"),
        "layers.{i}.self_attn.o_proj": linear(f"{_LAYER}/attention/out"),
        "layers.{i}.mlp.gate_proj": linear(f"{_LAYER}/feed_forward/gate"),
        "layers.{i}.mlp.up_proj": linear(f"{_LAYER}/feed_forward/up"),
        "layers.{i}.mlp.down_proj": linear(f"{_LAYER}/feed_forward/down"),
        "norm": norm("final_norm"),
    },
    keys={
        **_KEYS,
        **keys(
            key("max_position_embeddings", "max_positions", 2048),
            key("attention_bias", "attention_bias", False),
            key("mlp_bias", "feed_forward_bias", False),
        ),
    },
    joints=(
        ROPE,
        Joint(("attention_out_bias",), lambda v: {"attention_out_bias": v["attention_bias"]}),
    ),
    fixed={
        "positions": "rotary",
        "norm": "rms_norm",
        "gated": True,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
    },
    misfits=(
        _UNEVEN,
        (
            "attention_bias={0.attention_bias} with attention_out_bias={0.attention_out_bias}",
            lambda config: config.attention_bias != config.attention_out_bias,
        ),
    ),
)

_NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "feed_forward_bias"), False)
MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    classes={"lm": "MistralForCausalLM"},
    keys={
        **_KEYS,
        **keys(
            key("max_position_embeddings", "max_positions", 131_072),
            key("num_key_value_heads", "num_kv_heads", 8, integer(1) | null()),
            _WINDOW,
        ),
    },
    joints=(ROPE, Joint(write=lambda *_: {"sliding_window": None})),
    fixed={**LLAMA.fixed, **_NO_BIASES},
    misfits=(_UNEVEN,),
    refused=(
        (
            "sliding_window below max_position_embeddings (supported: null; its default is 4096)",
            _is_windowed,
        ),
    ),
)
QWEN2 = dataclasses.replace(
    MISTRAL,
    model_type="qwen2",
    classes={"lm": "Qwen2ForCausalLM"},
    keys={
        **_KEYS,
        **keys(
            key("max_position_embeddings", "max_positions", 32_768),
            key("num_key_value_heads", "num_kv_heads", 32, integer(1) | null()),
            _WINDOW,
            extra("use_sliding_window", flag(), False),
            extra("layer_types", sequence(text(100)) | null()),
            token("bos_token_id", "bos_id"),
            token("eos_token_id", "eos_id"),
        ),
    },
    joints=(
        ROPE,
        Joint(
            write=lambda config, _: {
                "use_sliding_window": False,
                "layer_types": ["full_attention"] * config.num_layers,
            }
        ),
    ),
    fixed={**MISTRAL.fixed, "attention_bias": True},
    refused=(
        (
            "use_sliding_window=True with a sliding_window below max_position_embeddings",
            lambda values: values["use_sliding_window"] and _is_windowed(values),
        ),
        (
            "layer_types other than full_attention",
            lambda values: set(values["layer_types"] or ()) - {"full_attention"},
        ),
    ),
)
