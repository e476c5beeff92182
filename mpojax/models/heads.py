"""Sentence vectors, and models with a head: on the vector, on every token, for pre-training."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.block import norm
from mpojax.models.config import DecoderConfig, EncoderConfig
from mpojax.models.decoder import Decoder
from mpojax.models.encoder import Encoder
from mpojax.models.model import Model
from mpojax.nn import dropout, split_or_none
from mpojax.nn.functional import along_last

_POOLER_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": nn.ACTIVATIONS["gelu"]}


def pool(
    encoder: Encoder | Decoder, hidden: jax.Array, attention_mask: jax.Array | None
) -> jax.Array:
    """Hidden states (batch, length, hidden) -> sentence vectors (batch, hidden).

    By `encoder.config.pooling`; "mean" leaves padding out, and a row of padding alone gives zeros.
    A decoder's is "last", the last real token.

    Raises:
      ValueError: the pooling is "none".
    """
    kind = encoder.config.pooling
    if kind == "last":
        return _last_real(hidden, attention_mask)
    if kind == "pooler":
        return _POOLER_ACTIVATIONS[encoder.config.pooler_activation](encoder.pooler(hidden[:, 0]))
    if kind == "first":
        return hidden[:, 0]
    if kind == "none":
        raise ValueError("pooling='none' makes no sentence vector; choose pooler, mean or first.")
    return _mean(hidden, attention_mask).astype(hidden.dtype)


def _mean(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Mean of the hidden states (batch, hidden) in the mask, float32; zeros for padding alone."""
    if attention_mask is None:
        attention_mask = jnp.ones(hidden.shape[:2], bool)
    weights = attention_mask.astype(bool).astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def _last_real(hidden: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """Hidden states (batch, hidden) of the last token in the mask."""
    if attention_mask is None:
        return hidden[:, -1]
    indices = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
    # (batch,), for padding at either side; 0 in a row of padding alone.
    last = jnp.max(jnp.where(attention_mask.astype(bool), indices, 0), axis=1)
    return _rows_at(hidden, last[:, None])[:, 0]


def similarity(model: Model, other: Model, batches: Iterable[Mapping[str, Any]]) -> float:
    """Mean cosine between the sentence vectors that two encoders give the same texts.

    Vectors are the mean over the tokens of a text, whatever pooling the models have.

    Args:
      model, other: encoders, with a head or without.
      batches: of `input_ids` (B, S), `attention_mask`, `token_type_ids`; rows that `example_mask`
        (B,) has False at do not count.

    Raises:
      ValueError: no row that counts.
    """
    total, count = 0.0, 0
    for batch in batches:
        mask = batch.get("attention_mask")
        mask = np.ones(np.shape(batch["input_ids"])) if mask is None else np.asarray(mask) != 0
        counted = mask.any(axis=1) & np.asarray(batch.get("example_mask", True))
        arrays = jnp.asarray(batch["input_ids"]), jnp.asarray(mask), batch.get("token_type_ids")
        u, v = (_mean_vectors(getattr(m, "encoder", m), *arrays) for m in (model, other))
        # cos = <u, v> of unit vectors
        total += float(np.sum(np.asarray(jnp.sum(u * v, axis=-1))[counted]))
        count += int(counted.sum())
    if not count:
        raise ValueError("similarity needs at least one text: the batches have no row that counts.")
    return total / count


@jax.jit
def _mean_vectors(encoder: Encoder, input_ids, mask, token_type_ids) -> jax.Array:
    """Unit sentence vectors (B, D), float32."""
    mean = _mean(encoder(input_ids, mask, token_type_ids), mask)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


class ModelWithHead(Model):
    """An encoder or decoder and a linear head; what the head reads is up to the kinds below."""

    needs_labels = True
    drops_by_default = False  # by `config.dropout`, where `classifier_dropout` is None

    @property
    def body(self) -> Encoder | Decoder:
        """What the head reads."""
        return self.encoder

    def __init__(
        self,
        config: EncoderConfig | DecoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` as in `Encoder`, and `head`.

        Raises:
          ValueError: `config.num_labels` is None, or shapes that do not fit.
        """
        if config.num_labels is None and self.needs_labels:
            raise ValueError(f"a {type(self).__name__} needs config.num_labels.")
        super().__init__(config, shapes)
        shapes = self.shapes
        causal = config.stacks[0].causal
        self.encoder = (Decoder if causal else Encoder)(config, shapes, rngs=rngs)
        if config.num_labels is None:
            self.head = None
        else:
            size = (config.hidden_size, config.num_labels)
            # Sequence classifiers of decoders have none in transformers.
            has_bias = not causal or config.head == "tokens"
            more = {"dtype": config.dtype, "rngs": rngs}
            self.head = nn.linear(*size, shapes.get("head"), has_bias, **more)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
        **more: Any,
    ) -> Any:
        """Outputs of the head, float32, see `apply_head`; arguments as in `Encoder`."""
        inputs = (input_ids, attention_mask, token_type_ids, dropout_key, segments)
        return self.forward(*inputs, **more)[0]

    def forward(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
        **more: Any,
    ) -> tuple[Any, jax.Array]:
        """(outputs, last hidden states (batch, length, hidden) in the compute dtype)."""
        encoder_key, head_key = split_or_none(dropout_key, 2)
        hidden = self.encoder(input_ids, attention_mask, token_type_ids, encoder_key, segments)
        return self.apply_head(hidden, attention_mask, head_key, **more), hidden

    def states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        attention: bool = False,
        **more: Any,
    ) -> tuple[Any, jax.Array, jax.Array | None]:
        """(outputs, hidden states of all layers, their attention); see `Encoder.states`."""
        encoder_key, head_key = split_or_none(dropout_key, 2)
        inputs = (input_ids, attention_mask, token_type_ids, encoder_key, segments)
        hidden, probabilities = self.encoder.states(*inputs, attention=attention)
        return self.apply_head(hidden[-1], attention_mask, head_key, **more), hidden, probabilities

    def apply_head(
        self,
        hidden: jax.Array,
        attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Any:
        """Last hidden states (batch, length, hidden) -> outputs, float32."""
        raise NotImplementedError

    @property
    def head_dropout(self) -> float:
        """Rate before the head."""
        rate, general = self.config.classifier_dropout, self.config.dropout
        return (general if self.drops_by_default else 0.0) if rate is None else rate


class SequenceClassifier(ModelWithHead):
    """Encoder, sentence vector, dropout, linear head; with one label a regression.

    Outputs are logits (batch, num_labels).
    """

    drops_by_default = True

    def apply_head(self, hidden, attention_mask=None, dropout_key=None):
        vector = pool(self.encoder, hidden, attention_mask)
        return self.head(dropout(vector, self.head_dropout, dropout_key)).astype(jnp.float32)


class TokenClassifier(ModelWithHead):
    """Encoder, dropout, linear head on every token, such as for names and parts of speech.

    Outputs are logits (batch, length, num_labels); those of padding are left as they come.
    """

    drops_by_default = True

    def apply_head(self, hidden, attention_mask=None, dropout_key=None):
        return self.head(dropout(hidden, self.head_dropout, dropout_key)).astype(jnp.float32)


class SpanExtractor(TokenClassifier):
    """The same head with two outputs for each token: where an answer starts and ends.

    Outputs are logits (batch, length, 2) of start and end. Mask those of padding before a softmax
    over positions.
    """

    drops_by_default = False


# By `EncoderConfig.head`.
KINDS = {"classifier": SequenceClassifier, "span": SpanExtractor, "tokens": TokenClassifier}


class MaskedLanguageModel(nnx.Module):
    """Hidden states -> vocabulary logits: a map, a norm, the transposed token embedding."""

    def __init__(self, config: EncoderConfig, shape: mpo.MPOShape | None, *, rngs: nnx.Rngs):
        """`shape` is the MPO form of the map, or None for a dense one."""
        self.activation = config.activation
        width = config.embedding_size or config.hidden_size
        self.transform = nn.linear(config.hidden_size, width, shape, dtype=config.dtype, rngs=rngs)
        self.norm = norm(config, width)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def __call__(self, hidden: jax.Array, word: nnx.Module) -> jax.Array:
        """Maps (..., hidden) to logits (..., vocabulary), float32."""
        x = self.norm(nn.ACTIVATIONS[self.activation](self.transform(hidden)))
        logits = word.attend(x).astype(jnp.float32)
        return logits + along_last(self.bias[...], logits)


class PretrainingModel(ModelWithHead):
    """Encoder, masked language model head and, with two labels, the head for sentence order.

    Outputs are logits (batch, P, vocabulary) of the masked language model, and (batch, K, 2) of the
    sentence order or None for a model without that head. Lan et al., "ALBERT" (ICLR 2020), section
    3.1.
    """

    needs_labels = False

    def __init__(
        self,
        config: EncoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` as in `Encoder`, and `head` and `masked_lm/transform`.

        Raises:
          ValueError: shapes that do not fit.
        """
        super().__init__(config, shapes, rngs=rngs)
        transform = self.shapes.get("masked_lm/transform")
        self.masked_lm = MaskedLanguageModel(config, transform, rngs=rngs)

    def apply_head(
        self,
        hidden: jax.Array,
        attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        *,
        mlm_positions: jax.Array | None = None,
        sop_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits of both heads; a call of the model takes the positions, too.

        Args:
          hidden, attention_mask, dropout_key: as in `ModelWithHead`.
          mlm_positions: (batch, P), the positions whose tokens are predicted; None for all. Logits
            are computed for these alone.
          sop_positions: (batch, K), the first positions of packed texts; None for the first one.
        """
        chosen = hidden if mlm_positions is None else _rows_at(hidden, mlm_positions)
        logits = self.masked_lm(chosen, self.encoder.embeddings.word)
        if self.head is None:
            return logits, None
        firsts = hidden[:, :1] if sop_positions is None else _rows_at(hidden, sop_positions)
        # Each first token is a sentence of its own to the pooler, which reads position 0.
        vectors = pool(self.encoder, firsts.reshape(-1, 1, firsts.shape[-1]), None)
        # (batch K, hidden) -> (batch, K, hidden)
        vectors = dropout(vectors, self.head_dropout, dropout_key).reshape(firsts.shape)
        return logits, self.head(vectors).astype(jnp.float32)


def _rows_at(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """(batch, length, hidden) at (batch, P) positions -> (batch, P, hidden)."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)
