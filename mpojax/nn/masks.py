"""Which keys a query may attend to: an array for products, the rule behind it for kernels.

A kernel that never forms the scores (`mpojax.nn.flash`) must not read an array of their size
either: it gets how far a query sees (`Reach`), and segments that may not see each other. Where
nothing reads the array, inside of a jit, it is not made.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# (before, after): a query sees the keys at most so many positions before and after it; None: all.
Reach = tuple[int | None, int | None]
EVERYWHERE: Reach = (None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Keys that each query may attend to.

    Attributes:
      array: booleans that broadcast to (batch, heads, queries, keys), True where a key may be
        attended to.
      query_segments, key_segments: (batch, queries) and (batch, keys) int32: a query sees the keys
        of equal segment alone. None for queries: all are of segment 1. Both None: no segments.
      reaches: `array` is these and the segments, nothing else. Several where layers differ; empty
        where there is no such rule, as for queries at positions that are not known.
      kind: () int32, the index of this layer's reach; None where there is but one.
    """

    array: jax.Array
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    reaches: tuple[Reach, ...] = dataclasses.field(default=(EVERYWHERE,), metadata={"static": True})
    kind: jax.Array | None = None

    def within(self, near: jax.Array, reach: Reach | None) -> "Mask":
        """This mask and `near`, the array of a reach; None: an array without a rule."""
        reaches = () if reach is None else (reach,)
        return dataclasses.replace(self, array=self.array & near, reaches=reaches)

    def of_layer(self, kind: jax.Array) -> "Mask":
        """One of stacked masks."""
        return dataclasses.replace(self, array=self.array[kind], kind=kind)


def stack(masks: Sequence[Mask | None]) -> Mask | None:
    """Masks of equal segments for the kinds of layers, chosen by `Mask.of_layer`."""
    if masks[0] is None:
        return None
    reaches = tuple(reach for mask in masks for reach in mask.reaches)
    arrays = jnp.stack([mask.array for mask in masks])
    return dataclasses.replace(masks[0], array=arrays, reaches=reaches)


def of_keys(real: jax.Array) -> Mask:
    """Every query sees the real keys, (batch, keys) booleans."""
    return Mask(real[:, None, None, :], None, real.astype(jnp.int32))


def of_segments(segments: jax.Array, real: jax.Array | None = None) -> Mask:
    """A text packed with others into a row sees itself alone.

    Args:
      segments: (batch, length) integers of at least 0.
      real: (batch, length) booleans, False at padding, which nothing sees; None: no padding.
    """
    array = (segments[:, :, None] == segments[:, None, :])[:, None]
    keys = segments.astype(jnp.int32)
    if real is not None:
        array &= real[:, None, None, :]
        # No query is of segment -1.
        keys = jnp.where(real, keys, -1)
    return Mask(array, segments.astype(jnp.int32), keys)


def as_array(mask: Mask | jax.Array | None) -> jax.Array | None:
    """The booleans of a mask, which may be such an array itself."""
    return mask.array if isinstance(mask, Mask) else mask


# Queries of a block; a text is cut into four blocks at most.
_SHORTEST, _MOST = 128, 4


def blocks(mask: Mask | jax.Array | None, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """(queries, keys that they may see) for blocks of queries that see no later keys.

    Of a causal text in four blocks 10 of 16 pairs of blocks are left. One block for other masks,
    short texts, and layers that differ.
    """
    is_causal = isinstance(mask, Mask) and len(mask.reaches) == 1 and mask.reaches[0][1] == 0
    if not is_causal or queries != keys or queries < 2 * _SHORTEST:
        return [(slice(None), slice(None))]
    size, before = max(_SHORTEST, -(-queries // _MOST)), mask.reaches[0][0]
    found = []
    for start in range(0, queries, size):
        end, first = min(start + size, queries), 0 if before is None else max(start - before, 0)
        found.append((slice(start, end), slice(first, end)))
    return found


def part(mask: Mask, rows: slice, keys: slice) -> jax.Array:
    """The array of a mask for some queries and keys."""
    *_, queries, columns = mask.array.shape
    # An axis of 1 broadcasts: nothing to cut there.
    array = mask.array if queries == 1 else mask.array[..., rows, :]
    return array if columns == 1 else array[..., keys]
