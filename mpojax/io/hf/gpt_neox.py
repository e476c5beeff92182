"""GPT-NeoX and Pythia, and OPT: decoders with layer norms and biases, as GPT-2 is."""

import numpy as np

from mpojax import models
from mpojax.checks import flag, integer, null
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only, token
from mpojax.io.hf.language_models import LanguageFamily, classes, heads
from mpojax.io.hf.layer_kinds import rope, rope_keys
from mpojax.io.hf.names import Convert, linear, norm, table

_LAYER = "layers/{i}"
_QKV = tuple(f"{_LAYER}/attention/{name}" for name in ("query", "key", "value"))
# What transformers takes by default, and has no setting for.
_HEADS = Joint(("num_kv_heads", "head_size"))
_MISFITS = (
    ("num_kv_heads={0.num_kv_heads}", lambda c: c.num_kv_heads != c.num_heads),
    ("head_size={0.head_size}", lambda c: c.num_heads * c.head_size != c.hidden_size),
)


def _heads_first(array: np.ndarray, config: models.DecoderConfig) -> np.ndarray:
    """Features in the order (head, query or key or value, entry) -> (q or k or v, head, entry)."""
    parts = array.reshape(*array.shape[:-1], config.num_heads, 3, config.head_size)
    return parts.swapaxes(-3, -2).reshape(array.shape)


def _heads_last(array: np.ndarray, config: models.DecoderConfig) -> np.ndarray:
    parts = array.reshape(*array.shape[:-1], 3, config.num_heads, config.head_size)
    return parts.swapaxes(-3, -2).reshape(array.shape)


GPT_NEOX = LanguageFamily(
    model_type="gpt_neox",
    classes=classes("GPTNeoX"),
    prefix="gpt_neox.",
    embedding="embed_in.weight",
    heads=heads("embed_out", "classifier"),
    ignored_buffers=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    tensors={
        "embed_in": table("embeddings/word"),
        "layers.{i}.input_layernorm": norm(f"{_LAYER}/attention_norm"),
        "layers.{i}.attention.query_key_value": linear(
            *_QKV, convert=Convert(_heads_first, _heads_last)
        ),
        "layers.{i}.attention.dense": linear(f"{_LAYER}/attention/out"),
        "layers.{i}.post_attention_layernorm": norm(f"{_LAYER}/feed_forward_norm"),
        "layers.{i}.mlp.dense_h_to_4h": linear(f"{_LAYER}/feed_forward/up"),
        "layers.{i}.mlp.dense_4h_to_h": linear(f"{_LAYER}/feed_forward/down"),
        "final_layer_norm": norm("final_norm"),
    },
    keys=keys(
        key("vocab_size"),
        key("hidden_size"),
        key("num_hidden_layers", "num_layers"),
        key("num_attention_heads", "num_heads"),
        key("intermediate_size"),
        key("max_position_embeddings", "max_positions", 2048),
        activation("hidden_act", "gelu"),
        key("layer_norm_eps", "norm_eps", 1e-5),
        key("use_parallel_residual", "parallel_residual", True),
        key("attention_bias", "attention_bias", True),
        key("attention_dropout", "attention_dropout", 0.0),
        key("hidden_dropout", "dropout", 0.0),
        extra("tie_word_embeddings", flag(), False),
        *rope_keys("rotary_emb_base", "rotary_pct"),
        token("bos_token_id", "bos_id", 0),
        token("eos_token_id", "eos_id", 2),
        token("pad_token_id", "pad_id"),
        only("quantization_config", None),
    ),
    joints=(
        rope(fraction=0.25, old=("rotary_emb_base", "rotary_pct")),
        Joint(("attention_out_bias",), lambda v: {"attention_out_bias": v["attention_bias"]}),
        Joint(("embedding_dropout",), lambda v: {"embedding_dropout": v["hidden_dropout"]}),
        _HEADS,
    ),
    fixed={"positions": "rotary"},
    misfits=(
        *_MISFITS,
        (
            "attention_bias={0.attention_bias} with attention_out_bias={0.attention_out_bias}",
            lambda config: config.attention_bias != config.attention_out_bias,
        ),
    ),
)

OPT = LanguageFamily(
    model_type="opt",
    classes=classes("OPT", "lm", "none", "classifier"),
    prefix="model.",
    embedding="decoder.embed_tokens.weight",
    ignored_buffers=r"decoder\.version",
    tensors={
        "decoder.embed_tokens": table("embeddings/word"),
        "decoder.embed_positions": table("embeddings/position"),
        "decoder.layers.{i}.self_attn_layer_norm": norm(f"{_LAYER}/attention_norm"),
        "decoder.layers.{i}.self_attn.q_proj": linear(f"{_LAYER}/attention/query"),
        "decoder.layers.{i}.self_attn.k_proj": linear(f"{_LAYER}/attention/key"),
        "decoder.layers.{i}.self_attn.v_proj": linear(f"{_LAYER}/attention/value"),
        "decoder.layers.{i}.self_attn.out_proj": linear(f"{_LAYER}/attention/out"),
        "decoder.layers.{i}.final_layer_norm": norm(f"{_LAYER}/feed_forward_norm"),
        "decoder.layers.{i}.fc1": linear(f"{_LAYER}/feed_forward/up"),
        "decoder.layers.{i}.fc2": linear(f"{_LAYER}/feed_forward/down"),
        "decoder.final_layer_norm": norm("final_norm"),
    },
    keys=keys(
        key("vocab_size"),
        key("hidden_size"),
        key("num_hidden_layers", "num_layers"),
        key("num_attention_heads", "num_heads"),
        key("ffn_dim", "intermediate_size"),
        key("max_position_embeddings", "max_positions", 2048),
        activation("activation_function", "relu"),
        key("dropout", "dropout", 0.1),
        key("attention_dropout", "attention_dropout", 0.0),
        key("enable_bias", "attention_bias", True),
        extra("word_embed_proj_dim", integer(1) | null()),
        extra("do_layer_norm_before", flag(), True),
        extra("tie_word_embeddings", flag(), True),
        token("bos_token_id", "bos_id", 2),
        token("eos_token_id", "eos_id", 2),
        token("pad_token_id", "pad_id", 1),
        only("layer_norm_elementwise_affine", True, None),
        only("_remove_final_layer_norm", False, None),
        only("quantization_config", None),
    ),
    joints=(
        Joint(
            ("attention_out_bias", "feed_forward_bias"),
            lambda v: dict.fromkeys(("attention_out_bias", "feed_forward_bias"), v["enable_bias"]),
        ),
        Joint(("embedding_dropout",), lambda v: {"embedding_dropout": 0.0}),
        Joint(write=lambda config, _: {"word_embed_proj_dim": config.hidden_size}),
        _HEADS,
    ),
    # Layer norms of OPT have torch's default epsilon, and two rows come before the first position.
    fixed={"positions": "learned", "position_offset": 2, "norm_eps": 1e-5},
    refused=(
        (
            "do_layer_norm_before=False, as in opt-350m (supported: true, as in all other sizes)",
            lambda v: not v["do_layer_norm_before"],
        ),
        (
            "word_embed_proj_dim={0[word_embed_proj_dim]}, as in opt-350m (supported: hidden_size, "
            "as in all other sizes)",
            lambda v: v["word_embed_proj_dim"] not in (None, v["hidden_size"]),
        ),
    ),
    misfits=(
        *_MISFITS,
        (
            "biases in some maps of a layer alone",
            lambda c: len({c.attention_bias, c.attention_out_bias, c.feed_forward_bias}) > 1,
        ),
    ),
)
