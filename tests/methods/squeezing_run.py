"""A tiny encoder that is squeezed: for the tests, and as a process of its own.

`squeezing_run.py FOLDER [PAUSE]` runs it in FOLDER, sleeping PAUSE seconds after each step.
"""

import os
import pathlib
import sys
import time
import warnings

if __name__ == "__main__":
    warnings.simplefilter("error")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.path.insert(0, os.getcwd())

import jax
import numpy as np
from flax import nnx

import conftest  # noqa: F401  (the same strict settings as in the tests)
from mpojax import compression, data, models, training
from mpojax.methods.mpop import squeezing
from mpojax.methods.mpop.settings import SqueezingSettings

CONFIG = models.EncoderConfig(24, 16, 2, 2, 32, max_positions=6, dropout=0.1, attention_dropout=0.0)
RULES = [(".*/(query|key|up|down)", {}), ("embeddings/word", {})]
METRIC = "dev/accuracy"


def arrays(count: int, seed: int) -> dict[str, np.ndarray]:
    """Sequences of 6 tokens; the label says whether the first token is in the upper half."""
    ids = np.random.default_rng(seed).integers(0, 24, (count, 6)).astype(np.int32)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": (ids[:, 0] >= 12).astype(np.int32),
    }


def model() -> models.Model:
    dense = models.with_head(models.build(CONFIG, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1))
    return compression.compress(dense, RULES)[0]


def make_optimizer(chains: models.Model, name: str = "adamw"):
    settings = {"name": name, "learning_rate": 1e-2, "schedule": "constant"}
    return training.make_optimizer(settings, training.roles(chains), 1000)


def train_with(hooks=(), save_every=None):
    """The `train` of a run: a few steps on the toy data, then the development accuracy."""
    saves = [training.Checkpoint(every=save_every, at_end=False)] if save_every else []
    dev = data.EvalData(arrays(40, 1), 40)
    evaluator = training.Evaluator(training.classify, training.accuracy)

    def train(state, optimizer, steps, folder, description):
        return training.fit(
            state,
            training.objective("classification"),
            data.TrainData(arrays(64, 0), 8, seed=0),
            optimizer=optimizer,
            steps=steps,
            hooks=[*hooks, training.Evaluate("dev", dev, evaluator), *saves],
            folder=folder if saves else None,
        )

    return train


def run(folder: pathlib.Path, hooks=(), train=None, optimizer="adamw", gradients=None, **changes):
    """Squeezes the toy model in `folder`."""
    fields = {"steps": 3, "max_phases": 3, "max_metric_drop": 1.0, "multiple": 2, "factor": 0.6}
    return squeezing.Squeezing(
        model=model(),
        settings=SqueezingSettings(**(fields | changes)),
        trainable="lightweight",
        make_optimizer=lambda chains: make_optimizer(chains, optimizer),
        train=train or train_with(hooks),
        metric=METRIC,
        first_steps=4,
        folder=pathlib.Path(folder),
        gradients=gradients,
    ).run()


def main() -> None:
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

    def report(loop):
        time.sleep(pause)
        print(f"step {loop.step}", flush=True)

    hooks = [training.Call(report), training.StopOnSignal()]
    result = run(pathlib.Path(sys.argv[1]), train=train_with(hooks, save_every=2))
    if result.state is not None:
        leaves = jax.tree.leaves(result.state)
        np.savez(pathlib.Path(sys.argv[1]) / "final.npz", *[np.asarray(leaf) for leaf in leaves])
    print(f"ended: {result.why}", flush=True)


if __name__ == "__main__":
    main()
