"""Small checkpoints, made without torch."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from mpojax import models
from mpojax.io.hf import checkpoints

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
SETTINGS = models.EncoderConfig(
    vocab_size=40,
    hidden_size=12,
    num_layers=2,
    num_heads=3,
    intermediate_size=24,
    max_positions=16,
    attention_dropout=0.0,
)


def arrays(settings=SETTINGS, seed=0) -> dict[str, np.ndarray]:
    """Random parameters by logical path."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in models.array_shapes(settings).items()
    }


def tensors(settings=SETTINGS, seed=0) -> dict[str, np.ndarray]:
    """The same parameters by the names of a checkpoint."""
    return checkpoints.export_model(settings, arrays(settings, seed))[1]


def write(folder: pathlib.Path, content=None, weights=None) -> pathlib.Path:
    """A checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = CONFIG if content is None else content
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = tensors() if weights is None else weights
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def model(settings=SETTINGS, seed=0):
    """The dense model with those parameters."""
    return models.from_arrays(settings, {}, arrays(settings, seed))


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
    """Content of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
