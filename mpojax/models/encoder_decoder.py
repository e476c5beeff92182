"""T5: an encoder, and a decoder that attends to its output; any matrix dense, MPO or experts.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Model"
(JMLR 2020).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.models.block import Context
from mpojax.models.cache import Cache
from mpojax.models.config import EncoderDecoderConfig
from mpojax.models.decoder import LanguageModelOutput, causal_mask, logits_head, logits_of
from mpojax.models.encoder import self_attention_mask
from mpojax.models.model import Embeddings, Model, check_ids, check_shape
from mpojax.models.stack import Record, TransformerStack
from mpojax.nn import dropout, split_or_none


class SourceEncoder(Model):
    """Source ids -> hidden states of an encoder-decoder's encoder (without a decoder, of T5's).

    Attributes:
      embeddings: the token embedding, of both stacks and of the output.
      towers: the transformer stacks, "encoder" and, where there is one, "decoder".
    """

    batch_inputs = ("input_ids", "attention_mask")

    def __init__(
        self,
        config: EncoderDecoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` gives the MPO form of any matrix, by matrix path.

        Raises:
          ValueError: a shape for a path that does not exist, or of the wrong size.
        """
        super().__init__(config, shapes)
        shapes = self.shapes
        self.embeddings = Embeddings(config, shapes, rngs=rngs)
        self.towers = nnx.Dict(
            {
                spec.prefix.rstrip("/"): TransformerStack(config, shapes, spec, rngs=rngs)
                for spec in config.stacks
            }
        )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states (batch, length, hidden) in the compute dtype; arguments as in `encode`."""
        _check_source(input_ids, attention_mask)
        return _encode(self, input_ids, attention_mask, dropout_key)[0]

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Hidden states (batch, source length, hidden) of the encoder, in the compute dtype.

        Args:
          input_ids: (batch, source length) integers; an id outside the vocabulary gives NaN.
          attention_mask: (batch, source length), True or nonzero at real tokens; None: all real.

        Raises:
          ValueError: shapes that do not fit.
        """
        _check_source(input_ids, attention_mask)
        return _encode(self, input_ids, attention_mask, None)[0]


