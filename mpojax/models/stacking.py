"""Layers that are stored together, and the parameters that a block of layers shares.

A *stack* is a run of layers whose matrices have equal shapes; it is stored as one module and run by
one scan. A *block* (`EncoderConfig.layer_groups`) is a run of layers that share parameters; a stack
holds whole blocks. In a stack, what layers own has a leading axis of layers, what a block shares
one of blocks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import matrices
from mpojax.models.config import EncoderConfig
from mpojax.models.encoder_layers import BottleneckLayer, EncoderLayer
from mpojax.nn import partition


def stack_ranges(config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape]) -> list[range]:
    """Layers grouped into stacks: neighbours whose matrices have equal shapes and adapters.

    Raises:
      ValueError: layers of one block whose shared cores would have different shapes.
    """
    adapters = matrices.adapter_settings(config)
    ranges: list[range] = []
    for first in range(0, config.num_layers, config.block_size):
        block = range(first, first + config.block_size)
        _check_block(config, shapes, adapters, block)
        goes_on = ranges and first not in config.scan_boundaries
        if goes_on and all(_same(each, ranges[-1].start, first) for each in (shapes, adapters)):
            ranges[-1] = range(ranges[-1].start, block.stop)
        else:
            ranges.append(block)
    return ranges


def parameter_layers(config: EncoderConfig, variable, layer_range: range) -> range:
    """The layers under which the entries of a variable's leading axis are named."""
    is_shared = config.layer_groups is not None and is_shared_role(config, variable)
    return layer_range[:: config.block_size] if is_shared else layer_range


def is_shared_role(config: EncoderConfig, variable) -> bool:
    """True if a block shares variables of this role."""
    return nn.role_of(variable) in config.shared_roles


def split_shared(config: EncoderConfig, stack: nnx.Module):
    """(graph definition, what blocks share, what layers own) of a stack or a layer of it."""
    return nnx.split(stack, lambda path, variable: is_shared_role(config, variable), ...)


def random_stack(
    config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], key: jax.Array, layer_range: range
) -> nnx.Module:
    """Layers of one range as one module; layer i depends on (key, i) alone, not on the stacks."""
    kind = EncoderLayer if config.bottleneck_size is None else BottleneckLayer
    relative = matrices.under(shapes, f"layers/{layer_range.start}/")
    adapters = matrices.under(matrices.adapter_settings(config), f"layers/{layer_range.start}/")

    def make(layer_key):
        layer = kind(config, relative, rngs=nnx.Rngs(layer_key))
        adapter_rngs = nnx.Rngs(jax.random.fold_in(layer_key, 1))
        nn.attach_adapters(layer, adapters, config.adapter_scale, rngs=adapter_rngs)
        return layer

    def stacked(some: range):
        indices = jnp.arange(some.start, some.stop, some.step)
        return nnx.vmap(make)(jax.vmap(lambda index: jax.random.fold_in(key, index))(indices))

    def all_of_it():
        if config.layer_groups is None:
            return stacked(layer_range)
        graph, shared, _ = split_shared(config, stacked(layer_range[:: config.block_size]))
        _, _, own = split_shared(config, stacked(layer_range))
        return nnx.merge(graph, shared, own)

    # Jitted: one compiled program for all draws of a layer instead of one for each operation.
    return jax.jit(all_of_it)()


def run_stack(
    config: EncoderConfig,
    stack,
    layer_range: range,
    x: jax.Array,
    mask,
    key: jax.Array | None,
    record: Callable | None = None,
) -> tuple[jax.Array, Any]:
    """Runs `x` through the layers of one stack: a scan over blocks of scans over layers.

    Args:
      record: (layer, its input, its output, mask) -> pytree of arrays, to be kept of each layer.

    Returns:
      (output, what is recorded with a leading axis of layers, or None).
    """
    size = config.block_size
    indices = jnp.arange(layer_range.start, layer_range.stop)
    if config.layer_groups is None:
        return _scan_layers(config, lambda layer: layer, x, stack, indices, mask, key, record)
    graph, shared, own = split_shared(config, stack)
    blocks = len(layer_range) // size
    own = jax.tree.map(lambda leaf: leaf.reshape(blocks, size, *leaf.shape[1:]), own)

    def run_block(x, block):
        shared, own, indices = block
        if config.shares_everything:
            # Before the loop, so that no matrix is rebuilt more than once in a pass.
            layer = nn.rebuilt_once(
                nnx.merge(graph, shared, own), tokens=x.shape[0] * x.shape[1] * size
            )
            return _scan_layers(config, lambda _: layer, x, None, indices, mask, key, record)
        build = lambda own: nnx.merge(graph, shared, own)  # noqa: E731
        return _scan_layers(config, build, x, own, indices, mask, key, record)

    everything = (shared, own, indices.reshape(blocks, size))
    if blocks == 1:
        return run_block(x, jax.tree.map(lambda leaf: leaf[0], everything))
    x, found = jax.lax.scan(run_block, x, everything)
    return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def one_layer(config: EncoderConfig, stack: nnx.Module, layer_range: range, layer: int):
    """One layer of a stack as a module of its own."""
    place = layer - layer_range.start
    if config.layer_groups is None:
        return jax.tree.map(lambda leaf: leaf[place], stack)
    graph, shared, own = split_shared(config, stack)
    shared = jax.tree.map(lambda leaf: leaf[place // config.block_size], shared)
    return nnx.merge(graph, shared, jax.tree.map(lambda leaf: leaf[place], own))


def _scan_layers(config, build, x, own, indices, mask, key, record):
    """Scans `x` through layers; `build` makes each from its slice of `own`."""

    def body(x, own_and_index):
        own, index = own_and_index
        layer_key = None if key is None else jax.random.fold_in(key, index)
        x = partition.place(x, partition.BATCH, None, None)
        layer = build(own)
        y = layer(x, mask, layer_key)
        return y, None if record is None else record(layer, x, y, mask)

    if config.remat:
        # Inside a scan nothing can be merged across iterations: the barrier would only cost time.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, x, (own, indices))


def _same(entries: Mapping, layer: int, other: int) -> bool:
    paths = (f"layers/{layer}/", f"layers/{other}/")
    first, second = (matrices.under(entries, path) for path in paths)
    return first == second


def _check_block(config, shapes, adapters, block: range):
    if config.shares_everything:
        return
    for layer in block:
        if not _same(shapes, block.start, layer) or not _same(adapters, block.start, layer):
            raise ValueError(
                f"layers {block.start} and {layer} share parameters (layer_groups="
                f"{config.layer_groups}), so that their matrices must have equal shapes and "
                "equal adapters."
            )
