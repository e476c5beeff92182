"""A causal language model: GPT-2 and LLaMA by their settings; any matrix dense, MPO or experts."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.decoder_config import DecoderConfig
from mpojax.models.encoder import Transformer
from mpojax.models.language_layers import Context
from mpojax.models.tower import Cache, Tower, check_ids
from mpojax.nn import rotary
from mpojax.nn.dropout import dropout, split_or_none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LanguageModelOutput:
    """Output of `forward` of a language model.

    Attributes:
      logits: (batch, length, vocabulary), float32.
      routing: statistics of the experts' routers, one for each stack of layers with experts (of an
        encoder-decoder: the encoder's first), leading axis = layer.
      cache: KV cache, where one was given.
    """

    logits: jax.Array
    routing: tuple[nn.RouterStatistics, ...] = ()
    cache: Cache | None = None


class Tables(nnx.Module):
    """Word rows, and position rows where positions are learned."""

    def __init__(
        self, config: DecoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by name: word, position."""
        sizes = matrices.under(matrices.matrix_sizes(config), "embeddings/")
        for name, size in sizes.items():
            table = nn.embedding(*size, shapes.get(name), dtype=config.dtype, rngs=rngs)
            setattr(self, name, table)


class LanguageModel(Transformer):
    """Token ids -> logits of the next token; see `DecoderConfig`."""

    batch_inputs = ("input_ids", "attention_mask")

    def __init__(
        self,
        config: DecoderConfig,
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
        self.embeddings = Tables(config, matrices.under(shapes, "embeddings/"), rngs=rngs)
        self.tower = Tower(config, shapes, "", config.num_layers, False, rngs=rngs)
        if not config.tied:
            self.head = head(config, shapes, rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (batch, length, vocabulary), float32; arguments as in `forward`."""
        return self.forward(input_ids, attention_mask, dropout_key).logits

    def forward(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> LanguageModelOutput:
        """Logits, and what the routers of experts did.

        Args:
          input_ids: (batch, length) integers; an id outside the vocabulary gives NaN.
          attention_mask: True or nonzero at real tokens; None for all real. Places are counted over
            real tokens, so that texts may be padded on the left. Without a cache (batch, length);
            with one (batch, places of the cache), whose later places do not matter yet.
          dropout_key: turns dropout, and the noise of a noisy router, on.
          cache: of earlier calls, see `start_cache`; the ids are those that follow.
          last_only: logits (batch, 1, vocabulary) of the last position alone: of a long prompt
            no others are needed, and all of them are large.

        Raises:
          ValueError: shapes that do not fit, a sequence longer than `config.max_positions`, or more
            ids than the cache has places left (inside of a jax transformation only what shapes
            show).
        """
        places = input_ids.shape[-1] if cache is None else cache.keys.shape[2]
        _check_inputs(self.config, input_ids, attention_mask, places)
        if cache is not None:
            cache.check_places(input_ids.shape[1])
        return _forward(self, input_ids, attention_mask, dropout_key, cache, last_only)

    def start_cache(self, batch: int, places: int) -> Cache:
        """An empty cache for sequences of up to `places` tokens.

        Raises:
          ValueError: more places than the model has positions.
        """
        _check_length(self.config, places)
        return self.tower.empty_cache(batch, places)


# Jitted so that a call outside of any jit compiles once, not at every call.
@functools.partial(jax.jit, static_argnums=5)
def _forward(model: LanguageModel, input_ids, attention_mask, dropout_key, cache, last_only):
    config, length = model.config, input_ids.shape[1]
    start = jnp.int32(0) if cache is None else cache.position
    places = length if cache is None else cache.keys.shape[2]
    queries = start + jnp.arange(length, dtype=jnp.int32)
    mask = (jnp.arange(places, dtype=jnp.int32)[None] <= queries[:, None])[None, None]
    positions, tokens = queries[None], None
    if attention_mask is not None:
        real = attention_mask.astype(bool)
        mask = jnp.logical_and(mask, real[:, None, None, :])
        counted = jnp.cumsum(real.astype(jnp.int32), axis=1) - 1
        positions = jax.lax.dynamic_slice_in_dim(jnp.maximum(counted, 0), start, length, axis=1)
        tokens = jax.lax.dynamic_slice_in_dim(real, start, length, axis=1)
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x, turns = model.embeddings.word(input_ids), None
    if config.positions == "learned":
        x = x + model.embeddings.position(positions)
    else:
        numbers = rotary.wave_numbers(config.head_size, config.rotary_base, config.rotary_scaling)
        turns = rotary.angles(positions, numbers)
    x = dropout(x, config.embedding_dropout, embed_key)
    context = Context(mask=mask, turns=turns, tokens=tokens)
    x, cache, routing = model.tower.run(x, context, layers_key, cache)
    x = x[:, -1:] if last_only else x
    logits = model.embeddings.word.attend(x, "float32") if config.tied else model.head(x)
    return LanguageModelOutput(logits.astype(jnp.float32), routing, cache)


def head(config, shapes: Mapping[str, mpo.MPOShape], rngs: nnx.Rngs) -> nnx.Module:
    """The map of hidden states to logits, where it is not the token embedding."""
    size = (config.hidden_size, config.vocab_size)
    return nn.linear(*size, shapes.get("head"), False, dtype=config.dtype, rngs=rngs)


def _check_inputs(config, input_ids, attention_mask, places: int):
    check_ids("input_ids", input_ids)
    _check_length(config, places)
    expected = (input_ids.shape[0], places)
    if attention_mask is not None and attention_mask.shape != expected:
        raise ValueError(f"attention_mask has shape {attention_mask.shape}; it must be {expected}.")


def _check_length(config, places: int):
    if places > config.max_positions:
        raise ValueError(
            f"a sequence of {places} tokens is longer than max_positions={config.max_positions}; "
            "cut the text, or generate fewer tokens."
        )
