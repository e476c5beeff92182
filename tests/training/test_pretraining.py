"""Loss, evaluation and filled masks of pre-training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpojax import training
from mpojax.training import evaluation
from mpojax.training.tasks import pretraining


class Model:
    """Logits that are given: (B, P, V) of words, (B, K, 2) of orders."""

    def __init__(self, words, order=None):
        self.words, self.order = jnp.asarray(words), order

    def __call__(self, *tokens, segments=None, mlm_positions=None, sop_positions=None):
        return self.words, None if self.order is None else jnp.asarray(self.order)


RNG = np.random.default_rng(0)
WORDS = RNG.standard_normal((2, 3, 7)).astype(np.float32)
ORDER = RNG.standard_normal((2, 2, 2)).astype(np.float32)
BATCH = {
    "input_ids": np.zeros((2, 8), np.int32),
    "attention_mask": np.ones((2, 8), np.int32),
    "token_type_ids": np.zeros((2, 8), np.int32),
    "mlm_positions": np.array([[1, 2, 0], [3, 4, 5]], np.int32),
    "mlm_labels": np.array([[5, 6, 0], [1, 2, 3]], np.int32),
    "mlm_weights": np.array([[1, 1, 0], [1, 1, 1]], np.float32),
    "sop_positions": np.zeros((2, 2), np.int32),
    "sop_labels": np.array([[1, 0], [0, 0]], np.int32),
    "sop_weights": np.array([[1, 0], [1, 1]], np.float32),
}


def _log_probabilities(logits):
    return np.asarray(jax.nn.log_softmax(logits.astype(np.float64), axis=-1))


def _expected():
    words, orders = _log_probabilities(WORDS), _log_probabilities(ORDER)
    mlm = [-words[b, p, BATCH["mlm_labels"][b, p]] for b, p in np.argwhere(BATCH["mlm_weights"])]
    sop = [-orders[b, p, BATCH["sop_labels"][b, p]] for b, p in np.argwhere(BATCH["sop_weights"])]
    return np.mean(mlm), np.mean(sop)


def test_the_loss_is_the_sum_of_both_means_over_real_places():
    loss, metrics = pretraining.pretraining_loss(Model(WORDS, ORDER), BATCH, jax.random.key(0))
    mlm, sop = _expected()
    np.testing.assert_allclose(metrics["mlm_loss"], mlm, rtol=1e-5)
    np.testing.assert_allclose(metrics["sop_loss"], sop, rtol=1e-5)
    np.testing.assert_allclose(loss, mlm + sop, rtol=1e-5)


def test_places_without_weight_have_no_gradient():
    def loss(words):
        return pretraining.pretraining_loss(Model(words, ORDER), BATCH, jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(WORDS))
    assert not np.any(gradient[0, 2])
    assert np.all(np.any(np.asarray(gradient)[BATCH["mlm_weights"] > 0] != 0.0, axis=-1))


def test_words_alone():
    batch = {name: a for name, a in BATCH.items() if not name.startswith("sop")}
    loss, metrics = pretraining.pretraining_loss(Model(WORDS), batch, jax.random.key(0))
    np.testing.assert_allclose(loss, _expected()[0], rtol=1e-5)
    assert set(metrics) == {"mlm_loss", "mlm_accuracy"}


def test_orders_without_a_head_are_refused():
    with pytest.raises(ValueError, match="no head for them; give it num_labels=2"):
        pretraining.pretraining_loss(Model(WORDS), BATCH, jax.random.key(0))


def test_evaluation_does_not_depend_on_the_batches():
    columns = {k: np.asarray(v) for k, v in pretraining.predict(Model(WORDS, ORDER), BATCH).items()}
    whole = pretraining.metrics(columns)
    halves = [
        {name: column[rows] for name, column in columns.items()} for rows in (slice(1), slice(1, 2))
    ]
    together = {name: np.concatenate([half[name] for half in halves]) for name in columns}
    assert pretraining.metrics(together) == whole
    np.testing.assert_allclose(whole["mlm_loss"], _expected()[0], rtol=1e-6)
    hits = (np.argmax(WORDS, -1) == BATCH["mlm_labels"]) * BATCH["mlm_weights"]
    np.testing.assert_allclose(whole["mlm_accuracy"], hits.sum() / 5)


def test_logits_that_are_not_finite_are_refused_when_evaluated():
    words = WORDS.copy()
    words[1, 2] = np.nan
    found = pretraining.predict(Model(words, ORDER), BATCH)
    columns = {name: np.asarray(value) for name, value in found.items()}
    names = pretraining.evaluator().metrics
    with pytest.raises(training.NonFiniteOutputError, match=r"mlm_accuracy: .* example 1"):
        evaluation.check_finite(columns, np.arange(2), names, "batch 1 of 1")


def test_nothing_to_predict_is_zero_and_finite():
    batch = BATCH | {
        "mlm_weights": np.zeros((2, 3), np.float32),
        "sop_weights": np.zeros((2, 2), np.float32),
    }
    loss, _ = pretraining.pretraining_loss(Model(WORDS, ORDER), batch, jax.random.key(0))
    assert float(loss) == 0.0


def test_a_fixed_batch_is_learned():
    """The gradient points down: a few steps of descent on the logits themselves."""
    words, optimizer = jnp.asarray(WORDS), optax.sgd(1.0)
    state = optimizer.init(words)

    @jax.jit
    def run(words):
        return jax.value_and_grad(
            lambda w: pretraining.pretraining_loss(Model(w, ORDER), BATCH, jax.random.key(0))[0]
        )(words)

    before, gradient = run(words)
    for _ in range(5):
        updates, state = optimizer.update(gradient, state)
        words = optax.apply_updates(words, updates)
        after, gradient = run(words)
    assert after < before - 0.3


class _Tokens:
    def vocabulary(self):
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "fox"]
        return {name: number for number, name in enumerate(names)}


def test_filled_masks_read_well():
    batch = {
        "input_ids": np.array([[2, 5, 4, 4, 3, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1, 1, 0]]),
        "mlm_positions": np.array([[2, 3, 0]]),
        "mlm_labels": np.array([[6, 5, 0]]),
        "mlm_weights": np.array([[1.0, 1.0, 0.0]]),
    }
    hook = pretraining.FilledMasks(batch, _Tokens(), every=1, rows=1)
    assert hook._text(0, [6, 6, 6]) == "[CLS] red [fox] [fox / red] [SEP]"
