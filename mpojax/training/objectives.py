"""Loss functions of whole tasks, as the training loop takes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mpojax import checks

LossFunction = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]


def objective(kind: str) -> LossFunction:
    """The loss function of a kind of task: "classification", "regression" or "span".

    Raises:
      ValueError: another kind.
    """
    checks.check_value("kind", kind, checks.one_of(*_OBJECTIVES))
    return _OBJECTIVES[kind]


def classification_loss(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Mean cross-entropy of a text classifier, with dropout, and the batch's accuracy.

    Args:
      model: (input_ids, attention_mask, token_type_ids, dropout_key) -> logits (B, C).
      batch: input_ids, attention_mask, token_type_ids (B, S) and labels (B,).
      key: random key of the step.
    """
    logits, labels = outputs(model, batch, key), labels_of(batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.mean(losses), {"accuracy": jnp.mean(hits)}


def regression_loss(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Mean squared error of a model with one output, with dropout, and the mean absolute error.

    Args:
      model: as in `classification_loss`, with logits (B, 1).
      batch: token arrays (B, S) and labels (B,) float32.
      key: random key of the step.
    """
    errors = scores(outputs(model, batch, key)) - labels_of(batch)
    return jnp.mean(errors**2), {"mean_absolute_error": jnp.mean(jnp.abs(errors))}


def span_loss(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Mean of the cross-entropies of first and last token (BERT, arXiv:1810.04805, section 4.2).

    Args:
      model: as in `classification_loss`, with logits (B, S, 2) of start and end.
      batch: token arrays (B, S) and labels (B, 2) int32, positions of the first and the last token
        of the answer; (0, 0), the first token, for windows without the answer.
      key: random key of the step.

    Returns:
      The loss, and the fraction of windows in which both positions are the most likely ones.
    """
    logits, labels = span_logits(outputs(model, batch, key), batch), labels_of(batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = jnp.all(jnp.argmax(logits, axis=-1) == labels, axis=-1)
    return jnp.mean(losses), {"accuracy": jnp.mean(hits.astype(jnp.float32))}


def outputs(model: Any, batch: dict, key: jax.Array | None = None) -> jax.Array:
    """Output of the model for a batch of token arrays; without a key there is no dropout."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(*(batch.get(name) for name in names), *(() if key is None else (key,)))


def scores(logits: jax.Array) -> jax.Array:
    """(B, 1) -> (B,) of a regression.

    Raises:
      ValueError: the model has another number of outputs.
    """
    if logits.ndim != 2 or logits.shape[1] != 1:
        raise ValueError(
            f"a regression needs a model with one output, logits (B, 1); got shape {logits.shape}. "
            "Give the model a head with num_labels=1"
        )
    return logits[:, 0]


def span_logits(logits: jax.Array, batch: dict) -> jax.Array:
    """(B, S, 2) -> (B, 2, S), padding made impossible, so that it never counts in a softmax.

    Raises:
      ValueError: the model has no span head.
    """
    expected = (*batch["input_ids"].shape, 2)
    if logits.shape != expected:
        raise ValueError(
            f"a span task needs start and end logits of shape {expected}; got {logits.shape}. "
            'Give the model a head with head="span"'
        )
    logits = jnp.swapaxes(logits, 1, 2)
    if batch.get("attention_mask") is None:
        return logits
    real = batch["attention_mask"][:, None, :] != 0
    # Finite: a row of padding alone must not become NaN.
    return jnp.where(real, logits, jnp.finfo(logits.dtype).min)


def labels_of(batch: dict) -> jax.Array:
    """The labels of a batch.

    Raises:
      ValueError: it has none.
    """
    if "labels" not in batch:
        raise ValueError(f"the batch has no labels, only {sorted(batch)}; train on another split")
    return batch["labels"]


_OBJECTIVES = {
    "classification": classification_loss,
    "regression": regression_loss,
    "span": span_loss,
}
