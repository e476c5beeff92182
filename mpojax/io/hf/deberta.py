"""DeBERTa-v2 and v3: scores between tokens and distances."""

from collections.abc import Mapping

from mpojax.checks import anything, integer, null, number
from mpojax.io.hf.bert import ENCODER, SIZES
from mpojax.io.hf.encoders import HEADS, EncoderFamily, classes
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only
from mpojax.io.hf.names import linear, norm, table

_SELF, _PATH = "encoder.layer.{i}.attention.self", "layers/{i}/attention"


def _read_distance(values: Mapping) -> dict:
    """The largest distance, by default the longest sequence."""
    found = values["max_relative_positions"]
    return {"relative_distance": found if found > 0 else values["max_position_embeddings"]}


def _parts(values: Mapping) -> set[str]:
    """Of the scores: "c2p" for those of queries, "p2c" for those of keys with distances."""
    parts = values["pos_att_type"] or ()
    return set(parts.split("|") if isinstance(parts, str) else parts)


DEBERTA_V2 = EncoderFamily(
    model_type="deberta-v2",
    prefix="deberta.",
    classes=classes("DebertaV2"),
    pretraining=("DebertaV2ForMaskedLM",),
    pretraining_tensors=r"(cls|lm_predictions|mask_predictions)\..+",
    tensors={
        **{
            name: module
            for name, module in ENCODER.items()
            if "attention.self" not in name and "position" not in name
        },
        "encoder.rel_embeddings": table("distance_rows"),
        "encoder.LayerNorm": norm("distance_norm"),
        f"{_SELF}.query_proj": linear(f"{_PATH}/query"),
        f"{_SELF}.key_proj": linear(f"{_PATH}/key"),
        f"{_SELF}.value_proj": linear(f"{_PATH}/value"),
    },
    heads={
        **HEADS,
        "classifier": {"pooler.dense": linear("pooler"), "classifier": linear("head")},
    },
    keys={
        **SIZES,
        **keys(
            key("hidden_dropout_prob", "dropout", 0.1),
            key("attention_probs_dropout_prob", "attention_dropout", 0.1),
            activation("hidden_act", "gelu"),
            key("type_vocab_size", "token_types", 0, integer(0)),
            key("layer_norm_eps", "norm_eps", 1e-7, number(above=0.0)),
            key("position_buckets", "relative_buckets", allowed=integer(1)),
            extra("max_relative_positions", integer(), -1),
            extra("pos_att_type", anything() | null()),
            extra("embedding_size", integer(1) | null()),
            only("relative_attention", True),
            only("position_biased_input", False),
            only("share_att_key", True),
            only("norm_rel_ebd", "layer_norm"),
            only("conv_kernel_size", 0, None),
            only("pooler_hidden_act", "gelu", None),
        ),
    },
    joints=(
        Joint(
            ("relative_distance",),
            _read_distance,
            lambda config, _: {
                "max_relative_positions": config.relative_distance,
                "relative_attention": True,
                "position_biased_input": False,
                "share_att_key": True,
                "norm_rel_ebd": "layer_norm",
                "pos_att_type": ["p2c", "c2p"],
            },
        ),
    ),
    refused=(
        (
            "pos_att_type={0[pos_att_type]} (supported: p2c and c2p)",
            lambda values: _parts(values) != {"p2c", "c2p"},
        ),
        (
            "embedding_size={0[embedding_size]} (supported: hidden_size)",
            lambda values: values["embedding_size"] not in (None, values["hidden_size"]),
        ),
    ),
    head_dropout={},
    fixed={"positions": "none", "disentangled": True, "pooler_activation": "gelu"},
)
