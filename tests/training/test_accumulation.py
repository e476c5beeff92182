"""Micro-batches in which unequally many places count."""

import jax
import numpy as np
from flax import nnx

from mpojax import models, training
from mpojax.training.tasks import pretraining

CONFIG = models.EncoderConfig(
    vocab_size=20,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    max_positions=8,
    masked_lm=True,
    num_labels=2,
    dropout=0.0,
    attention_dropout=0.0,
)


class _Unequal:
    """Rows with 0 to 4 masks and 0 to 2 texts whose order counts."""

    batch_size = 16

    def rows(self, step, rows):
        rng = np.random.default_rng(step)
        ids = rng.integers(1, 20, (16, 8)).astype(np.int32)
        masks, texts = np.arange(16) % 5, np.arange(16) % 4 // 2 * 2
        batch = {
            "input_ids": ids,
            "mlm_positions": rng.integers(0, 8, (16, 4)).astype(np.int32),
            "mlm_labels": rng.integers(1, 20, (16, 4)).astype(np.int32),
            "mlm_weights": (np.arange(4) < masks[:, None]).astype(np.float32),
            "sop_positions": np.zeros((16, 2), np.int32),
            "sop_labels": rng.integers(0, 2, (16, 2)).astype(np.int32),
            "sop_weights": (np.arange(2) < texts[:, None]).astype(np.float32),
        }
        return {name: array[rows] for name, array in batch.items()}


def _run(grad_accum_steps):
    model = models.build(CONFIG, rngs=nnx.Rngs(0))
    optimizer = training.make_optimizer(
        {"name": "sgd", "learning_rate": 0.1, "beta1": 0.0}, training.roles(model), 3
    )
    return training.fit(
        training.TrainState.create(model, nnx.Param, optimizer),
        pretraining.pretraining_loss,
        _Unequal(),
        optimizer=optimizer,
        steps=3,
        mesh=training.make_mesh(devices=jax.devices()[:1]),
        log_every=1,
        grad_accum_steps=grad_accum_steps,
    )


def test_every_masked_word_of_the_batch_counts_alike():
    whole, parts = _run(1), _run(4)
    for name in ("loss", "gradient_norm", "mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy"):
        np.testing.assert_allclose(parts.metrics[name], whole.metrics[name], rtol=1e-5)
    for part, one in zip(
        jax.tree.leaves(parts.state.trainable), jax.tree.leaves(whole.state.trainable), strict=True
    ):
        np.testing.assert_allclose(part, one, rtol=1e-4, atol=1e-6)