class EncoderDecoder(SourceEncoder):
    """Source ids and target ids -> logits of the next target token; see `EncoderDecoderConfig`.

    Attributes:
      head: the map to logits, where it is not the token embedding.
    """

    batch_inputs = (
        *SourceEncoder.batch_inputs,
        *("decoder_input_ids", "decoder_attention_mask"),
    )

    def __init__(
        self,
        config: EncoderDecoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; as `SourceEncoder`."""
        super().__init__(config, shapes, rngs=rngs)
        if not config.tied:
            self.head = logits_head(config, self.shapes, rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (batch, target length, vocabulary), float32; arguments as in `forward`."""
        return self.forward(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, dropout_key
        ).logits

    def forward(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> LanguageModelOutput:
        """Logits, and what the routers of experts did.

        Args:
          input_ids: (batch, source length) integers; an id outside the vocabulary gives NaN.
          attention_mask: (batch, source length), True or nonzero at real tokens; None: all real.
          decoder_input_ids: (batch, target length): the start token, then the target; or
            (batch k, target length), k targets of each source one after another.
          decoder_attention_mask: the same for them.
          dropout_key: turns dropout, and the noise of a noisy router, on.

        Raises:
          ValueError: shapes that do not fit.
        """
        _check_source(input_ids, attention_mask)
        check_ids("decoder_input_ids", decoder_input_ids)
        check_shape("decoder_attention_mask", decoder_attention_mask, decoder_input_ids.shape)
        encoder_key, decoder_key = split_or_none(dropout_key, 2)
        encoder_output, routing, _ = _encode(self, input_ids, attention_mask, encoder_key)
        encoder_output, attention_mask = _for_targets(
            input_ids, decoder_input_ids, encoder_output, attention_mask
        )
        output = _decode(
            self,
            decoder_input_ids,
            encoder_output,
            attention_mask,
            decoder_attention_mask,
            decoder_key,
            None,
        )
        return LanguageModelOutput(output.logits, routing + output.routing)

    def start_cache(self, encoder_output: jax.Array, length: int) -> Cache:
        """An empty cache for targets of up to `length` tokens, start token included, with the keys
        and values of the encoder's output.
        """
        return self.towers["decoder"].empty_cache(encoder_output.shape[0], length, encoder_output)

    def prefill(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array | None, Cache]:
        """Reads a source: (logits (batch, vocabulary) of the first token of the target, mask for
        `decode`, cache).
        """
        # The start token, and all new ones but the last, which is never read.
        cache = self.start_cache(self.encode(input_ids, attention_mask), max_new_tokens)
        start = jnp.full((input_ids.shape[0], 1), self.config.decoder_start_id, jnp.int32)
        output = self.decode(start, attention_mask, cache)
        return output.logits[:, 0], attention_mask, output.cache

    def recorded(
        self,
        record: Record,
        input_ids: jax.Array,
        attention_mask: jax.Array | None,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
    ) -> dict[str, Any]:
        """{prefix of a stack: what `record` keeps of its layers, leading axis = layer}."""
        encoded, _, of_encoder = _encode(self, input_ids, attention_mask, None, record)
        encoded, mask = _for_targets(input_ids, decoder_input_ids, encoded, attention_mask)
        given = (decoder_input_ids, encoded, mask, decoder_attention_mask, None, None)
        return {"encoder/": of_encoder, "decoder/": _decode(self, *given, record)}

    def decode(
        self, decoder_input_ids: jax.Array, attention_mask: jax.Array | None, cache: Cache
    ) -> LanguageModelOutput:
        """Logits of the ids (batch, length) that follow those in the cache.

        `attention_mask` is that of the source.

        Raises:
          ValueError: shapes that do not fit, or more ids than the cache can hold (inside of a
            jax transformation only what shapes show).
        """
        check_ids("decoder_input_ids", decoder_input_ids)
        check_shape("attention_mask", attention_mask, cache.encoder_keys_values[0].shape[1:3])
        cache.check_fits(decoder_input_ids.shape[1])
        return _decode(self, decoder_input_ids, None, attention_mask, None, None, cache)


def _check_source(input_ids, attention_mask):
    check_ids("input_ids", input_ids)
    check_shape("attention_mask", attention_mask, input_ids.shape)


def _for_targets(input_ids, decoder_input_ids, encoder_output, mask):
    """The encoder's output and its mask, a row for each target."""
    each = _targets_each(input_ids, decoder_input_ids)
    if each == 1:
        return encoder_output, mask
    # Repeated row by row, not as a whole: the targets of a source stand one after another.
    mask = None if mask is None else jnp.repeat(mask, each, axis=0)
    return jnp.repeat(encoder_output, each, axis=0), mask


def _targets_each(input_ids: jax.Array, decoder_input_ids: jax.Array) -> int:
    """Targets of each source.

    Raises:
      ValueError: sources have different numbers of them.
    """
    each, rest = divmod(decoder_input_ids.shape[0], input_ids.shape[0])
    if rest or not each:
        raise ValueError(
            f"decoder_input_ids has {decoder_input_ids.shape[0]} rows for {input_ids.shape[0]} "
            "sources; it must have a multiple of that."
        )
    return each


def _distances(stack: TransformerStack, x, queries, keys) -> dict:
    """Entries of a `Context`: the bias by distance of a stack, or what its layers make one of."""
    if stack.config.relative_per_layer:
        return {"positions": (queries, keys)}
    return {"bias": stack.relative_bias(queries, keys).astype(x.dtype)}


# Jitted, so that a call outside of any jit compiles once, not at every call.
@functools.partial(jax.jit, static_argnames="record")
def _encode(model: SourceEncoder, input_ids, attention_mask, dropout_key, record=None):
    stack, rate = model.towers["encoder"], model.config.dropout
    first_key, layers_key, last_key = split_or_none(dropout_key, 3)
    positions = jnp.arange(input_ids.shape[1], dtype=jnp.int32)
    x = model.embeddings(input_ids, dropout_key=first_key)
    context = Context(
        mask=self_attention_mask(attention_mask),
        **_distances(stack, x, positions, positions),
        tokens=None if attention_mask is None else attention_mask.astype(bool),
    )
    output = stack.run(x, context, layers_key, record=record)
    return dropout(output.hidden, rate, last_key), output.routing, output.recorded


@functools.partial(jax.jit, static_argnames="record")
def _decode(
    model: EncoderDecoder,
    ids,
    encoder_output,
    encoder_mask,
    tokens,
    dropout_key,
    cache,
    record=None,
):
    stack, config = model.towers["decoder"], model.config
    first_key, layers_key, last_key = split_or_none(dropout_key, 3)
    start = jnp.int32(0) if cache is None else cache.position
    queries = start + jnp.arange(ids.shape[1], dtype=jnp.int32)
    # With a cache all its slots are keys; the causal mask hides those not written yet.
    keys = jnp.arange(ids.shape[1] if cache is None else cache.length, dtype=jnp.int32)
    tokens = None if tokens is None else tokens.astype(bool)
    mask = causal_mask(queries, keys.size, real=tokens, is_whole=cache is None)
    x = model.embeddings(ids, dropout_key=first_key)
    context = Context(
        mask=mask,
        **_distances(stack, x, queries, keys),
        tokens=tokens,
        encoder_output=encoder_output,
        encoder_mask=self_attention_mask(encoder_mask),
    )
    output = stack.run(x, context, layers_key, cache, record)
    if record is not None:
        return output.recorded
    x = dropout(output.hidden, config.dropout, last_key)
    if config.tied and config.scale_logits:
        # T5 1.0: logits are (h / sqrt(hidden)) E^T
        x = x / jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
    return LanguageModelOutput(logits_of(model, x), output.routing, output.cache)
