"""Products of laid out tokens with the matrices of their experts.

`jax.lax.ragged_dot` multiplies every token with every expert where a backend has no kernel of its
own for it (CPU): it is used on request alone.
"""

import jax
import jax.numpy as jnp

from mpojax.layers.dispatch import Layout


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
        y = _block_matmul(layout, rows, weights)
    return y.reshape(total, g, outer)


# Loops over experts, and inside over the blocks of one: its matrix is read once. A block may reach
# into the rows of the next expert, which overwrites them when its turn comes.


@jax.custom_vjp
def _block_matmul(layout, rows, weights):
    def of_expert(y, e_and_w):
        e, w = e_and_w

        def of_block(b, y):
            at = layout.starts[e] + b * layout.block
            return _put(layout, y, at, _block(layout, rows, at) @ w)

        return jax.lax.fori_loop(0, _blocks(layout, e), of_block, y), None

    y = jnp.zeros((*rows.shape[:2], weights.shape[2]), rows.dtype)
    return jax.lax.scan(of_expert, y, (_each(layout), weights))[0]


def _block_backward(saved, dy):
    layout, rows, weights = saved
    # Sums over many blocks: never in half precision.
    wide = jnp.float64 if weights.dtype == jnp.float64 else jnp.float32

    def of_expert(dx, e_and_w):
        e, w = e_and_w
        end = layout.starts[e] + layout.counts[e]

        def of_block(b, carry):
            dx, dw = carry
            at = layout.starts[e] + b * layout.block
            d, x = _block(layout, dy, at), _block(layout, rows, at)
            dx = _put(layout, dx, at, d @ w.T)
            row = at + jnp.arange(layout.block, dtype=jnp.int32)
            mine = jnp.repeat(row < end, rows.shape[1])[:, None]
            x = jnp.where(mine, x, 0)
            return dx, dw + jnp.matmul(x.T, d, preferred_element_type=wide)

        carry = dx, jnp.zeros(w.shape, wide)
        dx, dw = jax.lax.fori_loop(0, _blocks(layout, e), of_block, carry)
        return dx, dw.astype(w.dtype)

    dx, dw = jax.lax.scan(of_expert, jnp.zeros_like(rows), (_each(layout), weights))
    return None, dx, dw


_block_matmul.defvjp(
    lambda layout, rows, weights: (_block_matmul(layout, rows, weights), (layout, rows, weights)),
    _block_backward,
)


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
