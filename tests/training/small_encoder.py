"""Small encoders of every way to store layers, and runs of them; for tests of scale."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mpojax import models, mpo, training
from tests.training import helpers

LENGTH, ROWS, VOCABULARY = 8, 16, 32
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 4,
    "intermediate_size": 32,
    "max_positions": LENGTH,
    "embedding_size": 8,
    "num_labels": 2,
}
_SHARED = {"layer_groups": 2, "shared_roles": ("central", "other")}
KINDS = {
    "dense": {},
    "mpo": {},
    "shared": _SHARED | {"adapters": ((".*/query", 2),)},
}


def config(kind: str, **changes) -> models.EncoderConfig:
    return models.EncoderConfig(**_SIZES | KINDS[kind] | changes)


@functools.cache
def model(kind: str) -> models.Model:
    """dense: own layers; mpo: queries and up maps are chains; shared: the same in two groups, with
    adapters, as MPOBERT.
    """
    settings, shapes = config(kind), {}
    if kind != "dense":
        narrow, wide = (2, 4, 2), (2, 8, 2)
        lists = {"attention/query": (narrow, narrow), "feed_forward/up": (narrow, wide)}
        shapes = {
            f"layers/{layer}/{name}": mpo.MPOShape(*pair)
            for layer in settings.matrix_layers
            for name, pair in lists.items()
        }
    return models.build(settings, shapes, rngs=nnx.Rngs(0))


class Data:
    """Batches by step: is the first token among the rest?"""

    batch_size = ROWS

    def rows(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(step).integers(0, VOCABULARY, (ROWS, LENGTH), np.int32)
        labels = (ids[:, :1] == ids[:, 1:]).any(1).astype(np.int32)
        return {"input_ids": ids[rows], "labels": labels[rows]}


def loss_fn(model, batch, key):
    logits = model(batch["input_ids"], dropout_key=key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.mean(), {"logit_mean": jnp.mean(logits)}


class Losses(training.Hook):
    """The loss of every step of this process, as it is known: one step late."""

    def __init__(self):
        self.values: list[float] = []

    def begin(self, loop):
        self.first = loop.step

    def after_step(self, loop):
        if loop.step > self.first + 1:
            self.values.append(loop.last_metrics["loss"])

    def end(self, loop):
        self.values.append(loop.last_metrics["loss"])


def run(
    kind: str, folder=None, *, steps: int, mesh=None, hooks=(), optimizer=None, rules=None, **more
) -> training.FitResult:
    """One run; all parameters are trained, split by `model_rules` whatever their size.

    Without a mesh on one device, which compiles faster than on all.
    """
    made = model(kind)
    settings = {"learning_rate": 3e-3, "weight_decay": 0.01} | (optimizer or {})
    transformation = training.make_optimizer(settings, training.roles(made), 20)
    state = training.TrainState.create(made, nnx.Param, transformation)
    return training.fit(
        state,
        loss_fn,
        Data(),
        optimizer=transformation,
        steps=steps,
        mesh=mesh or helpers.one_device(),
        rules=rules or training.model_rules(made, min_size=1),
        hooks=hooks,
        folder=folder,
        log_every=1,
        **more,
    )
