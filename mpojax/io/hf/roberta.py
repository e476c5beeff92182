"""RoBERTa and its like: XLM-RoBERTa, CamemBERT, MPNet."""

import dataclasses
from collections.abc import Mapping

from mpojax import models
from mpojax.checks import integer
from mpojax.io.hf.bert import CLASSIFIER_DROPOUT, DROPOUT, ENCODER, OWN_POOLER, SIZES
from mpojax.io.hf.encoders import HEADS, EncoderFamily, classes
from mpojax.io.hf.family import Joint, Key, activation, extra, key, keys
from mpojax.io.hf.names import bias, linear, norm, table


def _read_positions(values: Mapping) -> dict:
    """The rows before the first position are those of the ids up to padding."""
    offset = values["pad_token_id"] + 1
    length = values["max_position_embeddings"] - offset
    if length < 1:
        raise ValueError(
            f"max_position_embeddings={values['max_position_embeddings']} must be above "
            f"pad_token_id + 1 = {offset}, the row of the first position"
        )
    return {"position_offset": offset, "max_positions": length}


def _write_positions(config: models.EncoderConfig, _) -> dict:
    return {"max_position_embeddings": config.max_positions + config.position_offset}


POSITIONS = Joint(("position_offset", "max_positions"), _read_positions, _write_positions)
OFFSET = (
    "position_offset={0.position_offset}, not pad_id + 1 = 1 + {0.pad_id}",
    lambda config: config.position_offset != config.pad_id + 1,
)
ROBERTA = EncoderFamily(
    model_type="roberta",
    prefix="roberta.",
    classes=classes("Roberta", "masked_lm"),
    pretraining=("RobertaForMaskedLM",),
    pretraining_tensors=r"lm_head\..+",
    output_map="lm_head.decoder",
    tensors={
        **ENCODER,
        "pooler.dense": linear("pooler", when=lambda config: config.num_labels is None),
    },
    heads={
        **HEADS,
        "classifier": OWN_POOLER,
        "masked_lm": {
            "lm_head.dense": linear("masked_lm/transform"),
            "lm_head.layer_norm": norm("masked_lm/norm"),
            "lm_head": bias("masked_lm"),
        },
    },
    keys={
        **{name: entry for name, entry in SIZES.items() if name != "max_position_embeddings"},
        **DROPOUT,
        **keys(
            extra("max_position_embeddings", integer(1), 512),
            key("pad_token_id", "pad_id", 1, integer()),
            activation("hidden_act", "gelu"),
        ),
    },
    joints=(POSITIONS,),
    head_dropout=CLASSIFIER_DROPOUT,
    misfits=(
        OFFSET,
        (
            "activation={0.activation!r} with masked_lm=True, whose head always has gelu",
            lambda config: config.masked_lm and config.activation != "gelu",
        ),
    ),
)
XLM_ROBERTA = dataclasses.replace(
    ROBERTA,
    model_type="xlm-roberta",
    classes=classes("XLMRoberta", "masked_lm"),
    pretraining=("XLMRobertaForMaskedLM",),
)
CAMEMBERT = dataclasses.replace(
    ROBERTA,
    model_type="camembert",
    classes=classes("Camembert", "masked_lm"),
    pretraining=("CamembertForMaskedLM",),
)

_SELF, _PATH = "encoder.layer.{i}.attention.attn", "layers/{i}/attention"
MPNET = dataclasses.replace(
    ROBERTA,
    model_type="mpnet",
    prefix="mpnet.",
    classes=classes("MPNet", "masked_lm"),
    pretraining=("MPNetForMaskedLM",),
    tensors={
        **{
            name: module
            for name, module in ROBERTA.tensors.items()
            if ".attention." not in name and "token_type" not in name
        },
        "encoder.relative_attention_bias": table("relative_bias"),
        f"{_SELF}.q": linear(f"{_PATH}/query"),
        f"{_SELF}.k": linear(f"{_PATH}/key"),
        f"{_SELF}.v": linear(f"{_PATH}/value"),
        f"{_SELF}.o": linear(f"{_PATH}/out"),
        "encoder.layer.{i}.attention.LayerNorm": norm("layers/{i}/attention_norm"),
    },
    keys={
        **{n: k for n, k in ROBERTA.keys.items() if n not in ("type_vocab_size", *DROPOUT)},
        **keys(
            key("hidden_dropout_prob", "dropout", 0.1),
            key("attention_probs_dropout_prob", "attention_dropout", 0.1),
            # What transformers computes with, whatever the configuration says.
            Key("relative_attention_num_buckets", "relative_buckets", integer(), 32, None, (32,)),
            Key("pad_token_id", "pad_id", integer(), 1, None, (1,)),
        ),
    },
    head_dropout={},
    fixed={"token_types": 0},
)
