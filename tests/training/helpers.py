"""A small factorised classifier and its data: everything the training tests need."""

import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from mpojax import data as data_lib
from mpojax import nn, training
from mpojax.methods.mpoe import gradient_mask

FEATURES, HIDDEN, CLASSES = 12, 16, 4


class Chain(nnx.Module):
    """Three matrices, the middle one central, and a bias."""

    def __init__(self, rngs: nnx.Rngs):
        draw = nnx.initializers.lecun_normal()
        self.cores = nnx.List(
            [
                nn.AuxiliaryCore(draw(rngs.params(), (FEATURES, 8), jnp.float32)),
                nn.CentralCore(draw(rngs.params(), (8, 8), jnp.float32)),
                nn.AuxiliaryCore(draw(rngs.params(), (8, HIDDEN), jnp.float32)),
            ]
        )
        self.bias = nnx.Param(jnp.zeros(HIDDEN))

    def __call__(self, x):
        for core in self.cores:
            x = x @ core[...]
        return x + self.bias[...][None, :]


class Classifier(nnx.Module):
    """Chain, dropout-like noise and a dense head."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.body = Chain(rngs)
        draw = nnx.initializers.lecun_normal()
        self.head = nnx.Dict(
            kernel=nnx.Param(draw(rngs.params(), (HIDDEN, CLASSES), jnp.float32)),
            bias=nnx.Param(jnp.zeros(CLASSES)),
        )

    def __call__(self, x, key=None):
        hidden_BxH = jnp.tanh(self.body(x))
        if key is not None:
            keep = jax.random.bernoulli(key, 0.9, hidden_BxH.shape)
            hidden_BxH = jnp.where(keep, hidden_BxH / 0.9, jnp.zeros_like(hidden_BxH))
        return hidden_BxH @ self.head["kernel"][...] + self.head["bias"][...][None, :]


def loss_fn(model, batch, key):
    logits = model(batch["x"], key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.mean(), {"logit_mean": logits.mean()}


def loss_without_noise(model, batch, key):
    return loss_fn(model, batch, None)


def predict(model, batch):
    return {"predictions": jnp.argmax(model(batch["x"]), -1).astype(jnp.int32)}


def arrays(count: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES), np.float32)
    planted = np.random.default_rng(99).standard_normal((FEATURES, CLASSES))
    return {"x": x, "labels": np.argmax(x @ planted, axis=1).astype(np.int32)}


def train_data(seed: int = 0) -> data_lib.TrainData:
    return data_lib.TrainData(arrays(), 16, seed=seed)


def dev_data() -> data_lib.EvalData:
    return data_lib.EvalData(arrays(37, seed=1), 16)


def config(**changes) -> ml_collections.ConfigDict:
    values = {"learning_rate": 0.02, "weight_decay": 0.1, "warmup_steps": 2} | changes
    return ml_collections.ConfigDict(values)


LIGHTWEIGHT = nnx.Not(nn.CentralCore)


def start(trainable=LIGHTWEIGHT, steps: int = 20, seed: int = 0, **changes):
    """(state, optimizer) of a fresh run."""
    model = Classifier(seed)
    optimizer = gradient_mask.make_optimizer(config(**changes), training.roles(model), steps)
    return training.TrainState.create(model, trainable, optimizer, seed=seed), optimizer


def one_device() -> jax.sharding.Mesh:
    return training.make_mesh(devices=jax.devices()[:1])


def run(
    folder=None, steps: int = 20, hooks=(), loss=loss_fn, mesh=None, trainable=LIGHTWEIGHT, **more
):
    """One run of the small classifier, checkpointed every 7 steps when it has a folder.

    Without a mesh on one device, which compiles faster than on all.
    """
    state, optimizer = start(trainable, steps)
    hooks = list(hooks)
    if folder is not None and not any(isinstance(h, training.Checkpoint) for h in hooks):
        hooks.append(training.Checkpoint(every=7))
    return training.fit(
        state,
        loss,
        train_data(),
        optimizer=optimizer,
        steps=steps,
        mesh=mesh or one_device(),
        hooks=hooks,
        folder=folder,
        log_every=more.pop("log_every", 2),
        **more,
    )


def assert_same_bits(one: training.TrainState, other: training.TrainState) -> None:
    """Every leaf equal to the bit."""
    leaves = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)
    wrong = [p for p, same in jax.tree_util.tree_flatten_with_path(leaves)[0] if not same]
    assert not wrong, f"leaves differ: {wrong}"


class CopyFolder(training.Hook):
    """Copies the folder of a run after a step that is saved: what is left of one killed then."""

    order = 95  # after `training.Checkpoint`

    def __init__(self, at: int, source, target):
        self.at, self.source, self.target = at, source, target

    def after_step(self, loop):
        if loop.step == self.at:
            for hook in loop.hooks:
                if isinstance(hook, training.Checkpoint):
                    hook._checkpoints.wait()
            # To read a lock would free it.
            shutil.copytree(self.source, self.target, ignore=shutil.ignore_patterns(".lock"))


class Stop(training.Hook):
    """Asks for a stop at one step, as a signal would."""

    def __init__(self, at: int):
        self.at = at

    def after_step(self, loop):
        if loop.step == self.at:
            loop.request_stop("test")


def dev_hook(every=5):
    evaluator = training.Evaluator(predict, training.accuracy)
    return training.Evaluate("dev", dev_data(), evaluator, every, best="accuracy")
