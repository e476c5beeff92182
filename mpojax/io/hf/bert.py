"""BERT, ALBERT, DistilBERT and ELECTRA."""

import dataclasses
from collections.abc import Mapping

from mpojax.checks import integer, null, number
from mpojax.io.hf.encoders import HEADS, EncoderFamily, classes
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only
from mpojax.io.hf.names import bias, linear, norm, table

# What BERT, ALBERT and MobileBERT call alike.
SIZES = keys(
    key("vocab_size"),
    key("hidden_size"),
    key("num_hidden_layers", "num_layers"),
    key("num_attention_heads", "num_heads"),
    key("intermediate_size"),
    key("max_position_embeddings", "max_positions"),
    key("type_vocab_size", "token_types", 2, integer(1)),
    key("layer_norm_eps", "norm_eps", 1e-12),
    key("pad_token_id", "pad_id", 0, integer()),
    only("position_embedding_type", "absolute", None),
    only("is_decoder", False, None),
    only("add_cross_attention", False, None),
    only("pruned_heads", {}, None),
)
EMBEDDINGS = {
    "embeddings.word_embeddings": table("embeddings/word"),
    "embeddings.position_embeddings": table("embeddings/position"),
    "embeddings.token_type_embeddings": table("embeddings/token_type"),
    "embeddings.LayerNorm": norm("embeddings/norm"),
}
ATTENTION = {
    "encoder.layer.{i}.attention.self.query": linear("layers/{i}/attention/query"),
    "encoder.layer.{i}.attention.self.key": linear("layers/{i}/attention/key"),
    "encoder.layer.{i}.attention.self.value": linear("layers/{i}/attention/value"),
    "encoder.layer.{i}.attention.output.dense": linear("layers/{i}/attention/out"),
    "encoder.layer.{i}.attention.output.LayerNorm": norm("layers/{i}/attention_norm"),
}
CLASSIFIER_DROPOUT = dict.fromkeys(("none", "classifier", "tokens"), "classifier_dropout")
_MASKED_LM = {
    "cls.predictions.transform.dense": linear("masked_lm/transform"),
    "cls.predictions.transform.LayerNorm": norm("masked_lm/norm"),
    "cls.predictions": bias("masked_lm"),
}
ENCODER = {
    **EMBEDDINGS,
    **ATTENTION,
    "encoder.layer.{i}.intermediate.dense": linear("layers/{i}/feed_forward/up"),
    "encoder.layer.{i}.output.dense": linear("layers/{i}/feed_forward/down"),
    "encoder.layer.{i}.output.LayerNorm": norm("layers/{i}/feed_forward_norm"),
}
DROPOUT = keys(
    key("hidden_dropout_prob", "dropout", 0.1),
    key("attention_probs_dropout_prob", "attention_dropout", 0.1),
    extra("classifier_dropout", number() | null()),
)
BERT = EncoderFamily(
    model_type="bert",
    prefix="bert.",
    classes=classes("Bert", "pretraining", "masked_lm"),
    pretraining=("BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"),
    pretraining_tensors=r"cls\.(predictions|seq_relationship)\..+",
    tensors={**ENCODER, "pooler.dense": linear("pooler")},
    heads={
        **HEADS,
        "pretraining": {**_MASKED_LM, "cls.seq_relationship": linear("head")},
        "masked_lm": _MASKED_LM,
    },
    keys={**SIZES, **DROPOUT, **keys(activation("hidden_act", "gelu"))},
    head_dropout=CLASSIFIER_DROPOUT,
)

_LAYER = "encoder.albert_layer_groups.{group}.albert_layers.0"
_ALBERT_MASKED_LM = {
    "predictions.dense": linear("masked_lm/transform"),
    "predictions.LayerNorm": norm("masked_lm/norm"),
    "predictions": bias("masked_lm"),
}
ALBERT = EncoderFamily(
    model_type="albert",
    prefix="albert.",
    classes=classes("Albert", "pretraining", "masked_lm"),
    pretraining=("AlbertForMaskedLM", "AlbertForPreTraining"),
    pretraining_tensors=r"(predictions|sop_classifier)\..+",
    tensors={
        **EMBEDDINGS,
        "encoder.embedding_hidden_mapping_in": linear("embeddings/projection"),
        f"{_LAYER}.attention.query": linear("layers/{group}/attention/query"),
        f"{_LAYER}.attention.key": linear("layers/{group}/attention/key"),
        f"{_LAYER}.attention.value": linear("layers/{group}/attention/value"),
        f"{_LAYER}.attention.dense": linear("layers/{group}/attention/out"),
        f"{_LAYER}.attention.LayerNorm": norm("layers/{group}/attention_norm"),
        f"{_LAYER}.ffn": linear("layers/{group}/feed_forward/up"),
        f"{_LAYER}.ffn_output": linear("layers/{group}/feed_forward/down"),
        f"{_LAYER}.full_layer_layer_norm": norm("layers/{group}/feed_forward_norm"),
        "pooler": linear("pooler"),
    },
    heads={
        **HEADS,
        "pretraining": {**_ALBERT_MASKED_LM, "sop_classifier.classifier": linear("head")},
        "masked_lm": _ALBERT_MASKED_LM,
    },
    keys={
        **SIZES,
        **keys(
            key("embedding_size", "embedding_size", 128, integer(1)),
            key("num_hidden_groups", "layer_groups", 1, integer(1)),
            key("hidden_dropout_prob", "dropout", 0.0),
            key("attention_probs_dropout_prob", "attention_dropout", 0.0),
            activation("hidden_act", "gelu_new"),
            extra("classifier_dropout_prob", number(), 0.1),
            only("inner_group_num", 1),
        ),
    },
    head_dropout=dict.fromkeys(
        ("none", "classifier", "tokens", "pretraining"), "classifier_dropout_prob"
    ),
    # Layers with parameters of their own are groups of one layer; the arrays are the same.
    fitted=lambda config: (
        dataclasses.replace(config, layer_groups=config.num_layers)
        if config.layer_groups is None and config.embedding_size is not None
        else config
    ),
)

