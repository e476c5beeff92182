"""A pre-norm layer of language models: attention, attention to a memory, feed-forward."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig
from mpojax.nn.dropout import dropout, split_or_none
from mpojax.nn.grouped_attention import Turns

KeysValues = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Context:
    """Inputs that all layers of a call share.

    Attributes:
      mask: booleans that broadcast to (batch, heads, length, keys), or None.
      bias: added to the scores of self-attention, or None.
      turns: rotary (cos, sin) of the positions, or None.
      tokens: (batch, length) booleans, True at real tokens: what experts are for; None for all.
      memory: (batch, places, hidden), the encoder's output, or None.
      memory_mask: as `mask`, for the memory.
    """

    mask: jax.Array | None = None
    bias: jax.Array | None = None
    turns: Turns | None = None
    tokens: jax.Array | None = None
    memory: jax.Array | None = None
    memory_mask: jax.Array | None = None


def norm(config: DecoderConfig | EncoderDecoderConfig) -> nnx.Module:
    """A norm of the kind the settings name."""
    return nn.NORMS[config.norm](config.hidden_size, config.norm_eps, dtype=config.dtype)


class LanguageLayer(nnx.Module):
    """x + attention(norm(x)), then the same with attention to a memory, and a feed-forward block.

    The block may be a mixture of experts.
    """

    def __init__(
        self,
        config: DecoderConfig | EncoderDecoderConfig,
        shapes: Mapping[str, mpo.MPOShape],
        experts: nn.ExpertSettings | None,
        has_memory: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """`shapes` by path inside the layer: attention/query, feed_forward/up, ..."""
        self.dropout = config.dropout
        self.attention_norm = norm(config)
        self.attention = _attention(config, matrices.under(shapes, "attention/"), rngs)
        if has_memory:
            self.cross_attention_norm = norm(config)
            cross = matrices.under(shapes, "cross_attention/")
            self.cross_attention = _attention(config, cross, rngs)
        self.feed_forward_norm = norm(config)
        sizes = (config.hidden_size, config.intermediate_size, config.activation)
        more = {
            "gated": config.gated,
            "use_bias": config.feed_forward_bias,
            "inner_dropout": config.inner_dropout,
            "dtype": config.dtype,
            "rngs": rngs,
        }
        block_shapes = matrices.under(shapes, "feed_forward/")
        if experts is None:
            self.feed_forward = nn.FeedForward(*sizes, block_shapes, **more)
        else:
            self.feed_forward = nn.ExpertFeedForward(*sizes, block_shapes, experts, **more)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        keep: Callable[[KeysValues], KeysValues] | None = None,
        memory: KeysValues | None = None,
    ) -> tuple[jax.Array, nn.RouterStatistics | None]:
        """Maps (batch, length, hidden) to the same shape; the statistics are None without experts.

        Args:
          x, context, dropout_key: see above.
          keep: takes keys and values of `x` and gives those that it attends to.
          memory: keys and values of the memory; None: they are made of `context.memory`.
        """
        keys = split_or_none(dropout_key, 7)
        normed = self.attention_norm(x)
        own = self.attention.keys_values(normed, context.turns)
        attended = self.attention(
            normed,
            *(own if keep is None else keep(own)),
            context.mask,
            bias=context.bias,
            turns=context.turns,
            dropout_key=keys[0],
        )
        x = x + dropout(attended, self.dropout, keys[1])
        if hasattr(self, "cross_attention"):
            if memory is None:
                memory = self.cross_attention.keys_values(context.memory)
            attended = self.cross_attention(
                self.cross_attention_norm(x), *memory, context.memory_mask, dropout_key=keys[2]
            )
            x = x + dropout(attended, self.dropout, keys[3])
        normed, statistics = self.feed_forward_norm(x), None
        if isinstance(self.feed_forward, nn.FeedForward):
            mapped = self.feed_forward(normed, keys[4])
        else:
            mapped, statistics = self.feed_forward(normed, context.tokens, keys[4], keys[5])
        return x + dropout(mapped, self.dropout, keys[6]), statistics


def _attention(config, shapes, rngs) -> nn.GroupedAttention:
    return nn.GroupedAttention(
        config.hidden_size,
        config.num_heads,
        config.head_size,
        shapes,
        num_kv_heads=config.num_kv_heads,
        use_bias=config.attention_bias,
        out_bias=config.attention_out_bias,
        scale=config.attention_scale,
        dropout_rate=config.attention_dropout,
        dtype=config.dtype,
        rngs=rngs,
    )
