"""Names and settings of Hugging Face checkpoints, as data: one `Architecture` per model type."""

from mpojax.checks import flag, null
from mpojax.io.hf.architectures import Architecture, Row, linear, norm, rows

EMBEDDINGS = rows(
    (
        ("embeddings.word_embeddings.weight", "embeddings/word/table", "same"),
        ("embeddings.position_embeddings.weight", "embeddings/position/table", "same"),
        ("embeddings.token_type_embeddings.weight", "embeddings/token_type/table", "same"),
    ),
    norm("embeddings.LayerNorm", "embeddings/norm"),
)
HEADS = {
    "none": (),
    "classifier": linear("classifier", "head"),
    "span": linear("qa_outputs", "head"),
}


def _bert_attention(layer: str, ours: str) -> tuple[Row, ...]:
    return rows(
        linear(f"{layer}.attention.self.query", f"{ours}/attention/query"),
        linear(f"{layer}.attention.self.key", f"{ours}/attention/key"),
        linear(f"{layer}.attention.self.value", f"{ours}/attention/value"),
        linear(f"{layer}.attention.output.dense", f"{ours}/attention/out"),
        norm(f"{layer}.attention.output.LayerNorm", f"{ours}/attention_norm"),
    )


# What BERT, ALBERT and MobileBERT call alike.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
    "pad_token_id": "pad_id",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
_DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}
_REQUIRED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}

_BERT_MASKED_LM = rows(
    linear("cls.predictions.transform.dense", "masked_lm/transform"),
    norm("cls.predictions.transform.LayerNorm", "masked_lm/norm"),
    (("cls.predictions.bias", "masked_lm/bias", "same"),),
)

