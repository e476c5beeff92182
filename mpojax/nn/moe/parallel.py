"""Experts on a mesh: tokens are divided over data, fsdp and expert, experts over `expert`.

Each device lays its own tokens out by expert. Over the axis `expert` they travel to the devices
that hold their experts and back (all-to-all); the auxiliary cores, kernels and biases of an expert
are on those devices alone, what all experts share is on all. With an axis `expert` of size 1 no
token travels: every device has all experts (small ones, in MPO form).

A capacity is one of the tokens of a device: with one, what is dropped depends on the mesh. Without
one every device must be ready for all tokens to choose one expert: it sends (number of experts) x
(its tokens) rows, most of them empty. On large meshes give a `capacity_factor`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mpojax.nn.functional import BATCH
from mpojax.nn.moe import dispatch, maps
from mpojax.nn.moe.maps import Block

EXPERT = "expert"  # mesh axis that divides experts


def mesh_axes(number: int) -> tuple[str, ...]:
    """Axes of the current mesh that divide tokens; none without a mesh.

    Raises:
      ValueError: `number` experts cannot be divided evenly over the axis `expert`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return ()
    size = mesh.shape.get(EXPERT, 1)
    if number % size:
        raise ValueError(
            f"{number} experts cannot be divided over the mesh axis {EXPERT!r} of size {size}; "
            f"make the number of experts a multiple of {size}, or the axis smaller."
        )
    names = (*(name for name in BATCH if name != EXPERT), EXPERT)
    return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def run(block: Block, parameters, x, experts, gates, key) -> tuple[jax.Array, jax.Array]:
    """`maps.run`, divided over the current mesh if there is one.

    Raises:
      ValueError: see `mesh_axes`.
    """
    axes = mesh_axes(block.settings.number)
    if not axes or x.shape[0] == 0:
        return maps.run(block, parameters, x, experts, gates, key)
    mesh = jax.sharding.get_abstract_mesh()
    tokens, parts = x.shape[0], math.prod(mesh.shape[axis] for axis in axes)
    # Rows that fill up are padding: of the expert `number`, which there is not.
    if missing := -tokens % parts:
        fill = ((0, missing), (0, 0))
        x, gates = jnp.pad(x, fill), jnp.pad(gates, fill)
        experts = jnp.pad(experts, fill, constant_values=block.settings.number)
    size = mesh.shape.get(EXPERT, 1)

    def of_device(parameters, x, experts, gates, key):
        if key is not None:
            # Otherwise all devices would drop the same entries of their own rows.
            key = jax.random.fold_in(key, jax.lax.axis_index(axes))
        local = functools.partial(_exchange, size) if size > 1 else maps.run
        y, kept = local(block, parameters, x, experts, gates, key)
        return y, jax.lax.psum(kept, axes)

    own = P(EXPERT) if size > 1 else P()
    # Axes of one device, too: kernels ask for all.
    manual = {*axes, *(axis for axis, count in mesh.shape.items() if count == 1)}
    y, kept = jax.shard_map(
        of_device,
        in_specs=((own, P()), P(axes), P(axes), P(axes), P()),
        out_specs=(P(axes), P()),
        axis_names=manual,
        check_vma=False,  # the derivatives of `dispatch` are written for one device
    )(parameters, x, experts, gates, key)
    return y[:tokens], kept


def _exchange(size, block, parameters, x, experts, gates, key):
    """`maps.run` on one device of the axis `expert`, which holds 1 / size of the experts."""
    tokens, number, local = x.shape[0], block.settings.number, block.settings.number // size
    capacity = block.capacity(tokens)
    layout = dispatch.make_layout(experts, number, "capacity", capacity=capacity)
    # (experts, capacity) on the way out, (senders, own experts, capacity) on arrival.
    rows = _swap(dispatch.gather(layout, x))
    # (size * own experts,): tokens that each sender has for each of them.
    counts = _swap(layout.counts)
    if block.kind == "capacity":
        inner = _by_sender(size, local, capacity, counts)
    else:
        # Rows arrive by (sender, own expert, place): sorted by expert once more.
        own = jnp.tile(jnp.arange(local, dtype=jnp.int32), size)[:, None]
        filled = jnp.arange(capacity, dtype=jnp.int32)[None] < counts[:, None]
        inner = dispatch.make_layout(
            jnp.where(filled, own, local).reshape(-1, 1),
            local,
            block.kind,
            limit=size * tokens * min(local, block.settings.experts_per_token),
        )
    expected = experts.size
    received = dispatch.gather(inner, rows)
    received = maps.maps(block, parameters, inner, received, expected, key)
    # Back to the order of arrival with weights of 1: gates are applied by the sender.
    ones = jnp.ones((rows.shape[0], 1), received.dtype)
    rows = _swap(dispatch.combine(inner, received, ones))
    return dispatch.combine(layout, rows, gates.astype(rows.dtype)), layout.kept()


def _swap(x):
    """Sends the i-th part of the leading axis to device i of the axis `expert`."""
    return jax.lax.all_to_all(x, EXPERT, 0, 0, tiled=True)


def _by_sender(size, local, capacity, counts):
    """Layout "capacity" of rows that arrive by (sender, expert, place): ordered by expert."""
    ids = jnp.tile(jnp.arange(local, dtype=jnp.int32), size)[:, None]
    place = jnp.arange(capacity, dtype=jnp.int32)[None]
    sender = jnp.repeat(jnp.arange(size, dtype=jnp.int32), local)[:, None]
    rows = local * size * capacity
    row = (ids * size + sender) * capacity + place
    slot = jnp.where(place < counts[:, None], row, rows).reshape(-1, 1)
    arrival = jnp.arange(rows, dtype=jnp.int32).reshape(size, local, capacity)
    filled = (place < counts[:, None]).reshape(size, local, capacity)
    assignment = jnp.where(filled, arrival, rows).swapaxes(0, 1).reshape(-1)
    starts = jnp.arange(local, dtype=jnp.int32) * size * capacity
    # Filled rows are not the first ones here: all count, if there is any.
    used = jnp.any(counts.reshape(size, local) > 0, 0)
    each = jnp.where(used, jnp.int32(size * capacity), jnp.int32(0))
    place_of = (assignment, slot, starts, each)
    return dispatch.Layout("capacity", local, rows, 1, size * capacity, *place_of)
