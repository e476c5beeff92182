"""The layers of an encoder: BERT's, and MobileBERT's with its bottleneck."""

from collections.abc import Mapping

import jax
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.config import EncoderConfig
from mpojax.nn.dropout import dropout, split_or_none


def norm(config: EncoderConfig, features: int) -> nnx.Module:
    """A norm of the kind the settings name."""
    return nn.NORMS[config.norm](features, config.norm_eps, dtype=config.dtype)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each followed by residual and norm."""

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by path inside the layer: attention/query, feed_forward/up, ..."""
        self.config = config
        self.attention = nn.SelfAttention(
            config.hidden_size,
            config.num_heads,
            matrices.under(shapes, "attention/"),
            dropout_rate=config.attention_dropout,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention_norm = norm(config, config.hidden_size)
        self.feed_forward = nn.FeedForward(
            config.hidden_size,
            config.intermediate_size,
            config.activation,
            matrices.under(shapes, "feed_forward/"),
            dtype=config.dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = norm(config, config.hidden_size)

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


class Bottleneck(nnx.Module):
    """Maps into and out of the narrow inside of a layer, each followed by a norm."""

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by name: input, attention, output."""
        hidden, width = config.hidden_size, config.attention_size

        def mapping(name, *size):
            return nn.linear(*size, shapes.get(name), dtype=config.dtype, rngs=rngs)

        self.input = mapping("input", hidden, width)
        self.input_norm = norm(config, width)
        has_own_map = not config.bottleneck_attention
        self.attention = mapping("attention", hidden, width) if has_own_map else None
        self.attention_norm = norm(config, width) if has_own_map else None
        self.output = mapping("output", width, hidden)
        self.output_norm = norm(config, hidden)


class BottleneckLayer(nnx.Module):
    """A layer of MobileBERT (Sun et al., ACL 2020, section 3.1).

    Attention and several feed-forward blocks, each with residual and norm, run in a narrow width
    between two maps; the wide input is added to the output.
    """

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by path inside the layer: bottleneck/input, feed_forwards/0/up, ..."""
        self.config = config
        width = config.attention_size
        bottleneck_shapes = matrices.under(shapes, "bottleneck/")
        self.bottleneck = Bottleneck(config, bottleneck_shapes, rngs=rngs)
        self.attention = nn.SelfAttention(
            width,
            config.num_heads,
            matrices.under(shapes, "attention/"),
            value_size=width if config.bottleneck_attention else config.hidden_size,
            dropout_rate=config.attention_dropout,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention_norm = norm(config, width)
        blocks = range(config.num_feed_forwards)
        self.feed_forwards = nnx.List(
            [
                nn.FeedForward(
                    width,
                    config.intermediate_size,
                    config.activation,
                    matrices.under(shapes, f"feed_forwards/{i}/"),
                    dtype=config.dtype,
                    rngs=rngs,
                )
                for i in blocks
            ]
        )
        self.feed_forward_norms = nnx.List([norm(config, width) for _ in blocks])

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Maps (batch, length, hidden) to the same shape."""
        in_attention, after_output = split_or_none(dropout_key, 2)
        maps = self.bottleneck
        y = maps.input_norm(maps.input(x))
        if self.config.bottleneck_attention:
            attended = self.attention(y, mask, in_attention)
        else:
            narrow = maps.attention_norm(maps.attention(x))
            attended = self.attention(narrow, mask, in_attention, value_input=x)
        y = self.attention_norm(attended + y)
        for feed_forward, after in zip(self.feed_forwards, self.feed_forward_norms, strict=True):
            y = after(feed_forward(y) + y)
        return maps.output_norm(dropout(maps.output(y), self.config.dropout, after_output) + x)
