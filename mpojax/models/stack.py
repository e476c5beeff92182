"""The transformer stack of all models: layers that are stored stacked and run by `lax.scan`.

Neighbouring layers whose matrices have equal shapes are stored as one module, whose variables have
a leading axis of layers, and run by one scan. A *block* of layers (`EncoderConfig.layer_groups`)
shares parameters; what it shares has a leading axis of blocks, and a scan runs whole blocks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models.block import Block, BottleneckBlock, Context, norm, relative_bias
from mpojax.models.cache import Cache
from mpojax.models.config import Config, StackSpec
from mpojax.models.matrices import adapter_settings, subtree
from mpojax.nn.functional import BATCH, remat, shard

# (layer, its input, its output, context) -> pytree of arrays, to be kept of each layer.
Record = Callable[[nnx.Module, jax.Array, jax.Array, Context], Any]


class StackOutput(NamedTuple):
    """Output of `TransformerStack.run`.

    Attributes:
      hidden: (batch, length, hidden), normalised where the stack ends with a norm.
      cache: KV cache with the keys and values of the input in it, or None.
      routing: statistics of each scan over layers with experts, leading axis = layer.
      recorded: what was asked for, leading axis = layer; None for nothing.
    """

    hidden: jax.Array
    cache: Cache | None
    routing: tuple[nn.RouterStatistics, ...]
    recorded: Any


class TransformerStack(nnx.Module):
    """A run of layers, and a norm at its end unless they are post-norm.

    Attributes:
      stacks: stacked layers, leading axis = layer (= block for what a block shares); usually one.
      stack_ranges: the layers of each.
      final_norm: the norm at the end.
      distance_rows, distance_norm: rows of distances of disentangled attention, and their norm.
      relative_bias: T5's bias by distance, one table for all layers.
    """

    def __init__(
        self,
        config: Config,
        shapes: Mapping[str, mpo.MPOShape],
        spec: StackSpec,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` by path in the model."""
        self.config = config
        self.causal = spec.causal
        key = rngs.params()
        self.stack_ranges = tuple(stack_ranges(config, shapes, spec))
        self.stacks = nnx.List(
            [_random_stack(config, shapes, spec, layers, key) for layers in self.stack_ranges]
        )
        if not config.post_norm:
            self.final_norm = norm(config)
        if config.disentangled:
            self.distance_rows = nn.Embed(
                2 * config.relative_buckets, config.hidden_size, rngs=rngs
            )
            self.distance_norm = norm(config)
        elif config.relative_buckets is not None and not config.relative_per_layer:
            self.relative_bias = relative_bias(config, bidirectional=not spec.causal, rngs=rngs)

    @property
    def num_layers(self) -> int:
        """Depth."""
        return self.stack_ranges[-1].stop

    def run(
        self,
        x: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
        record: Record | None = None,
    ) -> StackOutput:
        """Runs hidden states (batch, length, hidden) through all layers.

        Args:
          x: embeddings.
          context: what all layers share.
          dropout_key: turns dropout on; layer i draws with fold_in(key, i).
          cache: KV cache to extend.
          record: what to keep of each layer.
        """
        outputs = []
        for stack, layers in zip(self.stacks, self.stack_ranges, strict=True):
            x, cache, *output = _run_layers(
                self.config, stack, layers, x, context, dropout_key, cache, record
            )
            outputs.append(output)
        routing, recorded = zip(*outputs, strict=True)
        if cache is not None:
            # All layers have written at the old position: it moves on once, here.
            cache = dataclasses.replace(cache, position=cache.position + x.shape[1])
        return StackOutput(
            self.final_norm(x) if hasattr(self, "final_norm") else x,
            cache,
            tuple(statistics for statistics in routing if statistics is not None),
            jax.tree.map(lambda *parts: jnp.concatenate(parts), *recorded),
        )

    def layer(self, index: int) -> nnx.Module:
        """One layer as a module of its own, see `Block`.

        Raises:
          ValueError: there is no such layer.
        """
        for stack, layers in zip(self.stacks, self.stack_ranges, strict=True):
            if index in layers:
                return _one_layer(self.config, stack, layers, index)
        raise ValueError(f"layer {index}: the layers are 0..{self.num_layers - 1}.")

    def empty_cache(
        self, batch: int, length: int, encoder_output: jax.Array | None = None
    ) -> Cache:
        """A cache for sequences of up to `length` tokens, with the keys and values that
        cross-attention reads of `encoder_output` (batch, source length, hidden).
        """
        config = self.config
        heads = (self.num_layers, batch, config.num_kv_heads)
        keys = jnp.zeros((*heads, config.head_size, length), config.dtype)
        values = jnp.zeros((*heads, length, config.head_size), config.dtype)
        of_encoder = None
        if encoder_output is not None:
            # (layers of the stack, batch, source length, heads, head size), keys and values each.
            parts = [
                jax.lax.map(lambda one: one.cross_attention.keys_values(encoder_output), stack)
                for stack in self.stacks
            ]
            of_encoder = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
        return Cache(keys, values, jnp.zeros((), jnp.int32), of_encoder)


