"""Rows of a table in MPO form: by digits, or from the rebuilt table, whichever is cheaper."""

import math

import jax
import jax.numpy as jnp

from mpojax import checks
from mpojax.mpo import contract
from mpojax.mpo.shape import MPOShape

# Digit look-up gathers one slice of every core for each token; tokens go through in blocks of about
# this many gathered elements, so that memory stays bounded.
_BLOCK_ELEMENTS = 2**22
METHODS = ("lookup", "rebuild")


def embed(cores, ids, shape: MPOShape, method: str | None = None):
    """Rows `ids` of the table (in_features, out_features) that `cores` stand for.

    A row index is split into mixed-radix digits; digit k picks a slice of core k, and the slices
    are multiplied. The table is never built unless that is cheaper for this many tokens.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k).
      ids: integers (...), in 0..in_features - 1; others are clamped, so that rows of zero-padding
        are never returned.
      shape: factor lists and bonds; static.
      method: "lookup", "rebuild", or None to choose by cost.

    Returns:
      (..., out_features), equal to to_matrix(cores, shape)[ids].

    Raises:
      ValueError: ids that are not integers, or an unknown method.
    """
    if not jnp.issubdtype(jnp.asarray(ids).dtype, jnp.integer):
        raise ValueError(f"ids have dtype {ids.dtype}; row indices must be integers.")
    cores, tokens = tuple(cores), max(1, math.prod(ids.shape))
    method = method or cheaper_embedding(shape, tokens)
    checks.check_value("method", method, checks.one_of(*METHODS))
    ids = jnp.clip(jnp.asarray(ids).astype(jnp.int32), 0, shape.in_features - 1)
    if method == "rebuild":
        return jnp.take(contract.to_matrix(cores, shape), ids, axis=0, mode="clip")
    return _lookup(cores, ids.reshape(-1), shape).reshape(*ids.shape, shape.out_features)


def cheaper_embedding(shape: MPOShape, tokens: int) -> str:
    """ "lookup" or "rebuild": compares what both read and multiply for `tokens` rows."""
    lookup = tokens * (lookup_multiply_adds(shape) + _GATHER_WEIGHT * _slice_size(shape))
    return "lookup" if lookup < rebuild_multiply_adds(shape) else "rebuild"


# A gathered element costs about as much as this many multiply-adds of a large product.
_GATHER_WEIGHT = 4


def lookup_multiply_adds(shape: MPOShape) -> int:
    """Multiply-adds of one row by digits, from the left: what `_rows` runs for each token."""
    total, columns = 0, 1
    for p, _, j, q in shape.core_shapes:
        total += columns * p * j * q
        columns *= j
    return total


def rebuild_multiply_adds(shape: MPOShape) -> int:
    """Multiply-adds of rebuilding the whole table in the better order."""
    return sum(
        p * i * j * q * k * m * r for (p, i, j, q), (_, k, m, r) in contract.rebuild_steps(shape)
    )


def _lookup(cores, ids, shape):
    block = max(1, min(ids.shape[0], _BLOCK_ELEMENTS // max(1, _slice_size(shape))))
    blocks = -(-ids.shape[0] // block)
    # Row 0 fills the last block; those rows are cut off below.
    padded = jnp.pad(ids, (0, blocks * block - ids.shape[0])).reshape(blocks, block)
    # Slices are gathered again in the backward pass instead of being kept for every token.
    rows = jax.checkpoint(lambda ids: _rows(cores, ids, shape))
    table = rows(padded[0])[None] if blocks == 1 else jax.lax.map(rows, padded)
    table = table.reshape(blocks * block, shape.padded_out_features)
    return table[: ids.shape[0], : shape.out_features]


def _rows(cores, ids, shape):
    # id = sum_k digit_k * stride_k, stride_k = i_(k+1) ... i_n
    strides = [math.prod(shape.in_factors[k + 1 :]) for k in range(shape.num_cores)]
    slices = [
        jnp.take(core, ids // strides[k] % shape.in_factors[k], axis=1, mode="clip").swapaxes(0, 1)
        for k, core in enumerate(cores)
    ]  # (T, p, j, q) each
    state = slices[0][:, 0]  # (T, columns so far, bond)
    for piece in slices[1:]:
        state = jnp.einsum("Tcp,Tpjq->Tcjq", state, piece)
        state = state.reshape(state.shape[0], -1, state.shape[-1])
    return state[..., 0]


def _slice_size(shape):
    return sum(p * j * q for p, _, j, q in shape.core_shapes)
