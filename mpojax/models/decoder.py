"""Causal language models, whose settings say of which family; any matrix dense, MPO or experts."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.block import Context, of_kinds
from mpojax.models.cache import Cache
from mpojax.models.config import Config, DecoderConfig, LanguageModelConfig, LayerKind
from mpojax.models.model import Embeddings, Model, check_ids, check_length, check_shape
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


class Decoder(Model):
    """Token ids -> hidden states of a causal decoder, without logits; see `DecoderConfig`.

    Attributes:
      embeddings: word rows, and position rows where positions are learned.
      tower: the transformer stack.
    """

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
        self.embeddings = Embeddings(config, shapes, rngs=rngs)
        self.tower = TransformerStack(config, shapes, config.stacks[0], rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states (batch, length, hidden) in the compute dtype.

        Arguments as in `Encoder`, so that one batch serves every model: token types are not read.

        Raises:
          ValueError: shapes that do not fit, a sequence longer than `config.max_positions`, or
            segments, which decoders do not know.
        """
        if segments is not None:
            raise ValueError("segments: decoders read one text a row; give no segments.")
        check_ids("input_ids", input_ids)
        check_length(self.config, input_ids.shape[1])
        check_shape("attention_mask", attention_mask, input_ids.shape)
        return _hidden(self, input_ids, attention_mask, dropout_key)

    def begin(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> tuple[jax.Array, Context]:
        """What the first layer reads: (embeddings, what all layers share)."""
        return _begin(self, input_ids, attention_mask, None, None)


class LanguageModel(Decoder):
    """Token ids -> logits of the next token; see `DecoderConfig`.

    Attributes:
      head: the map to logits, where it is not the token embedding.
    """

    prompts_continue = True

    def __init__(
        self,
        config: DecoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; as `Decoder`."""
        super().__init__(config, shapes, rngs=rngs)
        if not config.tied:
            self.head = logits_head(config, self.shapes, rngs)

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
            ids than the cache can hold (inside of a jax transformation only what shapes show).
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
            # New tokens are real ones.
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


@jax.jit
def _hidden(model: Decoder, input_ids, attention_mask, dropout_key):
    return run_stack(model, input_ids, attention_mask, dropout_key).hidden


def run_stack(
    model: Decoder, input_ids, attention_mask=None, dropout_key=None, cache=None
) -> StackOutput:
    """Everything up to the hidden states that `logits_of` reads; arguments as in `forward`."""
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x, context = _begin(model, input_ids, attention_mask, embed_key, cache)
    return model.tower.run(x, context, layers_key, cache)


def _begin(model: Decoder, input_ids, attention_mask, dropout_key, cache):
    """(embeddings, what all layers share)."""
    context, positions = context_of(model.config, input_ids.shape[1], attention_mask, cache)
    # Of a learned table: OPT's has two rows before that of position 0.
    rows = positions + model.config.position_offset
    return model.embeddings(input_ids, rows, dropout_key=dropout_key), context


def context_of(
    config: DecoderConfig,
    length: int,
    attention_mask: jax.Array | None = None,
    cache: Cache | None = None,
) -> tuple[Context, jax.Array]:
    """What the layers share, and positions (1 or batch, length), for so many ids.

    Masks and rotary positions of several kinds of layers have a leading axis, see
    `Context.of_layer`; other arguments as in `LanguageModel.forward`.
    """
    start = jnp.int32(0) if cache is None else cache.position
    total = length if cache is None else cache.length
    queries = start + jnp.arange(length, dtype=jnp.int32)
    positions, real, tokens = queries[None], None, None
    if attention_mask is not None:
        real = attention_mask.astype(bool)
        # Real tokens up to each one, itself left out: behind padding on the left the first is at 0.
        counted = jnp.cumsum(real.astype(jnp.int32), axis=1) - 1
        positions = jax.lax.dynamic_slice_in_dim(jnp.maximum(counted, 0), start, length, axis=1)
        tokens = jax.lax.dynamic_slice_in_dim(real, start, length, axis=1)

    def of_kind(kind: LayerKind):
        mask = causal_mask(queries, total, kind.window, real, is_whole=cache is None)
        return mask, rotary_of(config, kind, positions, total)

    return Context(**of_kinds(config.layer_kinds, of_kind), tokens=tokens), positions


def rotary_of(config: Config, kind: LayerKind, positions, total: int) -> nn.Rotary | None:
    """Rotary positions of a kind of layers in texts of up to `total` positions."""
    if config.positions != "rotary":
        return None
    size, scaling = config.rotary_size, kind.rotary_scaling
    if kind.rotary_base is None:  # rotated by an angle of 0
        return positions_lib.rotary_embedding(positions, np.zeros(size // 2, np.float32))
    inv_freq = positions_lib.inverse_frequencies(size, kind.rotary_base, scaling, total)
    amplitude = 1.0 if scaling is None else scaling.amplitude
    return positions_lib.rotary_embedding(positions, inv_freq, amplitude)


def causal_mask(
    queries: jax.Array,
    length: int,
    window: int | None = None,
    real: jax.Array | None = None,
    *,
    is_whole: bool,
) -> nn.Mask:
    """Keys 0..length - 1 at or before the position of each query.

    Args:
      queries: (queries,) positions.
      length: number of keys.
      window: the query itself and the window - 1 keys before it alone.
      real: (batch, length) booleans, False at padding, which nothing sees.
      is_whole: the queries are at 0..length - 1, too, not behind those of a KV cache.
    """
    keys, queries = jnp.arange(length, dtype=jnp.int32)[None], queries[:, None]
    # (queries, keys): query - window < key <= query
    near = keys <= queries
    if window is not None and window < length:
        near = jnp.logical_and(near, keys > queries - window)
    reach = (None if window is None else window - 1, 0) if is_whole else None
    mask = nn.Mask(jnp.ones((1, 1, 1, 1), bool)) if real is None else nn.mask_of_keys(real)
    return mask.within(near[None, None], reach)


def logits_head(
    config: LanguageModelConfig, shapes: Mapping[str, mpo.MPOShape], rngs: nnx.Rngs
) -> nnx.Module:
    """The map of hidden states to logits, where it is not the token embedding."""
    size = (config.hidden_size, config.vocab_size)
    return nn.linear(*size, shapes.get("head"), False, dtype=config.dtype, rngs=rngs)


def logits_of(model: Model, hidden: jax.Array) -> jax.Array:
    """Logits (..., vocabulary), float32, of hidden states: by the head, or the token embedding."""
    if model.config.tied:
        logits = model.embeddings.word.attend(hidden, "float32").astype(jnp.float32)
    else:
        logits = model.head(hidden).astype(jnp.float32)
    cap = model.config.logits_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
