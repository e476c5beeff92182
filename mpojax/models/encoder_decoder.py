"""T5: an encoder, and a decoder that attends to its output; any matrix dense, MPO or experts.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
(JMLR 2020).
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.decoder import LanguageModelOutput, head
from mpojax.models.decoder_config import EncoderDecoderConfig
from mpojax.models.encoder import Transformer
from mpojax.models.language_layers import Context
from mpojax.models.tower import Cache, Tower, check_ids
from mpojax.nn.dropout import dropout, split_or_none


class BiasedTower(Tower):
    """A tower whose positions are a bias by distance, one table for all its layers."""

    def __init__(
        self,
        config: EncoderDecoderConfig,
        shapes: Mapping[str, mpo.MPOShape],
        name: str,
        num_layers: int,
        *,
        rngs: nnx.Rngs,
    ):
        """`name` is "encoder" or "decoder"."""
        is_decoder = name == "decoder"
        super().__init__(config, shapes, f"{name}/", num_layers, is_decoder, rngs=rngs)
        self.relative_bias = nn.RelativeBias(
            config.relative_buckets,
            config.num_heads,
            config.relative_distance,
            not is_decoder,
            rngs=rngs,
        )


class EncoderDecoder(Transformer):
    """Source ids and target ids -> logits of the next target token; see `EncoderDecoderConfig`."""

    batch_inputs = (
        *("input_ids", "attention_mask"),
        *("decoder_input_ids", "decoder_attention_mask"),
    )

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
        self.embeddings = _Word(config, shapes, rngs=rngs)
        depths = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
        self.towers = nnx.Dict(
            {
                name: BiasedTower(config, shapes, name, depth, rngs=rngs)
                for name, depth in depths.items()
            }
        )
        if not config.tied:
            self.head = head(config, shapes, rngs)

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
          decoder_input_ids: (batch, target length): the start token, then the target.
          decoder_attention_mask: the same for them.
          dropout_key: turns dropout, and the noise of a noisy router, on.

        Raises:
          ValueError: shapes that do not fit.
        """
        for name, ids, mask in (
            ("", input_ids, attention_mask),
            ("decoder_", decoder_input_ids, decoder_attention_mask),
        ):
            check_ids(f"{name}input_ids", ids)
            _check_mask(f"{name}attention_mask", mask, ids.shape)
        encoder_key, decoder_key = split_or_none(dropout_key, 2)
        memory, of_encoder = _encode(self, input_ids, attention_mask, encoder_key)
        logits, _, of_decoder = _decode(
            self,
            decoder_input_ids,
            memory,
            attention_mask,
            decoder_attention_mask,
            decoder_key,
            None,
        )
        return LanguageModelOutput(logits, of_encoder + of_decoder)

    def encode(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Hidden states (batch, source length, hidden) of the encoder, in the compute dtype.

        Raises:
          ValueError: shapes that do not fit.
        """
        check_ids("input_ids", input_ids)
        _check_mask("attention_mask", attention_mask, input_ids.shape)
        return _encode(self, input_ids, attention_mask, None)[0]

    def start_cache(self, memory: jax.Array, places: int) -> Cache:
        """An empty cache for targets of up to `places` tokens, start token included, with the keys
        and values of the encoder's output.
        """
        return self.towers["decoder"].empty_cache(memory.shape[0], places, memory)

    def decode(
        self, decoder_input_ids: jax.Array, attention_mask: jax.Array | None, cache: Cache
    ) -> LanguageModelOutput:
        """Logits of the ids (batch, length) that follow those in the cache.

        `attention_mask` is that of the source.

        Raises:
          ValueError: shapes that do not fit, or more ids than the cache has places left (inside
            of a jax transformation only what shapes show).
        """
        check_ids("decoder_input_ids", decoder_input_ids)
        _check_mask("attention_mask", attention_mask, cache.memory[0].shape[1:3])
        cache.check_places(decoder_input_ids.shape[1])
        logits, cache, routing = _decode(
            self, decoder_input_ids, None, attention_mask, None, None, cache
        )
        return LanguageModelOutput(logits, routing, cache)


def _check_mask(name: str, mask, shape: tuple[int, ...]):
    if mask is not None and mask.shape != tuple(shape):
        raise ValueError(f"{name} has shape {mask.shape}; it must be that of its ids, {shape}.")


class _Word(nnx.Module):
    """The token embedding, of both towers and of the output."""

    def __init__(self, config, shapes, *, rngs: nnx.Rngs):
        size = (config.vocab_size, config.hidden_size)
        shape = shapes.get("embeddings/word")
        self.word = nn.embedding(*size, shape, dtype=config.dtype, rngs=rngs)


@jax.jit  # So that a call outside of any jit compiles once, not at every call.
def _encode(model: EncoderDecoder, input_ids, attention_mask, dropout_key):
    tower, rate = model.towers["encoder"], model.config.dropout
    first_key, layers_key, last_key = split_or_none(dropout_key, 3)
    places = jnp.arange(input_ids.shape[1], dtype=jnp.int32)
    bias = tower.relative_bias(places, places)
    real = None if attention_mask is None else attention_mask.astype(bool)
    mask = None if real is None else real[:, None, None, :]
    x = dropout(model.embeddings.word(input_ids), rate, first_key)
    context = Context(mask=mask, bias=bias.astype(x.dtype), tokens=real)
    x, _, routing = tower.run(x, context, layers_key)
    return dropout(x, rate, last_key), routing


@jax.jit
def _decode(model, ids, memory, memory_mask, tokens, dropout_key, cache):
    tower, config = model.towers["decoder"], model.config
    first_key, layers_key, last_key = split_or_none(dropout_key, 3)
    start = jnp.int32(0) if cache is None else cache.position
    queries = start + jnp.arange(ids.shape[1], dtype=jnp.int32)
    places = ids.shape[1] if cache is None else cache.keys.shape[2]
    keys = jnp.arange(places, dtype=jnp.int32)
    x = dropout(model.embeddings.word(ids), config.dropout, first_key)
    mask = (keys[None] <= queries[:, None])[None, None]
    if tokens is not None:
        tokens = tokens.astype(bool)
        mask = jnp.logical_and(mask, tokens[:, None, None, :])
    context = Context(
        mask=mask,
        bias=tower.relative_bias(queries, keys).astype(x.dtype),
        tokens=tokens,
        memory=memory,
        memory_mask=None if memory_mask is None else memory_mask.astype(bool)[:, None, None, :],
    )
    x, cache, routing = tower.run(x, context, layers_key, cache)
    x = dropout(x, config.dropout, last_key)
    if not config.tied:
        return model.head(x).astype(jnp.float32), cache, routing
    if config.scale_logits:
        x = x / jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
    return model.embeddings.word.attend(x, "float32"), cache, routing
