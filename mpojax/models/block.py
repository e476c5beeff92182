"""The layers of all models, and what they share; MobileBERT's have a bottleneck."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.cache import Cache
from mpojax.models.config import Config, LayerKind
from mpojax.models.matrices import subtree
from mpojax.nn import dropout, split_or_none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Inputs that all layers of a call share.

    Attributes:
      mask: keys that may be attended to, see `nn.Mask`; booleans that broadcast to (batch, heads,
        length, keys) will do, too; None for all.
      bias: added to the scores of self-attention, or None.
      distances: (rows of distances, their indices (queries, keys)) of disentangled attention.
      positions: ((queries,), (keys,)) of self-attention, for layers that make a bias of their own.
      rotary: (cos, sin) of the positions, or None.
      kinds: (layers,) int32, which entry of a leading axis of `mask` and `rotary` is for which
        layer, where layers differ in them; None: all see the same. See `of_layer`.
      tokens: (batch, length) booleans, True at real tokens: what experts are for; None for all.
      encoder_output: (batch, source length, hidden), what cross-attention reads, or None.
      encoder_mask: as `mask`, for the encoder's output.
    """

    mask: nn.Mask | jax.Array | None = None
    bias: jax.Array | None = None
    rotary: nn.Rotary | None = None
    tokens: jax.Array | None = None
    encoder_output: jax.Array | None = None
    encoder_mask: nn.Mask | jax.Array | None = None
    kinds: jax.Array | None = None
    distances: tuple[jax.Array, jax.Array] | None = None
    positions: tuple[jax.Array, jax.Array] | None = None

    def of_layer(self, layer: jax.Array | int) -> "Context":
        """The inputs as one layer sees them."""
        if self.kinds is None:
            return self
        # Traced inside the scan over layers: an index on the device, not one of Python.
        kind = self.kinds[layer]
        mask = None if self.mask is None else self.mask.of_layer(kind)
        rotary = jax.tree.map(lambda entries: entries[kind], self.rotary)
        return dataclasses.replace(self, mask=mask, rotary=rotary, kinds=None)


def of_kinds(layers: Sequence[LayerKind], make: Callable[[LayerKind], tuple]) -> dict[str, Any]:
    """{"mask", "rotary", "kinds"} of a `Context`; `make` gives the first two for a kind."""
    kinds = list(dict.fromkeys(layers))
    each = [make(kind) for kind in kinds]
    if len(kinds) == 1:
        return dict(zip(("mask", "rotary"), each[0], strict=True))
    masks, rotary = zip(*each, strict=True)
    rotary = jax.tree.map(lambda *entries: jnp.stack(entries), *rotary)
    indices = jnp.asarray([kinds.index(kind) for kind in layers], jnp.int32)
    return {"mask": nn.stack_masks(masks), "rotary": rotary, "kinds": indices}


def norm(config: Config, features: int | None = None) -> nnx.Module:
    """A norm of the kind the settings name; of hidden states by default."""
    return nn.NORMS[config.norm](
        features or config.hidden_size, config.norm_eps, dtype=config.dtype
    )


def relative_bias(config: Config, bidirectional: bool, *, rngs: nnx.Rngs) -> nn.RelativeBias:
    """The table of biases by distance of a stack or a layer."""
    sizes = (config.relative_buckets, config.num_heads, config.relative_distance)
    return nn.RelativeBias(*sizes, bidirectional=bidirectional, rngs=rngs)


def _attention(config: Config, shapes, rngs, value_size: int | None = None) -> nn.Attention:
    return nn.Attention(
        config.attention_size,
        config.num_heads,
        config.head_size,
        shapes,
        num_kv_heads=config.num_kv_heads,
        value_size=value_size,
        use_bias=config.attention_bias,
        out_bias=config.attention_out_bias,
        scale=config.attention_scale,
        softcap=config.score_softcap,
        qk_norm=config.qk_norm,
        norm_eps=config.norm_eps,
        dropout_rate=config.attention_dropout,
        dtype=config.dtype,
        rngs=rngs,
    )


