"""Products of laid out tokens with the matrices of their experts.

`jax.lax.ragged_dot` multiplies every token with every expert where a backend has no kernel of its
own for it (CPU): it is used on request alone.
"""

import functools

import jax
import jax.numpy as jnp

from mpojax import mpo
from mpojax.layers.dispatch import Layout
from mpojax.mpo import experts as kernels


def matmul(layout: Layout, rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies each row with the matrix of its expert.

    Args:
      layout: says which expert.
      rows: (R, g, inner): each row is g vectors.
      weights: (experts, inner, outer), of the dtype of `rows`.

    Returns:
      (R, g, outer). Rows without a token hold finite numbers without a meaning.
    """
    total, g, inner = rows.shape
    n, _, outer = weights.shape
    if layout.kind in ("dense", "capacity"):
        y = rows.reshape(n, total // n * g, inner) @ weights
    elif layout.kind == "ragged":
        y = jax.lax.ragged_dot(rows.reshape(total * g, inner), weights, layout.counts * g)
        vector = jnp.arange(total * g, dtype=jnp.int32)
        filled = vector < jnp.sum(layout.counts, dtype=jnp.int32) * g
        y = jnp.where(filled[:, None], y, 0)
    else:
        y = _by_blocks(None, layout, weights, None, rows)
    return y.reshape(total, g, outer)


def rebuilt_matmul(
    layout: Layout, shape: mpo.MPOShape, cores, rows: jax.Array, remat: bool = True
) -> jax.Array:
    """Multiplies each row with the matrix of its expert, rebuilt from cores.

    Args:
      layout: says which expert.
      shape: of the matrices.
      cores: cores of experts, see `mpo.expert_matrices`; may be wider than `rows`.
      rows: (R, in_features).
      remat: build the matrices again for the backward pass. On CPU, with layouts "capacity" and
        "block", each is then rebuilt where it is used: only one exists at a time, and experts
        without tokens cost nothing. Elsewhere all are built at once.

    Returns:
      (R, out_features), as from `matmul`.
    """
    if remat and layout.kind in ("capacity", "block") and jax.default_backend() == "cpu":
        own, shared = kernels.own_groups(cores, shape)
        return _by_blocks(shape, layout, own, shared, rows[:, None])[:, 0]

    def at_once(cores, rows):
        matrices = mpo.expert_matrices(cores, shape).astype(rows.dtype)
        return matmul(layout, rows[:, None], matrices)[:, 0]

    return (jax.checkpoint(at_once) if remat else at_once)(tuple(cores), rows)


# Loops over experts, and inside over the blocks of one (a capacity is one block): its matrix is
# made once. A block may reach into the rows of the next expert, which overwrites them when its turn
# comes. `own` is what experts own of a matrix, `shared` what they share: see `_matrix`.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(shape, layout, own, shared, rows):
    def of_expert(y, e_and_own):
        e, own = e_and_own

        def used(y):
            w = _matrix(shape, own, shared).astype(rows.dtype)

            def of_block(b, y):
                at = layout.starts[e] + b * layout.block
                return _put(layout, y, at, _block(layout, rows, at) @ w)

            return jax.lax.fori_loop(0, _blocks(layout, e), of_block, y)

        return _if_used(layout, e, used, lambda y: y, y), None

    outer = own.shape[2] if shape is None else shape.out_features
    y = jnp.zeros((*rows.shape[:2], outer), rows.dtype)
    return jax.lax.scan(of_expert, y, (_each(layout), own))[0]


def _by_blocks_forward(shape, layout, own, shared, rows):
    return _by_blocks(shape, layout, own, shared, rows), (layout, own, shared, rows)


def _by_blocks_backward(shape, saved, dy):
    layout, own, shared, rows = saved

    def of_expert(carry, e_and_own):
        e, own = e_and_own

        def used(carry):
            dx, d_shared = carry
            w, pull_back = jax.vjp(functools.partial(_matrix, shape), own, shared)
            dx, dw = _block_gradients(layout, e, w.astype(rows.dtype), rows, dy, dx)
            d_own, more = pull_back(dw.astype(w.dtype))
            return (dx, jax.tree.map(jnp.add, d_shared, more)), d_own

        def unused(carry):
            return carry, jax.tree.map(jnp.zeros_like, own)

        return _if_used(layout, e, used, unused, carry)

    carry = jax.tree.map(jnp.zeros_like, (rows, shared))
    (dx, d_shared), d_own = jax.lax.scan(of_expert, carry, (_each(layout), own))
    return None, d_own, d_shared, dx


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def _block_gradients(layout, e, w, rows, dy, dx):
    """(dx with the rows of expert e, dw of expert e)."""
    # A sum over many blocks: never in half precision.
    wide = jnp.float64 if w.dtype == jnp.float64 else jnp.float32
    end = layout.starts[e] + layout.counts[e]

    def of_block(b, carry):
        dx, dw = carry
        at = layout.starts[e] + b * layout.block
        d, x = _block(layout, dy, at), _block(layout, rows, at)
        dx = _put(layout, dx, at, d @ w.T)
        row = at + jnp.arange(layout.block, dtype=jnp.int32)
        x = jnp.where(jnp.repeat(row < end, rows.shape[1])[:, None], x, 0)
        return dx, dw + jnp.matmul(x.T, d, preferred_element_type=wide)

    return jax.lax.fori_loop(0, _blocks(layout, e), of_block, (dx, jnp.zeros(w.shape, wide)))


def _matrix(shape, own, shared):
    """The matrix of one expert: its kernel, or with a shape its chain's."""
    return own if shape is None else kernels.group_matrix(own, shared, shape)


def _if_used(layout, e, used, unused, carry):
    return jax.lax.cond(layout.counts[e] > 0, used, unused, carry)


def _each(layout):
    return jnp.arange(layout.number, dtype=jnp.int32)


def _blocks(layout, e):
    return (layout.counts[e] + layout.block - 1) // layout.block


def _block(layout, x, at):
    """(block * g, d) vectors of the rows from `at` on."""
    return jax.lax.dynamic_slice_in_dim(x, at, layout.block).reshape(-1, x.shape[-1])


def _put(layout, y, at, values):
    values = values.reshape(layout.block, *y.shape[1:])
    return jax.lax.dynamic_update_slice_in_dim(y, values, at, 0)


def add_bias(layout: Layout, rows: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds the bias of its expert to each row: (R, d) + (experts, d)."""
    if layout.kind in ("dense", "capacity"):
        n = layout.number
        return (rows.reshape(n, -1, rows.shape[1]) + bias[:, None]).reshape(rows.shape)
    # Both the value and its derivative are products with a 0/1 matrix: no scatter-add.
    one_hot = layout.expert_of_row().astype(rows.dtype)
    return rows + jnp.matmul(one_hot, bias, precision="highest")