def stack_ranges(
    config: Config, shapes: Mapping[str, mpo.MPOShape], spec: StackSpec
) -> list[range]:
    """Layers grouped into scans: neighbours with equal shapes, adapters and experts.

    Raises:
      ValueError: layers of one block whose shared cores would have different shapes.
    """
    adapters = adapter_settings(config)

    def structure(layer: int):
        path = f"{spec.prefix}layers/{layer}/"
        parts = (subtree(entries, path) for entries in (shapes, adapters))
        is_first = layer == 0 and config.first_reads_embeddings
        own = config.experts_of(f"{path}feed_forward"), is_first
        return (*parts, *own, len(config.block_of(layer)))

    ranges: list[range] = []
    for block in config.blocks(spec.num_layers):
        first, of_first = block.start, structure(block.start)
        for layer in block[1:] if config.shares_parts else ():
            if structure(layer) != of_first:
                raise ValueError(
                    f"layers {first} and {layer} share parameters (layer_groups="
                    f"{config.layer_groups}), so that their matrices must have equal shapes and "
                    "equal adapters."
                )
        same_stack = ranges and first not in config.scan_boundaries
        if same_stack and of_first == structure(ranges[-1].start):
            ranges[-1] = range(ranges[-1].start, block.stop)
        else:
            ranges.append(block)
    return ranges


def parameter_layers(config: Config, variable: nnx.Variable, layers: range) -> range:
    """The layers under which the entries of a variable's leading axis are named."""
    is_shared = config.layer_groups is not None and nn.role_of(variable) in config.shared_roles
    return layers[:: len(config.block_of(layers.start))] if is_shared else layers


def _split_shared(config: Config, stack: nnx.Module):
    """(graph definition, what blocks share, what layers own) of a stack or a layer of it."""
    roles = config.shared_roles
    return nnx.split(stack, lambda path, variable: nn.role_of(variable) in roles, ...)


def _random_stack(config: Config, shapes, spec: StackSpec, layers: range, key) -> nnx.Module:
    """Layers of one range as one module; layer i depends on (key, i) alone, not on the stacks."""
    path = f"{spec.prefix}layers/{layers.start}/"
    first_norm = {"input_norm": layers.start > 0 or not config.first_reads_embeddings}
    return _random_layers(
        key,
        jnp.arange(layers.start, layers.stop),
        config,
        tuple(subtree(shapes, path).items()),
        tuple(subtree(adapter_settings(config), path).items()),
        config.experts_of(f"{path}feed_forward"),
        len(config.block_of(layers.start)),
        tuple({"cross_attention": spec.cross_attention, **first_norm}.items()),
    )


