"""Sentence vectors and the heads on them or on every token."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import layers, mpo
from mpojax.layers.dropout import dropout, split_or_none
from mpojax.models.config import EncoderConfig
from mpojax.models.encoder import Encoder, Transformer


def pool(encoder: Encoder, hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Hidden states (batch, length, hidden) -> sentence vectors (batch, hidden).

    By `encoder.config.pooling`; "mean" leaves padding out, and a row of padding alone gives zeros.

    Raises:
      ValueError: the pooling is "none".
    """
    kind = encoder.config.pooling
    if kind == "pooler":
        activation = jnp.tanh if encoder.config.pooler_activation == "tanh" else jax.nn.relu
        return activation(encoder.pooler(hidden[:, 0]))
    if kind == "first":
        return hidden[:, 0]
    if kind == "none":
        raise ValueError("pooling='none' makes no sentence vector; choose pooler, mean or first.")
    if attention_mask is None:
        attention_mask = jnp.ones(hidden.shape[:2], bool)
    weights = attention_mask.astype(bool).astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    count = jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    return (total / count).astype(hidden.dtype)


class ModelWithHead(Transformer):
    """An encoder and a linear head; what the head reads is up to the kinds below."""

    def __init__(
        self,
        config: EncoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` as in `Encoder`, and `head`.

        Raises:
          ValueError: `config.num_labels` is None, or shapes that do not fit.
        """
        if config.num_labels is None:
            raise ValueError(f"a {type(self).__name__} needs config.num_labels.")
        super().__init__(config, shapes)
        shapes = self.shapes
        self.encoder = Encoder(config, shapes, rngs=rngs)
        self.head = layers.linear(
            config.hidden_size, config.num_labels, shapes.get("head"), dtype=config.dtype, rngs=rngs
        )


class SequenceClassifier(ModelWithHead):
    """Encoder, sentence vector, dropout, linear head; with one label a regression."""

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (batch, num_labels), float32; arguments as in `Encoder`."""
        encoder_key, head_key = split_or_none(dropout_key, 2)
        hidden = self.encoder(input_ids, attention_mask, token_type_ids, encoder_key)
        rate = self.config.classifier_dropout
        rate = self.config.dropout if rate is None else rate
        vector = dropout(pool(self.encoder, hidden, attention_mask), rate, head_key)
        return self.head(vector).astype(jnp.float32)


class SpanExtractor(ModelWithHead):
    """Encoder, dropout, linear head on every token: where an answer starts and ends."""

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (batch, length, 2) of start and end, float32; arguments as in `Encoder`.

        Those of padding are left as they come: mask them before a softmax over positions.
        """
        encoder_key, head_key = split_or_none(dropout_key, 2)
        hidden = self.encoder(input_ids, attention_mask, token_type_ids, encoder_key)
        hidden = dropout(hidden, self.config.classifier_dropout or 0.0, head_key)
        return self.head(hidden).astype(jnp.float32)


def build(
    config: EncoderConfig,
    shapes: Mapping[str, mpo.MPOShape] | None = None,
    *,
    rngs: nnx.Rngs,
) -> Encoder | SequenceClassifier | SpanExtractor:
    """A random model: an `Encoder` without `config.num_labels`, else one with its kind of head."""
    if config.num_labels is None:
        return Encoder(config, shapes, rngs=rngs)
    kind = {"classifier": SequenceClassifier, "span": SpanExtractor}[config.head]
    return kind(config, shapes, rngs=rngs)
