"""Encoders: BERT, DistilBERT, ALBERT, MobileBERT, MPOBERT by their settings."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.block import Context, of_kinds
from mpojax.models.config import EncoderConfig, LayerKind
from mpojax.models.decoder import rotary_of
from mpojax.models.model import (
    Embeddings,
    Model,
    check_ids,
    check_length,
    check_shape,
    segment_positions,
)
from mpojax.models.stack import StackOutput, TransformerStack
from mpojax.nn import split_or_none


class Encoder(Model, TransformerStack):
    """Token ids -> hidden states; see `EncoderConfig`.

    Attributes:
      embeddings: tables and their norm.
      stacks, stack_ranges: the layers, see `TransformerStack`.
      pooler: the map of the first token, or None.
    """

    def __init__(
        self,
        config: EncoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` gives the MPO form of any matrix, by matrix path.

        Raises:
          ValueError: a shape for a path that does not exist, or of the wrong size.
        """
        of_heads = ("head", "masked_lm/transform")
        shapes = {path: s for path, s in (shapes or {}).items() if path not in of_heads}
        Model.__init__(self, config, shapes)
        self.embeddings = Embeddings(config, shapes, rngs=rngs)
        TransformerStack.__init__(self, config, shapes, config.stacks[0], rngs=rngs)
        size, more = (config.hidden_size, config.hidden_size), {"dtype": config.dtype, "rngs": rngs}
        has_pooler = config.pooling == "pooler"
        self.pooler = nn.linear(*size, shapes.get("pooler"), **more) if has_pooler else None
        outside = {
            path: settings
            for path, settings in matrices.adapter_settings(config).items()
            if path in ("embeddings/projection", "pooler")
        }
        nn.attach_adapters(self, outside, config.adapter_scale, rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states (batch, length, hidden) in the compute dtype.

        Args:
          input_ids: (batch, length) integers; an id outside the vocabulary gives NaN.
          attention_mask: (batch, length), nonzero or True at real tokens; None for all real.
            Rows of padding alone come back finite.
          token_type_ids: (batch, length) integers; None for all zero. A model without token types
            (DistilBERT) does not read them, so that one batch serves every model.
          dropout_key: turns dropout on; every layer gets a key of its own.
          segments: (batch, length) integers, for texts packed one after the other into a row:
            attention stays inside equal numbers, and positions start anew with each.

        Raises:
          ValueError: shapes that do not fit, or a sequence longer than the position table.
        """
        inputs = (input_ids, attention_mask, token_type_ids, dropout_key, segments)
        return self._checked_forward(*inputs).hidden

    def states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        attention: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Hidden states after every layer; arguments as in a call.

        Args:
          attention: whether the attention probabilities are computed, too (once more, from the
            inputs of the layers, without dropout).

        Returns:
          (layers, batch, length, hidden), of which the last is what a call gives; and (layers,
          batch, heads, length, length) or None.

        Raises:
          ValueError: inputs that do not fit; probabilities of layers with a bottleneck.
        """
        if attention and (self.config.bottleneck_size is not None or self.config.disentangled):
            raise ValueError(
                "attention=True: layers with a bottleneck or disentangled attention do not give "
                "probabilities."
            )
        record = _outputs_and_attention if attention else _outputs
        inputs = (input_ids, attention_mask, token_type_ids, dropout_key, segments)
        return self._checked_forward(*inputs, record=record).recorded

    def begin(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        """What the first layer reads: (embeddings, what all layers share)."""
        return _begin(self, input_ids, attention_mask, token_type_ids, None, None)

    def _checked_forward(
        self, input_ids, attention_mask, token_type_ids, dropout_key, segments, record=None
    ) -> StackOutput:
        check_ids("input_ids", input_ids)
        check_length(self.config, input_ids.shape[1])
        check_shape("attention_mask", attention_mask, input_ids.shape)
        check_shape("token_type_ids", token_type_ids, input_ids.shape)
        check_shape("segments", segments, input_ids.shape)
        inputs = (input_ids, attention_mask, token_type_ids, dropout_key, segments)
        return _forward(self, *inputs, record=record)


def _outputs(layer, x, y, context):
    return y, None


def _outputs_and_attention(layer, x, y, context):
    # What the attention of the layer has read: x itself unless its norm comes first.
    x = layer.normed("attention", x)
    return y, layer.attention.weights(x, context.mask, context.bias, context.rotary)


def self_attention_mask(
    attention_mask: jax.Array | None, segments: jax.Array | None = None
) -> nn.Mask | None:
    """Mask of attention in both directions, of padding and of packed texts (batch, length)."""
    real = None if attention_mask is None else attention_mask.astype(bool)
    if segments is None:
        return None if real is None else nn.mask_of_keys(real)
    return nn.mask_of_segments(segments, real)


def _positions(config: EncoderConfig, input_ids, segments) -> jax.Array | None:
    """Rows of the position table (batch, length); None for 0, 1, ..."""
    if segments is not None:
        return config.position_offset + segment_positions(segments)
    if not config.position_offset:
        return None
    real = input_ids != config.pad_id
    # RoBERTa: real token number n (from 1) reads row pad_id + n, padding row pad_id.
    before = config.position_offset - 1
    return jnp.where(real, before + jnp.cumsum(real, axis=1, dtype=jnp.int32), before)


# So that a call outside of any jit compiles once, not at every call.
@functools.partial(jax.jit, static_argnames="record")
def _forward(
    encoder: Encoder, input_ids, attention_mask, token_type_ids, dropout_key, segments, record=None
):
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x, context = _begin(encoder, input_ids, attention_mask, token_type_ids, embed_key, segments)
    return encoder.run(x, context, layers_key, record=record)


def _begin(encoder: Encoder, input_ids, attention_mask, token_type_ids, dropout_key, segments):
    """(embeddings, what all layers share)."""
    positions = _positions(encoder.config, input_ids, segments)
    x = encoder.embeddings(input_ids, positions, token_type_ids, dropout_key)
    mask = self_attention_mask(attention_mask, segments)
    of_kinds = _of_kinds(encoder.config, mask, positions, input_ids.shape[1])
    return x, Context(**of_kinds, **_distances(encoder, x))


def _distances(encoder: Encoder, x: jax.Array) -> dict:
    """What a `Context` has of distances between the positions of `x`."""
    config, indices = encoder.config, jnp.arange(x.shape[1], dtype=jnp.int32)
    if config.disentangled:
        rows = encoder.distance_norm(encoder.distance_rows.table[...]).astype(x.dtype)
        sizes = (config.relative_buckets, config.relative_distance)
        return {"distances": (rows, jnp.asarray(nn.log_distances(x.shape[1], *sizes)))}
    if config.relative_buckets is not None:
        return {"bias": encoder.relative_bias(indices, indices).astype(x.dtype)}
    return {}


def _of_kinds(config: EncoderConfig, mask, positions, length: int) -> dict:
    """Mask, rotary positions and kinds of layers of a `Context`."""
    indices = jnp.arange(length, dtype=jnp.int32)
    positions = indices[None] if positions is None else positions

    def of_kind(kind: LayerKind):
        seen = mask
        if config.sliding_window:  # One shape for the layers with it and for those without.
            reach = length if kind.window is None else kind.window
            # (1, 1, length, length): |i - j| <= reach, to both sides.
            near = (jnp.abs(indices[:, None] - indices[None]) <= reach)[None, None]
            seen = nn.Mask(jnp.ones((1, 1, 1, 1), bool)) if mask is None else mask
            seen = seen.within(near, (kind.window, kind.window))
        return seen, rotary_of(config, kind, positions, length)

    return of_kinds(config.layer_kinds, of_kind)
