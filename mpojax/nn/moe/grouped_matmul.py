"""Products of dispatched tokens with the matrices of their experts.

`jax.lax.ragged_dot` multiplies every token with every expert where a backend has no kernel of its
own for it: on CPU it is used on request alone, on TPU the derivative of the matrices, for which it
has none, is a kernel that ships with jax (megablox, Gale et al., "MegaBlocks", MLSys 2023).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from mpojax import devices, mpo
from mpojax.mpo.experts import chains as expert_chains
from mpojax.mpo.experts import kernels
from mpojax.nn.moe.dispatch import Layout


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
        product = ragged_dot if _has_kernel() else jax.lax.ragged_dot
        y = product(rows.reshape(total * g, inner), weights, layout.counts * g)
        # Rows behind the last group come back undefined; finite numbers are promised.
        vector = jnp.arange(total * g, dtype=jnp.int32)
        filled = vector < jnp.sum(layout.counts, dtype=jnp.int32) * g
        y = jnp.where(filled[:, None], y, 0)
    else:
        y = _by_blocks(None, layout, weights, None, rows)
    return y.reshape(total, g, outer)


def _has_kernel() -> bool:
    """Whether kernels of TPUs may be used here: the compiler cannot divide them over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    is_alone = mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types)
    return devices.platform() == "tpu" and is_alone


@jax.custom_vjp
def ragged_dot(rows: jax.Array, weights: jax.Array, counts: jax.Array) -> jax.Array:
    """`jax.lax.ragged_dot` whose derivatives multiply each row with one matrix, too, on TPU.

    Args:
      rows: (R, inner), bfloat16 or float32.
      weights: (experts, inner, outer), of that dtype.
      counts: (experts,) int32, rows of each; those beyond their sum have no meaning.
    """
    return jax.lax.ragged_dot(rows, weights, counts)


def _ragged_backward(saved, dy):
    rows, weights, counts = saved
    # dx_r = dy_r W_e^T with the expert e of row r
    drows = jax.lax.ragged_dot(dy, weights.swapaxes(1, 2), counts)
    return drows, _ragged_outer(rows, dy, counts).astype(weights.dtype), None


ragged_dot.defvjp(lambda *arrays: (ragged_dot(*arrays), arrays), _ragged_backward)
_TILE = (256, 512, 512)  # of rows, inner and outer sizes: 134 MFLOP, 0.7 us on a v5e