def _feed_forward(config: Config, shapes, rngs, experts: nn.ExpertSettings | None = None):
    sizes = (config.attention_size, config.intermediate_size, config.activation, shapes)
    more = {
        "gated": config.gated,
        "use_bias": config.feed_forward_bias,
        "inner_dropout": config.inner_dropout,
        "dtype": config.dtype,
        "rngs": rngs,
    }
    if experts is None:
        return nn.FeedForward(*sizes, **more)
    return nn.ExpertFeedForward(*sizes, experts, **more)


# What draws with which of a layer's keys: a run stays reproducible as long as the order does.
_PRE_NORM_KEYS = (
    *("attention", "attention_output", "cross_attention", "cross_attention_output"),
    *("feed_forward", "router", "feed_forward_output"),
)
_POST_NORM_KEYS = ("attention", "attention_output", "feed_forward_output")


class Block(nnx.Module):
    """Attention to itself, attention to an encoder's output, a feed-forward block or experts.

    Each part f adds to the residual stream x: x + f(a(x)) (pre-norm), x + b(f(x)) (a norm of its
    output), x + b(f(a(x))) (both), or makes it norm(x + f(x)) (post-norm). With a parallel residual
    the feed-forward block reads the same x as attention.
    """

    def __init__(
        self,
        config: Config,
        shapes: Mapping[str, mpo.MPOShape],
        experts: nn.ExpertSettings | None = None,
        cross_attention: bool = False,
        *,
        input_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """`shapes` by path inside the layer: attention/query, feed_forward/up, ...; `input_norm`:
        attention has a norm of its own.
        """
        self.dropout = config.dropout
        self.pre_norm, self.post_norm = config.pre_norm, config.post_norm
        self.parallel_residual = config.parallel_residual
        self.has_experts = experts is not None
        self.attention = _attention(config, subtree(shapes, "attention/"), rngs)
        if cross_attention:
            self.cross_attention = _attention(config, subtree(shapes, "cross_attention/"), rngs)
        self.feed_forward = _feed_forward(config, subtree(shapes, "feed_forward/"), rngs, experts)
        for part in ("attention", *["cross_attention"] * cross_attention, "feed_forward"):
            if (config.pre_norm or config.post_norm) and (input_norm or part != "attention"):
                setattr(self, f"{part}_norm", norm(config))
            if config.output_norm:
                setattr(self, f"{part}_output_norm", norm(config))
        if config.relative_per_layer:
            self.relative_bias = relative_bias(config, bidirectional=not cross_attention, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
        layer: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache | None, nn.RouterStatistics | None]:
        """Maps (batch, length, hidden) to the same shape.

        Args:
          x: hidden states.
          context: what all layers share, as this layer sees it (`Context.of_layer`).
          dropout_key: turns dropout, and the noise of a noisy router, on.
          cache: KV cache of all layers, to which the keys and values of `x` are added.
          layer: index of this layer in the cache.

        Returns:
          (hidden states, updated cache, statistics of the router or None without experts).
        """
        names = _PRE_NORM_KEYS if self.pre_norm else _POST_NORM_KEYS
        keys = dict(zip(names, split_or_none(dropout_key, len(names)), strict=True))
        y = self.normed("attention", x)
        keys_values = self.attention.keys_values(y, context.rotary)
        if cache is not None:
            cache, keys_values = cache.update(layer, keys_values)
        y = self.attention(
            y,
            context.mask,
            keys_values=keys_values,
            bias=self._bias(context, y),
            rotary=context.rotary,
            dropout_key=keys["attention"],
        )
        before, x = x, self._added("attention", x, y, keys["attention_output"])
        if hasattr(self, "cross_attention"):
            y = self.normed("cross_attention", x)
            # With a cache they were computed once, when it was made, from the encoder's output.
            if cache is None:
                keys_values = self.cross_attention.keys_values(context.encoder_output)
            else:
                keys_values = cache.of_encoder(layer)
            y = self.cross_attention(
                y,
                context.encoder_mask,
                keys_values=keys_values,
                dropout_key=keys["cross_attention"],
            )
            x = self._added("cross_attention", x, y, keys["cross_attention_output"])
        y, statistics = self.normed("feed_forward", before if self.parallel_residual else x), None
        if self.has_experts:
            y, statistics = self.feed_forward(
                y, context.tokens, keys["feed_forward"], keys["router"]
            )
        else:
            # Post-norm layers have no key of this name: no dropout inside the block.
            y = self.feed_forward(y, keys.get("feed_forward"))
        x = self._added("feed_forward", x, y, keys["feed_forward_output"])
        return x, cache, statistics

    def stream_of(self, matrix: str) -> str | None:
        """The part that reads the residual stream to which a matrix adds; None for the others.

        None, too, where a norm stands between, or where another part adds to the same stream later.
        """
        part = {"attention/out": "attention", "feed_forward/down": "feed_forward"}.get(matrix)
        is_first = self.parallel_residual and part == "attention"
        if part is None or hasattr(self, f"{part}_output_norm") or is_first:
            return None
        if self.pre_norm:
            return f"{part}_norm" if hasattr(self, f"{part}_norm") else None
        return {"attention": "attention/query", "feed_forward": "feed_forward/up"}[part]

    def _bias(self, context: Context, x: jax.Array) -> jax.Array | None:
        """What is added to the scores of self-attention of `x`."""
        if context.distances is not None:
            return self.attention.disentangled_bias(x, *context.distances)
        if not hasattr(self, "relative_bias"):
            return context.bias
        return self.relative_bias(*context.positions)

    def normed(self, part: str, x: jax.Array) -> jax.Array:
        """What a part ("attention", "feed_forward", ...) reads of the residual stream."""
        name = f"{part}_norm"
        return getattr(self, name)(x) if self.pre_norm and hasattr(self, name) else x

    def _added(self, part: str, x: jax.Array, y: jax.Array, key) -> jax.Array:
        """The residual stream with the output `y` of a part."""
        if (output_norm := getattr(self, f"{part}_output_norm", None)) is not None:
            y = output_norm(y)
        x = x + dropout(y, self.dropout, key)
        return getattr(self, f"{part}_norm")(x) if self.post_norm else x


class Bottleneck(nnx.Module):
    """Maps into and out of the narrow inside of a layer, each followed by a norm."""

    def __init__(self, config: Config, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs):
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


class BottleneckBlock(nnx.Module):
    """A layer of MobileBERT (Sun et al., ACL 2020, section 3.1).

    Attention and several feed-forward blocks, each with residual and norm, run in a narrow width
    between two maps; the wide input is added to the output.
    """

    def __init__(self, config: Config, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs):
        """`shapes` by path inside the layer: bottleneck/input, feed_forwards/0/up, ..."""
        self.dropout = config.dropout
        width = config.attention_size
        self.bottleneck = Bottleneck(config, subtree(shapes, "bottleneck/"), rngs=rngs)
        value_size = width if config.bottleneck_attention else config.hidden_size
        self.attention = _attention(config, subtree(shapes, "attention/"), rngs, value_size)
        self.attention_norm = norm(config, width)
        paths = [f"feed_forwards/{i}/" for i in range(config.num_feed_forwards)]
        self.feed_forwards = nnx.List(
            [_feed_forward(config, subtree(shapes, path), rngs) for path in paths]
        )
        self.feed_forward_norms = nnx.List([norm(config, width) for _ in paths])

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
        layer: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache | None, None]:
        """As `Block`; without a cache and experts."""
        del layer
        in_attention, after_output = split_or_none(dropout_key, 2)
        maps = self.bottleneck
        # (batch, length, width) of the bottleneck; x stays (batch, length, hidden).
        y = maps.input_norm(maps.input(x))
        # Queries and keys of a map of their own, values of the layer's whole input.
        narrow = y if maps.attention is None else maps.attention_norm(maps.attention(x))
        values = y if maps.attention is None else x
        attended = self.attention(
            narrow,
            context.mask,
            keys_values=self.attention.keys_values(narrow, value_input=values),
            dropout_key=in_attention,
        )
        y = self.attention_norm(attended + y)
        for feed_forward, after in zip(self.feed_forwards, self.feed_forward_norms, strict=True):
            y = after(feed_forward(y) + y)
        x = maps.output_norm(dropout(maps.output(y), self.dropout, after_output) + x)
        return x, cache, None
