"""Tensor names of Hugging Face checkpoints, as data.

A map lists (checkpoint name, logical path, transform). `{i}` stands for the layer index in both.
The transform is "transpose" for torch linear weights, which are (out_features, in_features), else
"same".
"""

# The encoder of BERT, without the prefix that task models put before it.
BERT_ENCODER = (
    ("embeddings.word_embeddings.weight", "embeddings/word/table", "same"),
    ("embeddings.position_embeddings.weight", "embeddings/position/table", "same"),
    ("embeddings.token_type_embeddings.weight", "embeddings/token_type/table", "same"),
    ("embeddings.LayerNorm.weight", "embeddings/norm/scale", "same"),
    ("embeddings.LayerNorm.bias", "embeddings/norm/bias", "same"),
    *(
        (f"encoder.layer.{{i}}.{theirs}.{part}", f"layers/{{i}}/{ours}/{leaf}", transform)
        for theirs, ours in (
            ("attention.self.query", "attention/query"),
            ("attention.self.key", "attention/key"),
            ("attention.self.value", "attention/value"),
            ("attention.output.dense", "attention/out"),
            ("intermediate.dense", "feed_forward/up"),
            ("output.dense", "feed_forward/down"),
        )
        for part, leaf, transform in (("weight", "kernel", "transpose"), ("bias", "bias", "same"))
    ),
    *(
        (f"encoder.layer.{{i}}.{theirs}.{part}", f"layers/{{i}}/{ours}/{leaf}", "same")
        for theirs, ours in (
            ("attention.output.LayerNorm", "attention_norm"),
            ("output.LayerNorm", "feed_forward_norm"),
        )
        for part, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
)
BERT_POOLER = (
    ("pooler.dense.weight", "pooler/kernel", "transpose"),
    ("pooler.dense.bias", "pooler/bias", "same"),
)
# Outside the prefix.
BERT_CLASSIFIER = (
    ("classifier.weight", "head/kernel", "transpose"),
    ("classifier.bias", "head/bias", "same"),
)

BERT_PREFIX = "bert."
# Old checkpoints name the parameters of layer norms after the original TensorFlow code.
RENAMED_SUFFIXES = (
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
)
# Constant buffers that older versions of transformers saved: not parameters (after the prefix).
HARMLESS_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Pre-training heads: no part of an encoder; dropped with a logged line (regular expression).
DROPPED_HEADS = r"cls\.(predictions|seq_relationship)\..+"

# Architecture -> has the checkpoint a pooler (None: look), a classifier, pre-training heads?
# Pre-training checkpoints are often saved under the name of another pre-training class than the one
# they come from: a BertForMaskedLM may carry the pooler that only next-sentence prediction trains.
BERT_ARCHITECTURES = {
    "BertModel": {"pooler": None, "classifier": False, "heads": False},
    "BertForSequenceClassification": {"pooler": True, "classifier": True, "heads": False},
    "BertForMaskedLM": {"pooler": None, "classifier": False, "heads": True},
    "BertForPreTraining": {"pooler": None, "classifier": False, "heads": True},
    "BertForNextSentencePrediction": {"pooler": None, "classifier": False, "heads": True},
}

# Configuration key -> field of EncoderConfig; keys with a default may be absent.
BERT_CONFIG_FIELDS = {
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
    "classifier_dropout": "classifier_dropout",
}
BERT_CONFIG_DEFAULTS = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
}
# Values that change the computation: a key that is present must have one of these.
BERT_REQUIRED_VALUES = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
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