DISTILBERT = EncoderFamily(
    model_type="distilbert",
    prefix="distilbert.",
    classes=classes("DistilBert"),
    pretraining=("DistilBertForMaskedLM",),
    pretraining_tensors=r"(vocab_transform|vocab_layer_norm|vocab_projector)\..+",
    tensors={
        **EMBEDDINGS,
        "transformer.layer.{i}.attention.q_lin": linear("layers/{i}/attention/query"),
        "transformer.layer.{i}.attention.k_lin": linear("layers/{i}/attention/key"),
        "transformer.layer.{i}.attention.v_lin": linear("layers/{i}/attention/value"),
        "transformer.layer.{i}.attention.out_lin": linear("layers/{i}/attention/out"),
        "transformer.layer.{i}.sa_layer_norm": norm("layers/{i}/attention_norm"),
        "transformer.layer.{i}.ffn.lin1": linear("layers/{i}/feed_forward/up"),
        "transformer.layer.{i}.ffn.lin2": linear("layers/{i}/feed_forward/down"),
        "transformer.layer.{i}.output_layer_norm": norm("layers/{i}/feed_forward_norm"),
    },
    heads={**HEADS, "classifier": {"pre_classifier": linear("pooler"), **HEADS["classifier"]}},
    keys=keys(
        key("vocab_size"),
        key("dim", "hidden_size"),
        key("n_layers", "num_layers"),
        key("n_heads", "num_heads"),
        key("hidden_dim", "intermediate_size"),
        key("max_position_embeddings", "max_positions"),
        key("pad_token_id", "pad_id", 0, integer()),
        key("dropout", "dropout", 0.1),
        key("attention_dropout", "attention_dropout", 0.1),
        activation("activation", "gelu"),
        extra("seq_classif_dropout", number(), 0.2),
        extra("qa_dropout", number(), 0.1),
        only("pruned_heads", {}, None),
    ),
    head_dropout={
        "none": "seq_classif_dropout",
        "classifier": "seq_classif_dropout",
        "span": "qa_dropout",
    },
    fixed={"token_types": 0, "pooler_activation": "relu"},
)

# A classifier with a pooler of its own; the bare model may have another one.
OWN_POOLER = {"classifier.dense": linear("pooler"), "classifier.out_proj": linear("head")}


def _projected(values: Mapping) -> dict:
    """Embeddings as wide as the hidden states are not projected."""
    size, hidden = values["embedding_size"], values["hidden_size"]
    return {"embedding_size": None if size == hidden else size}


ELECTRA = EncoderFamily(
    model_type="electra",
    prefix="electra.",
    classes=classes("Electra"),
    pretraining=("ElectraForPreTraining", "ElectraForMaskedLM"),
    pretraining_tensors=r"(discriminator_predictions|generator_predictions|generator_lm_head)\..+",
    tensors={**ENCODER, "embeddings_project": linear("embeddings/projection")},
    heads={**HEADS, "classifier": OWN_POOLER},
    keys={
        **SIZES,
        **DROPOUT,
        **keys(activation("hidden_act", "gelu"), extra("embedding_size", integer(1), 128)),
    },
    joints=(
        Joint(
            ("embedding_size",),
            _projected,
            lambda config, _: {"embedding_size": config.embedding_size or config.hidden_size},
        ),
    ),
    head_dropout=CLASSIFIER_DROPOUT,
    fixed={"pooler_activation": "gelu"},
    misfits=(
        (
            "embedding_size={0.embedding_size}, which is hidden_size",
            lambda config: config.embedding_size == config.hidden_size,
        ),
    ),
)