BERT = Architecture(
    model_type="bert",
    classes={
        "none": "BertModel",
        "classifier": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
        "pretraining": "BertForPreTraining",
        "masked_lm": "BertForMaskedLM",
    },
    pretraining=("BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"),
    dropped=r"cls\.(predictions|seq_relationship)\..+",
    encoder=rows(
        EMBEDDINGS,
        _bert_attention("encoder.layer.{i}", "layers/{i}"),
        linear("encoder.layer.{i}.intermediate.dense", "layers/{i}/feed_forward/up"),
        linear("encoder.layer.{i}.output.dense", "layers/{i}/feed_forward/down"),
        norm("encoder.layer.{i}.output.LayerNorm", "layers/{i}/feed_forward_norm"),
        linear("pooler.dense", "pooler"),
    ),
    outside={
        **HEADS,
        "pretraining": rows(_BERT_MASKED_LM, linear("cls.seq_relationship", "head")),
        "masked_lm": _BERT_MASKED_LM,
    },
    fields=_FIELDS,
    defaults={**_DEFAULTS, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    head_dropout={
        "none": "classifier_dropout",
        "classifier": "classifier_dropout",
        "span": None,
        "pretraining": None,
        "masked_lm": None,
    },
    required=_REQUIRED,
)

_ALBERT_LAYER = "encoder.albert_layer_groups.{group}.albert_layers.0"
_ALBERT_MASKED_LM = rows(
    linear("predictions.dense", "masked_lm/transform"),
    norm("predictions.LayerNorm", "masked_lm/norm"),
    (("predictions.bias", "masked_lm/bias", "same"),),
)
ALBERT = Architecture(
    model_type="albert",
    classes={
        "none": "AlbertModel",
        "classifier": "AlbertForSequenceClassification",
        "span": "AlbertForQuestionAnswering",
        "pretraining": "AlbertForPreTraining",
        "masked_lm": "AlbertForMaskedLM",
    },
    pretraining=("AlbertForMaskedLM", "AlbertForPreTraining"),
    dropped=r"(predictions|sop_classifier)\..+",
    encoder=rows(
        EMBEDDINGS,
        linear("encoder.embedding_hidden_mapping_in", "embeddings/projection"),
        linear(f"{_ALBERT_LAYER}.attention.query", "layers/{group}/attention/query"),
        linear(f"{_ALBERT_LAYER}.attention.key", "layers/{group}/attention/key"),
        linear(f"{_ALBERT_LAYER}.attention.value", "layers/{group}/attention/value"),
        linear(f"{_ALBERT_LAYER}.attention.dense", "layers/{group}/attention/out"),
        norm(f"{_ALBERT_LAYER}.attention.LayerNorm", "layers/{group}/attention_norm"),
        linear(f"{_ALBERT_LAYER}.ffn", "layers/{group}/feed_forward/up"),
        linear(f"{_ALBERT_LAYER}.ffn_output", "layers/{group}/feed_forward/down"),
        norm(f"{_ALBERT_LAYER}.full_layer_layer_norm", "layers/{group}/feed_forward_norm"),
        linear("pooler", "pooler"),
    ),
    outside={
        **HEADS,
        "pretraining": rows(_ALBERT_MASKED_LM, linear("sop_classifier.classifier", "head")),
        "masked_lm": _ALBERT_MASKED_LM,
    },
    fields={
        **_FIELDS,
        "embedding_size": "embedding_size",
        "num_hidden_groups": "layer_groups",
    },
    defaults={
        **_DEFAULTS,
        "embedding_size": 128,
        "num_hidden_groups": 1,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
    },
    head_dropout={
        "none": "classifier_dropout_prob",
        "classifier": "classifier_dropout_prob",
        "span": None,
        "pretraining": "classifier_dropout_prob",
        "masked_lm": None,
    },
    required={**_REQUIRED, "inner_group_num": (1,)},
)

DISTILBERT = Architecture(
    model_type="distilbert",
    classes={
        "none": "DistilBertModel",
        "classifier": "DistilBertForSequenceClassification",
        "span": "DistilBertForQuestionAnswering",
    },
    pretraining=("DistilBertForMaskedLM",),
    dropped=r"(vocab_transform|vocab_layer_norm|vocab_projector)\..+",
    encoder=rows(
        EMBEDDINGS,
        linear("transformer.layer.{i}.attention.q_lin", "layers/{i}/attention/query"),
        linear("transformer.layer.{i}.attention.k_lin", "layers/{i}/attention/key"),
        linear("transformer.layer.{i}.attention.v_lin", "layers/{i}/attention/value"),
        linear("transformer.layer.{i}.attention.out_lin", "layers/{i}/attention/out"),
        norm("transformer.layer.{i}.sa_layer_norm", "layers/{i}/attention_norm"),
        linear("transformer.layer.{i}.ffn.lin1", "layers/{i}/feed_forward/up"),
        linear("transformer.layer.{i}.ffn.lin2", "layers/{i}/feed_forward/down"),
        norm("transformer.layer.{i}.output_layer_norm", "layers/{i}/feed_forward_norm"),
    ),
    outside={**HEADS, "classifier": rows(linear("pre_classifier", "pooler"), HEADS["classifier"])},
    fields={
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_size",
        "max_position_embeddings": "max_positions",
        "pad_token_id": "pad_id",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    defaults={
        "pad_token_id": 0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "qa_dropout": 0.1,
    },
    head_dropout={
        "none": "seq_classif_dropout",
        "classifier": "seq_classif_dropout",
        "span": "qa_dropout",
    },
    activation="activation",
    fixed={"token_types": 0, "pooler_activation": "relu"},
    required={"pruned_heads": ({}, None), "quantization_config": (None,)},
)

_MOBILE = "encoder.layer.{i}"
MOBILEBERT = Architecture(
    model_type="mobilebert",
    classes={
        "none": "MobileBertModel",
        "classifier": "MobileBertForSequenceClassification",
        "span": "MobileBertForQuestionAnswering",
    },
    pretraining=(
        "MobileBertForMaskedLM",
        "MobileBertForPreTraining",
        "MobileBertForNextSentencePrediction",
    ),
    dropped=r"cls\.(predictions|seq_relationship)\..+",
    encoder=rows(
        EMBEDDINGS,
        linear("embeddings.embedding_transformation", "embeddings/projection"),
        linear(f"{_MOBILE}.bottleneck.input.dense", "layers/{i}/bottleneck/input"),
        norm(f"{_MOBILE}.bottleneck.input.LayerNorm", "layers/{i}/bottleneck/input_norm"),
        linear(f"{_MOBILE}.bottleneck.attention.dense", "layers/{i}/bottleneck/attention"),
        norm(f"{_MOBILE}.bottleneck.attention.LayerNorm", "layers/{i}/bottleneck/attention_norm"),
        _bert_attention(_MOBILE, "layers/{i}"),
        linear(f"{_MOBILE}.ffn.{{j}}.intermediate.dense", "layers/{i}/feed_forwards/{j}/up"),
        linear(f"{_MOBILE}.ffn.{{j}}.output.dense", "layers/{i}/feed_forwards/{j}/down"),
        norm(f"{_MOBILE}.ffn.{{j}}.output.LayerNorm", "layers/{i}/feed_forward_norms/{j}"),
        linear(f"{_MOBILE}.intermediate.dense", "layers/{i}/feed_forwards/{last}/up"),
        linear(f"{_MOBILE}.output.dense", "layers/{i}/feed_forwards/{last}/down"),
        norm(f"{_MOBILE}.output.LayerNorm", "layers/{i}/feed_forward_norms/{last}"),
        linear(f"{_MOBILE}.output.bottleneck.dense", "layers/{i}/bottleneck/output"),
        norm(f"{_MOBILE}.output.bottleneck.LayerNorm", "layers/{i}/bottleneck/output_norm"),
        linear("pooler.dense", "pooler"),
    ),
    outside=HEADS,
    fields={
        **_FIELDS,
        "embedding_size": "embedding_size",
        "trigram_input": "trigram_input",
        "normalization_type": "norm",
        "intra_bottleneck_size": "bottleneck_size",
        "use_bottleneck_attention": "bottleneck_attention",
        "num_feedforward_networks": "num_feed_forwards",
    },
    defaults={
        **_DEFAULTS,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.1,
        "embedding_size": 128,
        "trigram_input": True,
        "normalization_type": "no_norm",
        "intra_bottleneck_size": 128,
        "use_bottleneck_attention": False,
        "num_feedforward_networks": 4,
        "key_query_shared_bottleneck": True,
        "classifier_activation": True,
    },
    pooler_flag="classifier_activation",
    types={
        "classifier_activation": flag() | null(),
        "key_query_shared_bottleneck": flag() | null(),
    },
    head_dropout={"none": "classifier_dropout", "classifier": "classifier_dropout", "span": None},
    fixed={"projection": "word"},
    required={**_REQUIRED, "use_bottleneck": (True, None)},
    derived={
        "key_query_shared_bottleneck": ("use_bottleneck_attention", {False: True, True: False}),
    },
    refused=(
        (
            # Both: a second map that nothing reads; neither: the value map does not fit its input.
            "use_bottleneck_attention and key_query_shared_bottleneck must differ",
            lambda s: s["use_bottleneck_attention"] == s["key_query_shared_bottleneck"],
        ),
        (
            # transformers then keeps the projection without using it.
            "trigram_input=False needs an embedding_size other than hidden_size",
            lambda s: not s["trigram_input"] and s["embedding_size"] == s["hidden_size"],
        ),
        (
            # transformers builds some of its norms without the configured epsilon.
            "normalization_type='layer_norm' needs layer_norm_eps=1e-05",
            lambda s: s["normalization_type"] == "layer_norm" and s["layer_norm_eps"] != 1e-5,
        ),
    ),
)

ARCHITECTURES = (BERT, ALBERT, DISTILBERT, MOBILEBERT)

# Old checkpoints name the parameters of layer norms after the original TensorFlow code.
RENAMED_SUFFIXES = (
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
)
# Constant buffers that older versions of transformers saved: not parameters (after the prefix).
HARMLESS_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Name in the checkpoint -> ours; the first name of each kind is written on export.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
