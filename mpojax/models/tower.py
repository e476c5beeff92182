"""Layers of a language model, stacked and scanned; with a KV cache."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig
from mpojax.models.language_layers import Context, KeysValues, LanguageLayer, norm
from mpojax.nn import partition

Config = DecoderConfig | EncoderDecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """KV cache: keys and values of all layers, kept between calls.

    Attributes:
      keys, values: (layers, batch, length, kv heads, head size); those from `position` on are
        still empty.
      position: int32 scalar, the next free one.
      memory: keys and values of the encoder's output, (layers, batch, its places, heads, head
        size) each; None for a decoder without.
    """

    keys: jax.Array
    values: jax.Array
    position: jax.Array
    memory: KeysValues | None = None

    def check_places(self, num: int) -> None:
        """Raises ValueError where `num` more tokens do not fit, as far as that is known.

        Inside of a jax transformation `position` has no value: only `num` itself is compared, and
        more tokens than fit would overwrite the last ones.
        """
        places = self.keys.shape[2]
        known = not isinstance(self.position, jax.core.Tracer)
        used = int(self.position) if known else 0
        if used + num > places:
            raise ValueError(
                f"{num} tokens do not fit into a cache of {places} places, of which {used} are "
                "used; start a longer one."
            )


def check_ids(name: str, ids: jax.Array) -> None:
    """Raises ValueError for ids that are not (batch, length) integers, or none at all."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {ids.shape} and type {ids.dtype}; it must be integers (batch, "
            "length)."
        )
    if 0 in ids.shape:
        raise ValueError(f"{name} has shape {ids.shape}: give at least one row and one token.")


class Tower(nnx.Module):
    """A run of layers and a norm at its end.

    Attributes:
      stacks: stacked layers, leading axis = layer; neighbours of equal shapes are one stack.
      stack_ranges: the layers of each stack.
      final_norm: the norm at the end.
    """

    def __init__(
        self,
        config: Config,
        shapes: Mapping[str, mpo.MPOShape],
        prefix: str,
        num_layers: int,
        has_memory: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """`prefix` is that of the tower's paths: "" or "encoder/" or "decoder/"."""
        self.config = config
        key = rngs.params()
        self.stack_ranges = tuple(_stack_ranges(config, shapes, prefix, num_layers))
        self.stacks = nnx.List(
            [_stack(config, shapes, prefix, r, has_memory, key) for r in self.stack_ranges]
        )
        self.final_norm = norm(config)

    @property
    def num_layers(self) -> int:
        return self.stack_ranges[-1].stop

    def run(
        self,
        x: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, tuple[nn.RouterStatistics, ...]]:
        """(normed hidden states, cache with the keys of `x` in it, statistics of each stack with
        experts, leading axis = layer).
        """
        routing = []
        for stack, layer_range in zip(self.stacks, self.stack_ranges, strict=True):
            x, cache, statistics = _run_stack(
                self.config, stack, layer_range, x, context, dropout_key, cache
            )
            routing += [] if statistics is None else [statistics]
        if cache is not None:
            cache = dataclasses.replace(cache, position=cache.position + x.shape[1])
        return self.final_norm(x), cache, tuple(routing)

    def empty_cache(self, batch: int, places: int, memory: jax.Array | None = None) -> Cache:
        """A cache for sequences of up to `places`; `memory` (batch, its places, hidden)."""
        config = self.config
        shape = (self.num_layers, batch, places, config.num_kv_heads, config.head_size)
        keys, values = (jnp.zeros(shape, config.dtype) for _ in range(2))
        kept = None
        if memory is not None:
            parts = [
                jax.lax.map(lambda layer: layer.cross_attention.keys_values(memory), stack)
                for stack in self.stacks
            ]
            kept = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
        return Cache(keys, values, jnp.zeros((), jnp.int32), kept)


def _run_stack(config, stack, layer_range: range, x, context: Context, key, cache: Cache | None):
    indices = jnp.arange(layer_range.start, layer_range.stop)

    def body(carry, layer_and_index):
        x, kept = carry
        layer, index = layer_and_index
        layer_key = None if key is None else jax.random.fold_in(key, index)
        x = partition.place(x, partition.BATCH, None, None)
        memory = None
        if kept is None:
            x, statistics = layer(x, context, layer_key)
            return (x, None), statistics
        if cache.memory is not None:
            memory = tuple(array[index] for array in cache.memory)

        def keep(own: KeysValues) -> KeysValues:
            nonlocal kept
            start = (index, 0, cache.position, 0, 0)
            kept = tuple(
                jax.lax.dynamic_update_slice(whole, part[None].astype(whole.dtype), start)
                for whole, part in zip(kept, own, strict=True)
            )
            return tuple(whole[index] for whole in kept)

        x, statistics = layer(x, context, layer_key, keep, memory)
        return (x, kept), statistics

    if config.remat and cache is None:
        # Inside a scan nothing can be merged across iterations: the barrier would only cost time.
        body = jax.checkpoint(body, prevent_cse=False)
    kept = None if cache is None else (cache.keys, cache.values)
    (x, kept), statistics = jax.lax.scan(body, (x, kept), (stack, indices))
    if cache is not None:
        cache = dataclasses.replace(cache, keys=kept[0], values=kept[1])
    return x, cache, statistics


def _stack_ranges(config, shapes, prefix: str, num_layers: int) -> list[range]:
    """Neighbours whose matrices have equal shapes and adapters, and whose experts are alike."""
    adapters = matrices.adapter_settings(config)

    def kind(layer: int):
        path = f"{prefix}layers/{layer}/"
        parts = (matrices.under(entries, path) for entries in (shapes, adapters))
        return (*parts, config.experts_of(f"{path}feed_forward"))

    ranges: list[range] = []
    for layer in range(num_layers):
        goes_on = ranges and layer not in config.scan_boundaries
        if goes_on and kind(layer) == kind(ranges[-1].start):
            ranges[-1] = range(ranges[-1].start, layer + 1)
        else:
            ranges.append(range(layer, layer + 1))
    return ranges


def _stack(config, shapes, prefix: str, layer_range: range, has_memory: bool, key) -> nnx.Module:
    """Layers of one range as one module; layer i depends on (key, i) alone."""
    path = f"{prefix}layers/{layer_range.start}/"
    relative = matrices.under(shapes, path)
    adapters = matrices.under(matrices.adapter_settings(config), path)
    experts = config.experts_of(f"{path}feed_forward")

    def make(layer_key):
        layer = LanguageLayer(config, relative, experts, has_memory, rngs=nnx.Rngs(layer_key))
        adapter_rngs = nnx.Rngs(jax.random.fold_in(layer_key, 1))
        nn.attach_adapters(layer, adapters, config.adapter_scale, rngs=adapter_rngs)
        return layer

    indices = jnp.arange(layer_range.start, layer_range.stop)
    # Jitted: one compiled program for all draws of a layer instead of one for each operation.
    return jax.jit(
        lambda: nnx.vmap(make)(jax.vmap(lambda i: jax.random.fold_in(key, i))(indices))
    )()