# Jitted: one program for all random parameters instead of one for each operation, and the same one
# for other keys and for other layers of equal shapes.
@functools.partial(jax.jit, static_argnums=range(2, 8))
def _random_layers(
    key, indices, config: Config, shapes, adapters, experts, block_size: int, parts
) -> nnx.Module:
    def make(layer_key):
        rngs = nnx.Rngs(layer_key)
        if config.bottleneck_size is None:
            layer = Block(config, dict(shapes), experts, **dict(parts), rngs=rngs)
        else:
            layer = BottleneckBlock(config, dict(shapes), rngs=rngs)
        # A key of their own: the layer is the same one with adapters and without.
        adapter_rngs = nnx.Rngs(jax.random.fold_in(layer_key, 1))
        nn.attach_adapters(layer, dict(adapters), config.adapter_scale, rngs=adapter_rngs)
        return layer

    def stacked(some):
        return nnx.vmap(make)(jax.vmap(lambda index: jax.random.fold_in(key, index))(some))

    if config.layer_groups is None:
        return stacked(indices)
    # What a block shares is that of its first layer; the rest is each layer's own.
    graph, shared, _ = _split_shared(config, stacked(indices[::block_size]))
    _, _, own = _split_shared(config, stacked(indices))
    return nnx.merge(graph, shared, own)


def _run_layers(config, stack, layers: range, x, context, key, cache, record):
    """(hidden states, cache, statistics, recorded) of one stack of layers.

    A scan over layers; where they share parameters, a scan over blocks of scans over layers.
    """
    indices = jnp.arange(layers.start, layers.stop)

    def scan_layers(carry, build, own, indices):
        """Scans over layers; `build` makes each from its slice of `own`."""

        def body(carry, own_and_index):
            x, cache = carry
            own, index = own_and_index
            layer_key = None if key is None else jax.random.fold_in(key, index)
            x = shard(x, BATCH, None, None)
            layer, seen = build(own), context.of_layer(index)
            y, cache, statistics = layer(x, seen, layer_key, cache, index)
            recorded = None if record is None else record(layer, x, y, seen)
            return (y, cache), (statistics, recorded)

        if config.remat and cache is None:
            # A loop of one layer is unrolled: what its two passes share would be merged again.
            body = remat(body, prevent_cse=len(indices) == 1)
        return jax.lax.scan(body, carry, (own, indices))

    if config.layer_groups is None:
        carry, found = scan_layers((x, cache), lambda layer: layer, stack, indices)
        return *carry, *found
    graph, shared, own = _split_shared(config, stack)
    size = len(config.block_of(layers.start))
    blocks = len(layers) // size
    # (layers, ...) -> (blocks, layers of a block, ...)
    own, indices = jax.tree.map(
        lambda leaf: leaf.reshape(blocks, size, *leaf.shape[1:]), (own, indices)
    )

    def run_block(carry, block):
        shared, own, indices = block
        if not config.shares_everything:
            return scan_layers(carry, lambda own: nnx.merge(graph, shared, own), own, indices)
        # Before the loop, so that no matrix is rebuilt more than once in a pass.
        tokens = x.shape[0] * x.shape[1] * size
        layer = nn.rebuilt_once(nnx.merge(graph, shared, own), tokens=tokens)
        return scan_layers(carry, lambda _: layer, None, indices)

    everything = (shared, own, indices)
    if blocks == 1:
        carry, found = run_block((x, cache), jax.tree.map(lambda leaf: leaf[0], everything))
        return *carry, *found
    carry, found = jax.lax.scan(run_block, (x, cache), everything)
    # (blocks, layers of a block, ...) -> (layers, ...)
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    return *carry, *found


def _one_layer(config: Config, stack: nnx.Module, layers: range, layer: int) -> nnx.Module:
    place = layer - layers.start
    if config.layer_groups is None:
        return jax.tree.map(lambda leaf: leaf[place], stack)
    graph, shared, own = _split_shared(config, stack)
    shared = jax.tree.map(lambda leaf: leaf[place // len(config.block_of(layer))], shared)
    return nnx.merge(graph, shared, jax.tree.map(lambda leaf: leaf[place], own))
