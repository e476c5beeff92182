"""Gemma 2 and the text models of Gemma 3: norms before and after each part, windows in most layers.

"Gemma 2: Improving Open Language Models at a Practical Size" (2024); "Gemma 3" (2025).
"""

import dataclasses
from collections.abc import Mapping

from mpojax import models
from mpojax.checks import flag, integer, null, number
from mpojax.io.hf import llama
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only, token
from mpojax.io.hf.language_models import classes
from mpojax.io.hf.layer_kinds import (
    FULL,
    SLIDING,
    entries_of,
    rope,
    scaling_of,
    window_keys,
    windows,
)
from mpojax.io.hf.llama import LAYER, LLAMA
from mpojax.io.hf.names import Convert, norm

# Files hold how much a scale differs from 1.
_FROM_1 = Convert(read=lambda w, _: w + 1.0, write=lambda scale, _: scale - 1.0)
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0


def _norm(path: str):
    return norm(path, convert=_FROM_1)


def _scalar_of(config: models.DecoderConfig) -> int:
    """What attention scores are divided by the root of."""
    scale = config.attention_scale
    # Scores are scaled by scalar^(-1/2).
    return config.head_size if scale is None else round(scale**-2)


def _is_no_scalar(config: models.DecoderConfig) -> bool:
    scale = config.attention_scale
    return scale is not None and abs(_scalar_of(config) * scale**2 - 1.0) > 1e-6


_SCALES = (
    Joint(
        ("attention_scale",),
        lambda v: {"attention_scale": v["query_pre_attn_scalar"] ** -0.5},
        lambda config, _: {"query_pre_attn_scalar": _scalar_of(config)},
    ),
    Joint(("embedding_scale",), lambda v: {"embedding_scale": v["hidden_size"] ** 0.5}),
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    model_type="gemma2",
    classes=classes("Gemma2"),
    tensors={
        **{name: module for name, module in LLAMA.tensors.items() if "norm" not in name},
        "layers.{i}.input_layernorm": _norm(f"{LAYER}/attention_norm"),
        "layers.{i}.post_attention_layernorm": _norm(f"{LAYER}/attention_output_norm"),
        "layers.{i}.pre_feedforward_layernorm": _norm(f"{LAYER}/feed_forward_norm"),
        "layers.{i}.post_feedforward_layernorm": _norm(f"{LAYER}/feed_forward_output_norm"),
        "norm": _norm("final_norm"),
    },
    keys={
        **{name: entry for name, entry in llama.KEYS.items() if name != "hidden_act"},
        **keys(
            llama.max_positions(8192),
            key("num_key_value_heads", "num_kv_heads", 4),
            key("head_dim", "head_size", 256),
            activation("hidden_activation", "gelu_pytorch_tanh"),
            key("attention_bias", "attention_bias", False),
            key("attn_logit_softcapping", "score_softcap", 50.0, number(above=0.0) | null()),
            key("final_logit_softcapping", "logits_softcap", 30.0, number(above=0.0) | null()),
            extra("query_pre_attn_scalar", number(above=0.0), 256),
            extra("tie_word_embeddings", flag(), True),
            *window_keys(4096),
            token("pad_token_id", "pad_id", 0),
            token("eos_token_id", "eos_id", 1),
            token("bos_token_id", "bos_id", 2),
            only("use_bidirectional_attention", False, None),
        ),
    },
    joints=(
        rope(),
        llama.ONE_BIAS,
        windows(lambda layer, _: layer % 2 == 0),
        *_SCALES,
    ),
    fixed={**LLAMA.fixed, "feed_forward_bias": False, "output_norm": True},
    misfits=(
        *LLAMA.misfits,
        ("attention_scale={0.attention_scale}", _is_no_scalar),
        (
            "embedding_scale={0.embedding_scale}",
            lambda config: config.embedding_scale != config.hidden_size**0.5,
        ),
    ),
)


def _read_rope(values: Mapping) -> dict:
    """One base for layers with a window, another one and a scaling for the others.

    Raises:
      ValueError: a scaling of the layers with a window.
    """
    found = values["rope_parameters"] or {}
    local, whole = (dict(found.get(kind) or {}) for kind in (SLIDING, FULL))
    # Older files have one scaling, which is that of the layers without a window.
    whole |= values["rope_scaling"] or {}
    if scaling_of(local, values) is not None:
        raise ValueError(f"rope_type={local['rope_type']!r} of {SLIDING} (supported: default)")
    return {
        "local_rotary_base": local.get("rope_theta", values["rope_local_base_freq"]),
        "rotary_base": whole.get("rope_theta", values["rope_theta"]),
        "rotary_scaling": scaling_of(whole, values),
    }


def _write_rope(config: models.DecoderConfig, _) -> dict:
    scaling = entries_of(config)
    local = config.local_rotary_base or config.rotary_base
    return {
        "rope_theta": config.rotary_base,
        "rope_local_base_freq": local,
        "rope_scaling": scaling,
        "rope_parameters": {
            FULL: {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})},
            SLIDING: {"rope_theta": local, "rope_type": "default"},
        },
    }


GEMMA3 = dataclasses.replace(
    GEMMA2,
    model_type="gemma3_text",
    classes={**classes("Gemma3Text", "none", "classifier"), "lm": "Gemma3ForCausalLM"},
    tensors={
        **GEMMA2.tensors,
        **{name: _norm(module.paths[0]) for name, module in llama.QK_NORMS.items()},
    },
    keys={
        **GEMMA2.keys,
        **keys(
            llama.max_positions(131_072),
            only("attn_logit_softcapping", None),
            key("final_logit_softcapping", "logits_softcap", None, number(above=0.0) | null()),
            extra("rope_theta", number(above=0.0), _GLOBAL_BASE),
            extra("rope_local_base_freq", number(above=0.0), _LOCAL_BASE),
            extra("sliding_window_pattern", integer(1), 6),
        ),
    },
    joints=(
        Joint(("rotary_base", "rotary_scaling", "local_rotary_base"), _read_rope, _write_rope),
        llama.ONE_BIAS,
        windows(lambda layer, v: (layer + 1) % v["sliding_window_pattern"] != 0),
        *_SCALES,
    ),
    fixed={**GEMMA2.fixed, "qk_norm": "head"},
    misfits=(
        *GEMMA2.misfits,
        (
            "rotary_scaling of layers with a window (local_rotary_base=None)",
            lambda c: c.rotary_scaling and c.sliding_window and c.local_rotary_base is None,
        ),
    ),
)
