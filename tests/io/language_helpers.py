"""Small language models, made without torch."""

import dataclasses

import numpy as np

from mpojax import models
from mpojax.io.hf import checkpoints

SIZES = {"vocab_size": 40, "hidden_size": 12, "num_layers": 2, "num_heads": 2}
OF_LLAMA = {
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "silu",
    "gated": True,
    "attention_bias": False,
    "attention_out_bias": False,
    "feed_forward_bias": False,
    "num_kv_heads": 1,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
}
GPT2 = models.DecoderConfig(**SIZES, intermediate_size=48, max_positions=16)
LLAMA = models.DecoderConfig(
    **SIZES, **OF_LLAMA, intermediate_size=20, max_positions=16, tied=False, bos_id=1, eos_id=2
)
T5 = models.EncoderDecoderConfig(**SIZES, intermediate_size=20, head_size=4, num_decoder_layers=3)
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "t5": T5}

VARIANTS = {
    **CONFIGS,
    "gpt2 untied": dataclasses.replace(GPT2, tied=False, activation="relu", pad_id=3),
    "llama tied with biases": dataclasses.replace(
        LLAMA,
        tied=True,
        attention_bias=True,
        attention_out_bias=True,
        feed_forward_bias=True,
    ),
    "llama 3": dataclasses.replace(
        LLAMA, rotary_base=500.0, rotary_scaling=(8.0, 1.0, 4.0, 16), head_size=8
    ),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, bos_id=None, eos_id=None),
    "t5 1.1": dataclasses.replace(
        T5, gated=True, activation="gelu_tanh", tied=False, scale_logits=False
    ),
    "t5 tied, not scaled": dataclasses.replace(T5, scale_logits=False, pad_id=5),
    "t5 exact gelu": dataclasses.replace(T5, gated=True, activation="gelu"),
}


def arrays(config, seed=0, shapes=None) -> dict[str, np.ndarray]:
    """Random parameters by logical path."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in models.array_shapes(config, shapes).items()
    }


def checkpoint(config, seed=0) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors of transformers for the same parameters."""
    return checkpoints.export_model(config, arrays(config, seed))
