"""A BERT-shaped post-norm encoder; any matrix dense or MPO; layers stacked and scanned."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import layers, mpo
from mpojax.layers.dropout import dropout, split_or_none
from mpojax.models import config as config_lib
from mpojax.models.config import EncoderConfig


class Embeddings(nnx.Module):
    """Word + position + token type rows, normalised."""

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by table name: word, position, token_type."""
        self.config = config

        def table(rows, name):
            return layers.embedding(
                rows, config.hidden_size, shapes.get(name), dtype=config.dtype, rngs=rngs
            )

        self.word = table(config.vocab_size, "word")
        self.position = table(config.max_positions, "position")
        self.token_type = table(config.token_types, "token_type")
        self.norm = layers.LayerNorm(config.hidden_size, config.norm_eps, dtype=config.dtype)

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """Maps ids (batch, length) to (batch, length, hidden)."""
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        positions = jnp.arange(input_ids.shape[1], dtype=jnp.int32)
        x = self.word(input_ids) + self.token_type(token_type_ids) + self.position(positions)[None]
        return dropout(self.norm(x), self.config.dropout, key)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each followed by residual and norm."""

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by path inside the layer: attention/query, feed_forward/up, ..."""
        self.config = config
        self.attention = layers.SelfAttention(
            config.hidden_size,
            config.num_heads,
            config_lib.under(shapes, "attention/"),
            dropout_rate=config.attention_dropout,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention_norm = layers.LayerNorm(
            config.hidden_size, config.norm_eps, dtype=config.dtype
        )
        self.feed_forward = layers.FeedForward(
            config.hidden_size,
            config.intermediate_size,
            config.activation,
            config_lib.under(shapes, "feed_forward/"),
            dtype=config.dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = layers.LayerNorm(
            config.hidden_size, config.norm_eps, dtype=config.dtype
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Maps (batch, length, hidden) to the same shape."""
        rate = self.config.dropout
        in_attention, after_attention, after_feed_forward = split_or_none(dropout_key, 3)
        attended = self.attention(x, mask, in_attention)
        x = self.attention_norm(x + dropout(attended, rate, after_attention))
        mapped = self.feed_forward(x)
        return self.feed_forward_norm(x + dropout(mapped, rate, after_feed_forward))


class Transformer(nnx.Module):
    """What every model holds: its settings, and the shapes of its matrices in MPO form."""

    def __init__(self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape] | None):
        """Checks `shapes`; no parameters yet.

        Raises:
          ValueError: a shape for a path that does not exist, or of the wrong size.
        """
        self.config = config
        self.shape_items = tuple(sorted(config_lib.checked_shapes(config, shapes).items()))

    @property
    def shapes(self) -> dict[str, mpo.MPOShape]:
        """MPO shapes by matrix path; matrices that are not named are dense."""
        return dict(self.shape_items)


class Encoder(Transformer):
    """Token ids -> hidden states; see `EncoderConfig`.

    Attributes:
      config: the settings.
      embeddings: tables and their norm.
      stacks: list of stacked `EncoderLayer`s, leading axis = layer; contiguous layers whose
        matrices have equal shapes are one stack (usually there is one), run by one `jax.lax.scan`.
      pooler: the dense map of BERT's pooler, or None.
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
        super().__init__(config, {p: s for p, s in (shapes or {}).items() if p != "head"})
        shapes = self.shapes
        self.embeddings = Embeddings(config, config_lib.under(shapes, "embeddings/"), rngs=rngs)
        key = rngs.params()
        self.stacks = nnx.List(
            [_stack(config, shapes, key, r) for r in config_lib.stack_ranges(config, shapes)]
        )
        self.pooler = _pooler(config, shapes, rngs) if config.pooling == "pooler" else None

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states (batch, length, hidden) in the compute dtype.

        Args:
          input_ids: (batch, length) integers; an id outside the vocabulary gives NaN.
          attention_mask: (batch, length), nonzero or True at real tokens; None for all real.
            Rows of padding alone come back finite.
          token_type_ids: (batch, length) integers; None for all zero.
          dropout_key: turns dropout on; every layer gets a key of its own.

        Raises:
          ValueError: shapes that do not fit, or a sequence longer than the position table.
        """
        _check_inputs(self.config, input_ids, attention_mask, token_type_ids)
        return _forward(self, input_ids, attention_mask, token_type_ids, dropout_key)


@jax.jit  # So that a call outside of any jit compiles once, not at every call.
def _forward(encoder: Encoder, input_ids, attention_mask, token_type_ids, dropout_key):
    mask = None if attention_mask is None else attention_mask.astype(bool)
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x = encoder.embeddings(input_ids, token_type_ids, embed_key)
    first = 0
    for stack in encoder.stacks:
        x, first = _run_stack(stack, x, mask, layers_key, first, encoder.config.remat)
    return x


def _pooler(config, shapes, rngs) -> nnx.Module:
    hidden = config.hidden_size
    return layers.linear(hidden, hidden, shapes.get("pooler"), dtype=config.dtype, rngs=rngs)


def _stack(config, shapes, key, layer_range: range) -> EncoderLayer:
    """Layers of one range as one module; layer i depends on (key, i) alone, not on the stacks."""
    relative = config_lib.layer_shapes(shapes, layer_range.start)
    indices = jnp.arange(layer_range.start, layer_range.stop)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    # Jitted: one compiled program for all draws of a layer instead of one for each operation.
    return jax.jit(nnx.vmap(lambda k: EncoderLayer(config, relative, rngs=nnx.Rngs(k))))(keys)


def _run_stack(stack, x, mask, key, first: int, remat: bool):
    """Scans `x` through the layers of one stack; returns it and the index of the next layer."""
    depth = stack.attention_norm.scale[...].shape[0]
    indices = jnp.arange(first, first + depth)

    def body(x, layer_and_index):
        layer, index = layer_and_index
        layer_key = None if key is None else jax.random.fold_in(key, index)
        return layer(x, mask, layer_key), None

    if remat:
        # Inside a scan nothing can be merged across iterations: the barrier would only cost time.
        body = jax.checkpoint(body, prevent_cse=False)
    x, _ = jax.lax.scan(body, x, (stack, indices))
    return x, first + depth


def _check_inputs(config, input_ids, attention_mask, token_type_ids):
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {input_ids.shape}; it must be (batch, length).")
    if input_ids.shape[1] > config.max_positions:
        raise ValueError(
            f"input_ids has length {input_ids.shape[1]}, more than max_positions="
            f"{config.max_positions}; cut the text or split it."
        )
    for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {value.shape}; it must equal that of input_ids, "
                f"{input_ids.shape}."
            )
