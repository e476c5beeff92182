"""MobileBERT."""

from mpojax.checks import flag, integer, null, number
from mpojax.io.hf.bert import ATTENTION, CLASSIFIER_DROPOUT, EMBEDDINGS, SIZES
from mpojax.io.hf.encoders import EncoderFamily, classes
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only
from mpojax.io.hf.names import linear, norm

_LAYER, _PATH = "encoder.layer.{i}", "layers/{i}"
MOBILEBERT = EncoderFamily(
    model_type="mobilebert",
    prefix="mobilebert.",
    classes=classes("MobileBert"),
    pretraining=(
        "MobileBertForMaskedLM",
        "MobileBertForPreTraining",
        "MobileBertForNextSentencePrediction",
    ),
    pretraining_tensors=r"cls\.(predictions|seq_relationship)\..+",
    tensors={
        **EMBEDDINGS,
        "embeddings.embedding_transformation": linear("embeddings/projection"),
        f"{_LAYER}.bottleneck.input.dense": linear(f"{_PATH}/bottleneck/input"),
        f"{_LAYER}.bottleneck.input.LayerNorm": norm(f"{_PATH}/bottleneck/input_norm"),
        f"{_LAYER}.bottleneck.attention.dense": linear(f"{_PATH}/bottleneck/attention"),
        f"{_LAYER}.bottleneck.attention.LayerNorm": norm(f"{_PATH}/bottleneck/attention_norm"),
        **ATTENTION,
        f"{_LAYER}.ffn.{{j}}.intermediate.dense": linear(f"{_PATH}/feed_forwards/{{j}}/up"),
        f"{_LAYER}.ffn.{{j}}.output.dense": linear(f"{_PATH}/feed_forwards/{{j}}/down"),
        f"{_LAYER}.ffn.{{j}}.output.LayerNorm": norm(f"{_PATH}/feed_forward_norms/{{j}}"),
        f"{_LAYER}.intermediate.dense": linear(f"{_PATH}/feed_forwards/{{last}}/up"),
        f"{_LAYER}.output.dense": linear(f"{_PATH}/feed_forwards/{{last}}/down"),
        f"{_LAYER}.output.LayerNorm": norm(f"{_PATH}/feed_forward_norms/{{last}}"),
        f"{_LAYER}.output.bottleneck.dense": linear(f"{_PATH}/bottleneck/output"),
        f"{_LAYER}.output.bottleneck.LayerNorm": norm(f"{_PATH}/bottleneck/output_norm"),
        "pooler.dense": linear("pooler"),
    },
    keys={
        **SIZES,
        **keys(
            key("hidden_dropout_prob", "dropout", 0.0),
            key("attention_probs_dropout_prob", "attention_dropout", 0.1),
            activation("hidden_act", "relu"),
            key("embedding_size", "embedding_size", 128, integer(1)),
            key("trigram_input", "trigram_input", True),
            key("normalization_type", "norm", "no_norm"),
            key("intra_bottleneck_size", "bottleneck_size", 128, integer(1)),
            key("use_bottleneck_attention", "bottleneck_attention", False),
            key("num_feedforward_networks", "num_feed_forwards", 4),
            extra("key_query_shared_bottleneck", flag(), True),
            extra("classifier_activation", flag(), True),
            extra("classifier_dropout", number() | null()),
            only("use_bottleneck", True, None),
        ),
    },
    pooler_flag="classifier_activation",
    head_dropout=CLASSIFIER_DROPOUT,
    fixed={"projection": "word"},
    joints=(
        Joint(
            write=lambda config, _: {"key_query_shared_bottleneck": not config.bottleneck_attention}
        ),
    ),
    refused=(
        (
            # Both: a second map that nothing reads; neither: the value map does not fit its input.
            "use_bottleneck_attention and key_query_shared_bottleneck must differ",
            lambda v: v["use_bottleneck_attention"] == v["key_query_shared_bottleneck"],
        ),
        (
            # transformers then keeps the projection without using it.
            "trigram_input=False needs an embedding_size other than hidden_size",
            lambda v: not v["trigram_input"] and v["embedding_size"] == v["hidden_size"],
        ),
        (
            # transformers builds some of its norms without the configured epsilon.
            "normalization_type='layer_norm' needs layer_norm_eps=1e-05",
            lambda v: v["normalization_type"] == "layer_norm" and v["layer_norm_eps"] != 1e-5,
        ),
    ),
)
