"""Loss functions of whole tasks, as the training loop takes them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def classification_loss(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Mean cross-entropy of a text classifier, with dropout, and the batch's accuracy.

    Args:
      model: (input_ids, attention_mask, token_type_ids, dropout_key) -> logits (B, C).
      batch: input_ids, attention_mask, token_type_ids (B, S) and labels (B,).
      key: random key of the step.
    """
    logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    hits = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(jnp.float32)
    return jnp.mean(losses), {"accuracy": jnp.mean(hits)}
