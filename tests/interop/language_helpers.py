"""Small language models, made without torch."""

import numpy as np

from mpojax import models
from mpojax.interop import huggingface

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


def arrays(config, seed=0, shapes=None) -> dict[str, np.ndarray]:
    """Random parameters by logical path."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in models.array_shapes(config, shapes).items()
    }


def checkpoint(config, seed=0) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors of transformers for the same parameters."""
    return huggingface.export_model(config, arrays(config, seed))
