"""Causal language models: GPT-2 and LLaMA by their settings; any matrix dense, MPO or experts."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.block import Context
from mpojax.models.cache import Cache
from mpojax.models.config import DecoderConfig, LanguageModelConfig
from mpojax.models.model import Embeddings, Model, check_ids, check_length
from mpojax.models.stack import StackOutput, TransformerStack
from mpojax.nn import positions as positions_lib
from mpojax.nn import split_or_none


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


class LanguageModel(Model):
    """Token ids -> logits of the next token; see `DecoderConfig`.

    Attributes:
      embeddings: word rows, and position rows where positions are learned.
      tower: the transformer stack.
      head: the map to logits, where it is not the token embedding.
    """

    batch_inputs = ("input_ids", "attention_mask")
    prompts_continue = True

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
        self.embeddings = Embeddings(config, shapes, rngs=rngs)
        self.tower = TransformerStack(config, shapes, config.stacks[0], rngs=rngs)
        if not config.tied:
            self.head = logits_head(config, shapes, rngs)

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
          attention_mask: True or nonzero at real tokens; None for all real. Positions are counted
            over real tokens, so that texts may be padded on the left. Without a cache (batch,
            length); with one (batch, length of the cache), whose later entries do not matter yet.
          dropout_key: turns dropout, and the noise of a noisy router, on.
          cache: of earlier calls, see `start_cache`; the ids are those that follow.
          last_only: logits (batch, 1, vocabulary) of the last position alone: of a long prompt
            no others are needed, and all of them are large.

        Raises:
          ValueError: shapes that do not fit, a sequence longer than `config.max_positions`, or more
            ids than the cache has room for (inside of a jax transformation only what shapes show).
        """
        check_ids("input_ids", input_ids)
        length = input_ids.shape[1] if cache is None else cache.length
        check_length(self.config, length)
        expected = (input_ids.shape[0], length)
        if attention_mask is not None and attention_mask.shape != expected:
            raise ValueError(
                f"attention_mask has shape {attention_mask.shape}; it must be {expected}."
            )
        if cache is not None:
            cache.check_fits(input_ids.shape[1])
        return _forward(self, input_ids, attention_mask, dropout_key, cache, last_only)

    def start_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for sequences of up to `length` tokens.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        check_length(self.config, length)
        return self.tower.empty_cache(batch, length)

    def prefill(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array | None, Cache]:
        """Reads a prompt.

        Returns:
          Logits (batch, vocabulary) of the next token, the mask for `decode`, the cache.
        """
        new = max_new_tokens - 1  # the last new token is never read
        mask = attention_mask
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, new)), constant_values=True)
        cache = self.start_cache(input_ids.shape[0], input_ids.shape[1] + new)
        output = self.forward(input_ids, mask, cache=cache, last_only=True)
        return output.logits[:, 0], mask, output.cache

    def decode(
        self, input_ids: jax.Array, attention_mask: jax.Array | None, cache: Cache
    ) -> LanguageModelOutput:
        """Logits of the ids (batch, length) that follow those in the cache; see `forward`."""
        return self.forward(input_ids, attention_mask, cache=cache)


# Jitted so that a call outside of any jit compiles once, not at every call.
@functools.partial(jax.jit, static_argnums=5)
def _forward(model: LanguageModel, input_ids, attention_mask, dropout_key, cache, last_only):
    output = run_stack(model, input_ids, attention_mask, dropout_key, cache)
    x = output.hidden[:, -1:] if last_only else output.hidden
    return LanguageModelOutput(logits_of(model, x), output.routing, output.cache)


def run_stack(
    model: LanguageModel, input_ids, attention_mask=None, dropout_key=None, cache=None
) -> StackOutput:
    """Everything up to the hidden states that `logits_of` reads; arguments as in `forward`."""
    config, length = model.config, input_ids.shape[1]
    start = jnp.int32(0) if cache is None else cache.position
    queries = start + jnp.arange(length, dtype=jnp.int32)
    mask = causal_mask(queries, length if cache is None else cache.length)
    positions, tokens = queries[None], None
    if attention_mask is not None:
        real = attention_mask.astype(bool)
        mask = jnp.logical_and(mask, real[:, None, None, :])
        counted = jnp.cumsum(real.astype(jnp.int32), axis=1) - 1
        positions = jax.lax.dynamic_slice_in_dim(jnp.maximum(counted, 0), start, length, axis=1)
        tokens = jax.lax.dynamic_slice_in_dim(real, start, length, axis=1)
    rotary = None
    if config.positions == "rotary":
        sizes = (config.head_size, config.rotary_base, config.rotary_scaling)
        inv_freq = positions_lib.inverse_frequencies(*sizes)
        rotary = positions_lib.rotary_embedding(positions, inv_freq)
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x = model.embeddings(input_ids, positions, dropout_key=embed_key)
    return model.tower.run(x, Context(mask, rotary=rotary, tokens=tokens), layers_key, cache)


def causal_mask(queries: jax.Array, length: int) -> jax.Array:
    """(1, 1, queries, length) booleans: keys at or before the position of each query."""
    return (jnp.arange(length, dtype=jnp.int32)[None] <= queries[:, None])[None, None]


def logits_head(
    config: LanguageModelConfig, shapes: Mapping[str, mpo.MPOShape], rngs: nnx.Rngs
) -> nnx.Module:
    """The map of hidden states to logits, where it is not the token embedding."""
    size = (config.hidden_size, config.vocab_size)
    return nn.linear(*size, shapes.get("head"), False, dtype=config.dtype, rngs=rngs)


def logits_of(model: Model, hidden: jax.Array) -> jax.Array:
    """Logits (..., vocabulary), float32, of hidden states: by the head, or the token embedding."""
    if model.config.tied:
        return model.embeddings.word.attend(hidden, "float32").astype(jnp.float32)
    return model.head(hidden).astype(jnp.float32)
