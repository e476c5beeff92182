"""ModernBERT: rotary positions, attention to all and to neighbours in turn, gates, no biases.

Warner et al., "Smarter, Better, Faster, Longer" (2024). Its classifiers read hidden states through
a map and a norm of their own; they are not supported, the encoder is.
"""

from collections.abc import Mapping

from mpojax import models
from mpojax.checks import anything, integer, mapping, null, number, one_of, sequence
from mpojax.io.hf.encoders import EncoderFamily
from mpojax.io.hf.family import Joint, Key, activation, extra, key, keys, only
from mpojax.io.hf.layer_kinds import FULL, SLIDING, layer_types
from mpojax.io.hf.names import linear, norm, table

_NORMS = {False: "layer_norm_without_bias", True: "layer_norm"}
# Name in older files, field, and default of the base of both kinds of layers.
_BASES = {
    FULL: ("global_rope_theta", "rotary_base", 160_000.0),
    SLIDING: ("local_rope_theta", "local_rotary_base", 10_000.0),
}


def _read_layers(values: Mapping) -> dict:
    """Layers that attend to all, half of the window, and the bases of rotary positions."""
    count = values["num_hidden_layers"]
    every = values["global_attn_every_n_layers"]
    types = values["layer_types"] or [SLIDING if i % every else FULL for i in range(count)]
    if len(types) != count:
        raise ValueError(f"layer_types has {len(types)} entries for {count} layers")
    found = {
        # local_attention counts both sides of a token, sliding_window one.
        "sliding_window": values["local_attention"] // 2,
        "full_attention_layers": tuple(i for i, kind in enumerate(types) if kind == FULL),
    }
    nested = values["rope_parameters"] or {}
    for kind, (old, field, default) in _BASES.items():
        entry = nested.get(kind) or {}
        if (rope := entry.get("rope_type", "default")) != "default":
            raise ValueError(f"rope_type={rope!r} of rotary positions (supported: default)")
        found[field] = float(entry.get("rope_theta") or values[old] or default)
    return found


def _write_layers(config: models.EncoderConfig, _) -> dict:
    bases = {kind: getattr(config, field) for kind, (_, field, _) in _BASES.items()}
    local = config.rotary_base if bases[SLIDING] is None else bases[SLIDING]
    return {
        "local_attention": 2 * config.sliding_window,
        "layer_types": layer_types(config),
        "global_rope_theta": bases[FULL],
        "local_rope_theta": local,
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": bases[FULL]},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


_LAYER = "layers/{i}"
MODERNBERT = EncoderFamily(
    model_type="modernbert",
    prefix="model.",
    classes={"none": "ModernBertModel"},
    embedding="embeddings.tok_embeddings.weight",
    pretraining=("ModernBertForMaskedLM",),
    pretraining_tensors=r"(head|decoder)\..+",
    tensors={
        "embeddings.tok_embeddings": table("embeddings/word"),
        "embeddings.norm": norm("embeddings/norm"),
        "layers.{i}.attn_norm": norm(f"{_LAYER}/attention_norm"),
        "layers.{i}.attn.Wqkv": linear(
            *(f"{_LAYER}/attention/{name}" for name in ("query", "key", "value"))
        ),
        "layers.{i}.attn.Wo": linear(f"{_LAYER}/attention/out"),
        "layers.{i}.mlp_norm": norm(f"{_LAYER}/feed_forward_norm"),
        "layers.{i}.mlp.Wi": linear(f"{_LAYER}/feed_forward/gate", f"{_LAYER}/feed_forward/up"),
        "layers.{i}.mlp.Wo": linear(f"{_LAYER}/feed_forward/down"),
        "final_norm": norm("final_norm"),
    },
    keys=keys(
        key("vocab_size"),
        key("hidden_size"),
        key("num_hidden_layers", "num_layers"),
        key("num_attention_heads", "num_heads"),
        key("intermediate_size"),
        key("max_position_embeddings", "max_positions", 8192),
        key("norm_eps", "norm_eps", 1e-5),
        Key("norm_bias", "norm", one_of(False, True), False, _NORMS),
        key("pad_token_id", "pad_id", 50283, integer()),
        key("attention_bias", "attention_bias", False),
        key("mlp_bias", "feed_forward_bias", False),
        key("attention_dropout", "attention_dropout", 0.0),
        activation("hidden_activation", "gelu"),
        only("embedding_dropout", 0.0, None),
        only("mlp_dropout", 0.0, None),
        extra("local_attention", integer(1), 128),
        extra("global_attn_every_n_layers", integer(1), 3),
        extra("layer_types", sequence(one_of(FULL, SLIDING)) | null()),
        extra("rope_parameters", mapping(anything()) | null()),
        extra("global_rope_theta", number() | null()),
        extra("local_rope_theta", number() | null()),
    ),
    joints=(
        Joint(
            ("sliding_window", "full_attention_layers", "rotary_base", "local_rotary_base"),
            _read_layers,
            _write_layers,
        ),
        Joint(("attention_out_bias",), lambda v: {"attention_out_bias": v["attention_bias"]}),
    ),
    head_dropout={},
    fixed={
        "positions": "rotary",
        "pre_norm": True,
        "gated": True,
        "token_types": 0,
        "dropout": 0.0,
    },
    misfits=(
        (
            "attention_bias={0.attention_bias} with attention_out_bias={0.attention_out_bias}",
            lambda config: config.attention_bias != config.attention_out_bias,
        ),
        ("sliding_window=None", lambda config: config.sliding_window is None),
        ("pooling={0.pooling!r}", lambda config: config.pooling == "pooler"),
    ),
)
