"""A small decoder with MPOE experts and its data; for tests of training."""

import functools

import numpy as np
from flax import nnx

from mpojax import data, models, mpo, nn, training
from mpojax.methods.mpoe import gradient_mask
from tests.training import helpers

LENGTH, ROWS, VOCABULARY, EXPERTS = 8, 16, 32, 4
NARROW, WIDE = (2, 4, 2), (2, 8, 2)


def config(number=EXPERTS, **changes) -> models.DecoderConfig:
    """Two layers, both with experts."""
    settings = nn.ExpertSettings(number)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_positions": LENGTH,
        "experts": (("layers/[01]/feed_forward", settings),),
    }
    return models.DecoderConfig(**sizes | changes)


def abstract_model(**changes) -> models.LanguageModel:
    """Shapes in the place of arrays: nothing is compiled."""
    return nnx.eval_shape(lambda: _build(**changes))


@functools.cache
def model(**changes) -> models.LanguageModel:
    return _build(**changes)


def _build(**changes):
    shapes = {
        f"layers/{layer}/feed_forward/{name}": mpo.MPOShape(*lists)
        for layer in (0, 1)
        for name, lists in (("up", (NARROW, WIDE)), ("down", (WIDE, NARROW)))
    }
    return models.build(config(**changes), shapes, rngs=nnx.Rngs(0))


def arrays(count: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows that count up from a random word."""
    start = np.random.default_rng(seed).integers(0, VOCABULARY, (count, 1), np.int32)
    ids = (start + np.arange(LENGTH + 1, dtype=np.int32)) % VOCABULARY
    return {
        "input_ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "target_weights": np.ones((count, LENGTH), np.float32),
    }


def run(folder=None, *, steps, mesh=None, hooks=(), made=None, optimizer=None, **more):
    """One run; all parameters are trained, split by `model_rules` whatever their size.

    Without a mesh on one device, which compiles faster than on all.
    """
    made = made or model()
    settings = {"learning_rate": 3e-3, "weight_decay": 0.01} | (optimizer or {})
    transformation = gradient_mask.make_optimizer(settings, training.roles(made), 20, seed=2)
    return training.fit(
        training.TrainState.create(made, nnx.Param, transformation),
        training.language_model_loss(),
        data.TrainData(arrays(), ROWS, seed=0),
        optimizer=transformation,
        steps=steps,
        mesh=mesh or helpers.one_device(),
        rules=training.model_rules(made, min_size=1),
        hooks=hooks,
        folder=folder,
        log_every=1,
        **more,
    )