def _ragged_outer(rows, dy, counts):
    """dW_e = x_e^T dy_e of the rows of each expert: (experts, inner, outer)."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # loads Mosaic

    sizes = (-(-rows.shape[0] // 128) * 128, rows.shape[1], dy.shape[1])
    # Whole tiles of rows; of the other sizes rests are masked.
    tile = [128 if sizes[0] % _TILE[0] else _TILE[0], *map(min, _TILE[1:], sizes[1:])]
    x, dy = (jnp.pad(a, ((0, sizes[0] - a.shape[0]), (0, 0))) for a in (rows, dy))
    is_interpreted = devices.platform() != "tpu"
    # It mixes dtypes and ranks, whatever a program that uses it allows.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return tgmm(x.T, dy, counts, jnp.float32, tuple(tile), interpret=is_interpreted)


def chain_matmul(
    layout: Layout,
    shape: mpo.MPOShape,
    cores,
    rows: jax.Array,
    plan: mpo.ExpertPlan,
    remat: bool = True,
) -> jax.Array:
    """Multiplies each row with the matrix of its expert, given by cores.

    Args:
      layout: says which expert.
      shape: of the matrices.
      cores: cores of experts, see `mpo.expert_matrices`; may be wider than `rows`.
      rows: (R, in_features).
      plan: whether matrices are rebuilt, and how chains are contracted otherwise.
      remat: build matrices again for the backward pass. Where `runs_one_by_one` each is then
        rebuilt where it is used: only one exists at a time.

    Returns:
      (R, out_features), as from `matmul`.
    """
    strategy, variant = plan.strategy, plan.chosen.variant
    if strategy in kernels.ORDERS:
        product = functools.partial(matmul, layout)
        return mpo.apply_shared_core(cores, shape, rows, product, strategy)
    if runs_one_by_one(layout) and (remat or strategy != "rebuild"):
        own, shared = kernels.own_groups(cores, shape)
        op = (shape, strategy, variant)
        return _by_blocks(op, layout, own, shared, rows[:, None])[:, 0]

    def at_once(cores, rows):
        matrices = mpo.expert_matrices(cores, shape).astype(rows.dtype)
        return matmul(layout, rows[:, None], matrices)[:, 0]

    return (jax.checkpoint(at_once) if remat else at_once)(tuple(cores), rows)


def runs_one_by_one(layout: Layout) -> bool:
    """True if experts can come one after the other, those without tokens left out.

    On CPU: there is nothing to gain from more work at a time, and caches to fit into.
    """
    return layout.kind in ("capacity", "block") and devices.platform() == "cpu"


# Loops over experts, and inside over the blocks of one (a capacity is one block): what is merged of
# its cores is merged once. A block may reach into the rows of the next expert, which overwrites
# them when its turn comes. `own` is what experts own of a matrix, `shared` what they share; `op` is
# (shape, strategy, variant) of `mpo.expert_chains`, or None for a kernel.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(op, layout, own, shared, rows):
    def of_expert(y, e_and_own):
        e, own = e_and_own

        def used(y):
            merged = _merge(op, own, shared)

            def of_block(b, y):
                at = layout.starts[e] + b * layout.block
                return _put(layout, y, at, _apply(op, merged, _block(layout, rows, at)))

            return jax.lax.fori_loop(0, _blocks(layout, e), of_block, y)

        # cond, not a product with zero: an expert without tokens is not even read.
        return jax.lax.cond(layout.counts[e] > 0, used, lambda y: y, y), None

    outer = own.shape[2] if op is None else op[0].out_features
    y = jnp.zeros((*rows.shape[:2], outer), rows.dtype)
    return jax.lax.scan(of_expert, y, (_each(layout), own))[0]


def _by_blocks_forward(op, layout, own, shared, rows):
    return _by_blocks(op, layout, own, shared, rows), (layout, own, shared, rows)


def _by_blocks_backward(op, saved, dy):
    layout, own, shared, rows = saved

    def of_expert(carry, e_and_own):
        e, own = e_and_own

        def used(carry):
            dx, d_shared = carry
            merged, pull_back = jax.vjp(functools.partial(_merge, op), own, shared)
            dx, d_merged = _block_gradients(op, layout, e, merged, rows, dy, dx)
            d_own, more = pull_back(d_merged)
            return (dx, jax.tree.map(jnp.add, d_shared, more)), d_own

        def unused(carry):
            return carry, jax.tree.map(jnp.zeros_like, own)

        return jax.lax.cond(layout.counts[e] > 0, used, unused, carry)

    carry = jax.tree.map(jnp.zeros_like, (rows, shared))
    (dx, d_shared), d_own = jax.lax.scan(of_expert, carry, (_each(layout), own))
    return None, d_own, d_shared, dx


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def _block_gradients(op, layout, e, merged, rows, dy, dx):
    """(dx with the rows of expert e, derivative of what is merged of it)."""
    end = layout.starts[e] + layout.counts[e]

    def of_block(b, carry):
        dx, sums = carry
        at = layout.starts[e] + b * layout.block
        row = at + jnp.arange(layout.block, dtype=jnp.int32)
        # Rows of the next expert in the last block have no part in this one's gradient.
        mine = jnp.repeat(row < end, rows.shape[1])[:, None]
        d, x = jnp.where(mine, _block(layout, dy, at), 0), _block(layout, rows, at)
        if op is None or op[1] == "rebuild":
            # dW = x^T dy, dx = dy W^T
            more = (jnp.matmul(x.T, d, preferred_element_type=sums[0].dtype),)
            d_block = d @ merged[0].astype(d.dtype).T
        else:
            _, pull_back = jax.vjp(functools.partial(_apply, op), merged, x)
            more, d_block = pull_back(d)
        sums = tuple(a + b.astype(a.dtype) for a, b in zip(sums, more, strict=True))
        return _put(layout, dx, at, d_block), sums

    # Sums over many blocks: never in half precision.
    wide = [jnp.float64 if m.dtype == jnp.float64 else jnp.float32 for m in merged]
    sums = tuple(jnp.zeros(m.shape, dtype) for m, dtype in zip(merged, wide, strict=True))
    dx, sums = jax.lax.fori_loop(0, _blocks(layout, e), of_block, (dx, sums))
    return dx, tuple(a.astype(m.dtype) for a, m in zip(sums, merged, strict=True))


def _merge(op, own, shared):
    return (own,) if op is None else expert_chains.merge(own, shared, *op)


def _apply(op, merged, x):
    return x @ merged[0] if op is None else expert_chains.apply_merged(merged, *op, x)


def _each(layout):
    return jnp.arange(layout.number, dtype=jnp.int32)


def _blocks(layout, e):
    # ceil(tokens / block)
    return (layout.counts[e] + layout.block - 1) // layout.block


def _block(layout, x, at):
    """(block * g, d) vectors of the rows from `at` on."""
    # Never clamped: a layout of blocks ends with a block of spare rows.
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
