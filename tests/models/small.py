"""Small settings of every kind of encoder, with random parameters."""

import dataclasses

import numpy as np

from mpojax import models, mpo

_COMMON = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 2,
    "max_positions": 12,
}
BERT = models.EncoderConfig(**_COMMON, intermediate_size=32)
ALBERT = models.EncoderConfig(
    **_COMMON, intermediate_size=32, embedding_size=8, layer_groups=1, activation="gelu_tanh"
)
DISTILBERT = models.EncoderConfig(
    **_COMMON, intermediate_size=32, token_types=0, pooler_activation="relu"
)
MOBILEBERT = models.EncoderConfig(
    **_COMMON,
    intermediate_size=12,
    embedding_size=6,
    projection="word",
    trigram_input=True,
    bottleneck_size=8,
    num_feed_forwards=2,
    norm="no_norm",
    activation="relu",
)
ELECTRA = dataclasses.replace(BERT, embedding_size=8, pooler_activation="gelu", token_types=3)
ROBERTA = dataclasses.replace(BERT, pad_id=1, position_offset=2, token_types=1)
MPNET = dataclasses.replace(ROBERTA, relative_buckets=32, token_types=0)
_NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "feed_forward_bias"), False)
MODERNBERT = dataclasses.replace(
    BERT,
    **_NO_BIASES,
    positions="rotary",
    sliding_window=2,
    full_attention_layers=(0,),
    local_rotary_base=100.0,
    pre_norm=True,
    gated=True,
    norm="layer_norm_without_bias",
    token_types=0,
    dropout=0.0,
)
DEBERTA = dataclasses.replace(
    BERT,
    positions="none",
    disentangled=True,
    relative_buckets=4,
    relative_distance=12,
    token_types=0,
    pooler_activation="gelu",
)
KINDS = {
    "bert": BERT,
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    "mobilebert": MOBILEBERT,
    "electra": ELECTRA,
    "roberta": ROBERTA,
    "mpnet": MPNET,
    "modernbert": MODERNBERT,
    "deberta-v2": DEBERTA,
}


def all_shapes(config: models.EncoderConfig, n: int = 3) -> dict[str, mpo.MPOShape]:
    """Every matrix as a chain at full bonds."""
    return {path: mpo.MPOShape.balanced(*size, n=n) for path, size in config.matrix_sizes().items()}


def random_model(config: models.EncoderConfig, shapes=None, seed: int = 0) -> models.Model:
    """Random parameters, norms and biases included; cores of the scale of their matrix."""
    rng = np.random.default_rng(seed)
    shapes = shapes or {}
    arrays = {}
    for name, shape in models.array_shapes(config).items():
        array = (rng.standard_normal(shape) * (1.0 if "norm" in name else 0.3)).astype(np.float32)
        path, _, leaf = name.rpartition("/")
        if path in shapes and leaf in ("kernel", "table"):
            cores = mpo.decompose(array, shapes[path])
            arrays.update({f"{path}/cores/{k}": core for k, core in enumerate(cores)})
        else:
            arrays[name] = array
    return models.from_arrays(config, shapes, arrays)
