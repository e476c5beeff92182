"""Names and settings of LLaMA checkpoints and their like (Mistral, Qwen2), as data."""

import dataclasses
from collections.abc import Mapping

from mpojax import checks, models
from mpojax.checks import anything, flag, integer, mapping, null, number, sequence, text
from mpojax.io.hf.architectures import linear, rows
from mpojax.io.hf.language_architectures import LanguageArchitecture, activation, activation_name

_THEIRS, _OURS = "layers.{i}", "layers/{i}"
_ROPE_KEYS = (
    *("factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
)
_ROPE_TYPES = {
    **dict.fromkeys((*_ROPE_KEYS, "rope_theta", "partial_rotary_factor"), number() | null()),
    "rope_type": text(100),
    "type": text(100),
}
_TYPES = {
    "hidden_act": text(100),
    "num_key_value_heads": integer(1) | null(),
    "head_dim": integer(1) | null(),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), mapping(anything()) | null()),
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), number() | null()),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), flag() | null()),
    "sliding_window": integer() | null(),
    "layer_types": sequence(text(100)) | null(),
}


def _rope(values: Mapping) -> dict:
    """Base and scaling of rotary positions; newer files keep both in `rope_parameters`.

    Raises:
      ValueError: a scaling other than that of LLaMA 3.
    """
    settings = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if problems := checks.problems(settings, _ROPE_TYPES):
        raise ValueError(f"rotary positions: {'; '.join(problems)}")
    base = settings.get("rope_theta", values.get("rope_theta"))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type={kind!r} of rotary positions (supported: default, llama3)")
    part = settings.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor={part!r} (supported: 1.0)")
    scaling = None
    if kind == "llama3":
        whole = {_ROPE_KEYS[-1]: values["max_position_embeddings"], **settings}
        if missing := [key for key in _ROPE_KEYS if whole.get(key) is None]:
            raise ValueError(f"rope_type='llama3' without {', '.join(missing)}")
        scaling = tuple(whole[key] for key in _ROPE_KEYS)
    return {"rotary_base": 10_000.0 if base is None else base, "rotary_scaling": scaling}


def _write_rope(config: models.DecoderConfig) -> dict:
    """The keys of old and of new files, for both versions of transformers."""
    scaling = None
    if config.rotary_scaling is not None:
        scaling = dict(zip(_ROPE_KEYS, config.rotary_scaling, strict=True))
        scaling["rope_type"] = "llama3"
    parameters = {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})}
    return {
        "rope_theta": config.rotary_base,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
    }


def _read(values: Mapping) -> dict:
    return {
        **_rope(values),
        "num_kv_heads": values["num_key_value_heads"],
        "head_size": values["head_dim"],
        "activation": activation("hidden_act", values["hidden_act"]),
    }


def _read_llama(values: Mapping) -> dict:
    attention = bool(values["attention_bias"])
    return {
        **_read(values),
        "attention_bias": attention,
        "attention_out_bias": attention,
        "feed_forward_bias": bool(values["mlp_bias"]),
    }


def _misfits(config: models.DecoderConfig) -> list[str]:
    if config.hidden_size % config.num_heads:
        return [f"hidden_size={config.hidden_size} is no multiple of num_heads={config.num_heads}"]
    return []


def _llama_misfits(config: models.DecoderConfig) -> list[str]:
    wrong = _misfits(config)
    if config.attention_bias != config.attention_out_bias:
        wrong.append(
            f"attention_bias={config.attention_bias} with attention_out_bias="
            f"{config.attention_out_bias}"
        )
    return wrong


def _write(config: models.DecoderConfig, source: Mapping) -> dict:
    return {
        **_write_rope(config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": activation_name(config.activation, source.get("hidden_act", "")),
    }


def _write_llama(config: models.DecoderConfig, source: Mapping) -> dict:
    return {
        **_write(config, source),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
    }


def _is_windowed(values: Mapping) -> bool:
    """True if attention reaches less far than the longest sequence."""
    window = values["sliding_window"]
    return window is not None and window < values["max_position_embeddings"]


_ROWS = rows(
    (("embed_tokens.weight", "embeddings/word/table", "same"),),
    (
        (f"{_THEIRS}.input_layernorm.weight", f"{_OURS}/attention_norm/scale", "same"),
        (f"{_THEIRS}.post_attention_layernorm.weight", f"{_OURS}/feed_forward_norm/scale", "same"),
    ),
    linear(f"{_THEIRS}.self_attn.q_proj", f"{_OURS}/attention/query"),
    linear(f"{_THEIRS}.self_attn.k_proj", f"{_OURS}/attention/key"),
    linear(f"{_THEIRS}.self_attn.v_proj", f"{_OURS}/attention/value"),
    linear(f"{_THEIRS}.self_attn.o_proj", f"{_OURS}/attention/out"),
    linear(f"{_THEIRS}.mlp.gate_proj", f"{_OURS}/feed_forward/gate"),
    linear(f"{_THEIRS}.mlp.up_proj", f"{_OURS}/feed_forward/up"),
    linear(f"{_THEIRS}.mlp.down_proj", f"{_OURS}/feed_forward/down"),
    (
        ("norm.weight", "final_norm/scale", "same"),
        ("lm_head.weight", "head/kernel", "transpose"),
    ),
)
_DERIVED = ("rotary_base", "rotary_scaling", "num_kv_heads", "head_size", "activation")
_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}

LLAMA = LanguageArchitecture(
    model_type="llama",
    kind=models.DecoderConfig,
    classes=("LlamaForCausalLM",),
    headless=(),
    prefix="model.",
    rows={True: _ROWS},
    table="embed_tokens.weight",
    copies=("lm_head.weight",),
    harmless=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_positions",
        "rms_norm_eps": "norm_eps",
        "attention_dropout": "attention_dropout",
    },
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    ids={
        "bos_token_id": ("bos_id", 1),
        "eos_token_id": ("eos_id", 2),
        "pad_token_id": ("pad_id", None),
    },
    types=_TYPES,
    fixed={
        "positions": "rotary",
        "norm": "rms_norm",
        "gated": True,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
    },
    required={"quantization_config": (None,)},
    read=_read_llama,
    derived=(*_DERIVED, "attention_bias", "attention_out_bias", "feed_forward_bias"),
    misfits=_llama_misfits,
    write=_write_llama,
)

_NO_BIASES = {"attention_bias": False, "attention_out_bias": False, "feed_forward_bias": False}
MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    classes=("MistralForCausalLM",),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    fixed={**LLAMA.fixed, **_NO_BIASES},
    read=_read,
    derived=_DERIVED,
    misfits=_misfits,
    write=lambda config, source: {**_write(config, source), "sliding_window": None},
    refused=(
        (
            "sliding_window below max_position_embeddings (supported: null; its default is 4096)",
            _is_windowed,
        ),
    ),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    classes=("Qwen2ForCausalLM",),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    ids={
        "bos_token_id": ("bos_id", None),
        "eos_token_id": ("eos_id", None),
        "pad_token_id": ("pad_id", None),
    },
    fixed={**LLAMA.fixed, **_NO_BIASES, "attention_bias": True},
    read=_read,
    derived=_DERIVED,
    misfits=_misfits,
    write=lambda config, source: {
        **_write(config, source),
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * config.num_layers,
    },
    refused=(
        (
            "use_sliding_window=True with a sliding_window below max_position_embeddings",
            lambda values: bool(values["use_sliding_window"]) and _is_windowed(values),
        ),
        (
            "layer_types other than full_attention",
            lambda values: bool(set(values.get("layer_types") or ()) - {"full_attention"}),
        ),
    ),
)
