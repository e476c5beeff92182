"""Models with experts, made of small dense ones."""

import functools

import numpy as np
from flax import nnx

from mpojax import compression, models
from tests.models import small_language as small

EVERY = ".*feed_forward"
IDS = small.ids((2, 7))
CONFIGS = {
    "gpt2": small.GPT2,
    "llama": small.LLAMA,
    "t5": small.T5,
    "t5 1.1": small.T5_GATED,
}


def with_experts(model, *rules, seed=0, **fields):
    """The model with three experts in every block, or by the rules."""
    rules = rules or [(EVERY, {"number": 3, **fields})]
    return compression.add_experts(model, rules, rngs=nnx.Rngs(seed))


def outputs(model):
    """Logits."""
    is_pair = isinstance(model, models.EncoderDecoder)
    return small.run(model, *((IDS, None, IDS) if is_pair else (IDS,)))


@functools.cache
def before(name):
    """Logits of the dense model."""
    return np.asarray(outputs(small.dense(CONFIGS[name])))


def shaken(model, seed=0):
    """The model with experts that differ."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(array + 0.1 * rng.standard_normal(array.shape))
        for name, array in models.to_arrays(model).items()
    }
    return models.from_arrays(model.config, model.shapes, arrays)


def is_central(model, name: str) -> bool:
    """Whether this logical path is that of a central core."""
    path, _, core = name.partition("/cores/")
    return path in model.shapes and core == str(model.shapes[path].central)
