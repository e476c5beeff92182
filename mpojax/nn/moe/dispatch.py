"""Dispatch of tokens to experts: the rows that each expert works on.

A `Layout` is made once for a block from the router's choice; all matrices of the block use it
(`mpojax.nn.moe.grouped_matmul`).

| kind     | rows                                                     | product                  |
| dense    | every token for every expert                             | batched                  |
| capacity | `capacity` for each expert; tokens beyond it are dropped | batched                  |
| block    | one for each assignment, sorted by expert                | loop over blocks of rows |
| ragged   | one for each assignment, sorted by expert                | `jax.lax.ragged_dot`     |
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

KINDS = ("dense", "capacity", "block", "ragged")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["assignment", "slot", "starts", "counts"],
    meta_fields=["kind", "number", "tokens", "k", "block"],
)
@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows of experts; built by `make_layout`.

    Attributes:
      kind: one of `KINDS`.
      number: experts.
      tokens: T.
      k: assignments of a token.
      block: rows of a block, with kind "block"; the capacity, with kind "capacity".
      assignment: (R,) the assignment j * T + t that each row is for; k * T where a row is empty.
      slot: (T, k) row of each assignment; R where there is none (padding, or dropped).
      starts: (number,) first row of each expert.
      counts: (number,) filled rows of each expert.
    """

    kind: str
    number: int
    tokens: int
    k: int
    block: int
    assignment: jax.Array
    slot: jax.Array
    starts: jax.Array
    counts: jax.Array

    @property
    def rows(self) -> int:
        """R, the number of rows."""
        return self.assignment.shape[0]

    def kept(self) -> jax.Array:
        """() int32: assignments that have a row."""
        return jnp.sum(self.slot < self.rows, dtype=jnp.int32)

    def expert_of_row(self) -> jax.Array:
        """(R, number) booleans: the expert that each row is for; none where a row is empty."""
        # Filled rows of an expert are contiguous: starts <= row < starts + counts.
        row = jnp.arange(self.rows, dtype=jnp.int32)[:, None]
        return (row >= self.starts[None]) & (row < (self.starts + self.counts)[None])


def capacity_of(assignments: int, number: int, factor: float, multiple: int = 1) -> int:
    """ceil(factor * assignments / number), rounded up to a multiple."""
    # Rounded: 1.1 * 10 / 1 is 11.000000000000002 in binary, whose ceiling would be 12.
    capacity = math.ceil(round(factor * assignments / number, 9))
    return -(-max(1, capacity) // multiple) * multiple


def make_layout(
    experts: jax.Array,
    number: int,
    kind: str,
    *,
    capacity: int | None = None,
    block: int | None = None,
    limit: int | None = None,
) -> Layout:
    """Sorts assignments by expert.

    First choices of all tokens come before second ones, then tokens in order: with a capacity,
    later assignments of an expert are dropped.

    Args:
      experts: (T, k) integers; `number` for padding.
      number: experts.
      kind: one of `KINDS`.
      capacity: rows of each expert, with kind "capacity".
      block: rows of a block, with kind "block"; default by the mean number of rows.
      limit: no more assignments than so many are not padding; makes fewer rows of kinds "block" and
        "ragged".
    """
    (tokens, k), total = experts.shape, experts.size
    # Assignment j T + t: a stable sort by expert keeps first choices in front, dropped last.
    flat = experts.T.reshape(-1).astype(jnp.int32)
    each = jnp.arange(number, dtype=jnp.int32)
    # counts[e] = |{a: flat[a] = e}|; starts are their exclusive prefix sums.
    counts = jnp.sum(flat[:, None] == each[None], 0, dtype=jnp.int32)
    starts = jnp.cumsum(counts, dtype=jnp.int32) - counts
    make = functools.partial(Layout, kind, number, tokens, k)
    if kind == "dense":
        rows = number * tokens
        # Expert e has rows e T .. (e + 1) T - 1, one for each token, whether it goes there or not.
        row = experts * tokens + jnp.arange(tokens, dtype=jnp.int32)[:, None]
        slot = jnp.where(experts < number, row, rows)
        assignment = jnp.arange(rows, dtype=jnp.int32)  # rows are broadcast, not gathered
        return make(0, assignment, slot, each * tokens, jnp.full(number, tokens, jnp.int32))
    # order[r]: the assignment in row r; place, its inverse permutation: the row of an assignment.
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    place = (
        jnp.zeros(total, jnp.int32)
        .at[order]
        .set(jnp.arange(total, dtype=jnp.int32), unique_indices=True)
    )
    if kind == "capacity":
        # how many assignments of the same expert come before
        rank = place - _take(starts, flat)
        kept = (flat < number) & (rank < capacity)
        slot = jnp.where(kept, flat * capacity + rank, number * capacity)
        counts = jnp.minimum(counts, capacity)
        # (number, capacity): row c of expert e holds the assignment sorted at starts[e] + c.
        column = jnp.arange(capacity, dtype=jnp.int32)[None]
        sorted_at = jnp.where(column < counts[:, None], starts[:, None] + column, total)
        assignment = order.at[sorted_at.reshape(-1)].get(mode="fill", fill_value=total)
        return make(capacity, assignment, slot.reshape(k, tokens).T, each * capacity, counts)
    limit = total if limit is None else min(limit, total)
    block = (block or default_block(limit, number)) if kind == "block" else 0
    # Blocks reach beyond the rows of their expert: the last one needs somewhere to end.
    slot = jnp.where(flat < number, place, limit + block)
    filled = jnp.arange(limit, dtype=jnp.int32) < jnp.sum(counts, dtype=jnp.int32)
    assignment = jnp.where(filled, order[:limit], total)
    assignment = jnp.pad(assignment, (0, block), constant_values=total)
    return make(block, assignment, slot.reshape(k, tokens).T, starts, counts)


def layout_of_few(
    experts: jax.Array, number: int, capacity: int | None = None
) -> tuple[Layout, jax.Array]:
    """For fewer assignments than experts: each assignment gets a row and an expert of its own.

    Returns:
      The layout, of as many experts as assignments, and which experts these are: (T * k,) indices
      by which to take their parameters, so that no others are read.
    """
    (tokens, k), total = experts.shape, experts.size
    flat = experts.T.reshape(-1).astype(jnp.int32)
    each = jnp.arange(total, dtype=jnp.int32)
    has_row = flat < number
    if capacity is not None:
        # (T k, T k): assignment b comes before a and has its expert
        earlier = (flat[:, None] == flat[None]) & (each[None] < each[:, None])
        has_row &= jnp.sum(earlier, 1) < capacity
    slot = jnp.where(has_row, each, total).reshape(k, tokens).T
    assignment = jnp.where(has_row, each, total)
    layout = Layout(
        "capacity", total, tokens, k, 1, assignment, slot, each, has_row.astype(jnp.int32)
    )
    # Padding has no row: any expert does for it, as long as its index exists.
    return layout, jnp.minimum(flat, number - 1)


def default_block(assignments: int, number: int) -> int:
    """A power of two, at most 128 and about a quarter of an expert's mean number of rows."""
    mean = max(1, assignments // number)
    return min(128, max(8, 1 << max(0, (mean // 4).bit_length())))


def gather(layout: Layout, x: jax.Array) -> jax.Array:
    """Tokens (T, d) -> rows (R, d); empty rows are 0."""
    if layout.kind == "dense":
        return jnp.broadcast_to(x[None], (layout.number, *x.shape)).reshape(layout.rows, -1)
    return _gather(layout, x)


def combine(layout: Layout, rows: jax.Array, gates: jax.Array) -> jax.Array:
    """Rows (R, d) -> tokens (T, d): sum of each token's rows, weighted with gates (T, k)."""
    if layout.kind == "dense":
        # W[t, n] = sum_j gates[t, j] [slot[t, j] = n T + t]; y[t] = sum_n W[t, n] rows[n, t]
        weights = jnp.zeros((layout.tokens, layout.number), gates.dtype)
        for j in range(layout.k):
            row = jnp.arange(layout.rows, dtype=jnp.int32).reshape(layout.number, -1).T
            here = layout.slot[:, j, None] == row
            weights = weights + jnp.where(here, gates[:, j, None], 0.0)
        return jnp.einsum("tn,ntd->td", weights, rows.reshape(layout.number, layout.tokens, -1))
    return _combine(layout, rows, gates)


@jax.custom_vjp
def _gather(layout, x):
    return _take(x, _source(layout))


def _gather_backward(layout, d_rows):
    # dx[t] = sum_j d_rows[slot[t, j]]: a gather, where autodiff would scatter
    return None, sum(_take(d_rows, layout.slot[:, j]) for j in range(layout.k))


_gather.defvjp(lambda layout, x: (_gather(layout, x), layout), _gather_backward)


@jax.custom_vjp
def _combine(layout, rows, gates):
    # y[t] = sum_j gates[t, j] rows[slot[t, j]]; slot R, beyond the end, reads 0
    return sum(_take(rows, layout.slot[:, j]) * gates[:, j, None] for j in range(layout.k))


def _combine_backward(saved, dy):
    layout, rows, gates = saved
    # d_rows[r] = gate of its assignment * dy[its token]; d_gates[t, j] = <rows[slot[t, j]], dy[t]>
    weights = _take(gates.T.reshape(-1), layout.assignment)
    d_rows = _take(dy, _source(layout)) * weights[:, None]
    d_gates = [jnp.sum(_take(rows, layout.slot[:, j]) * dy, -1) for j in range(layout.k)]
    return None, d_rows, jnp.stack(d_gates, 1)


_combine.defvjp(
    lambda layout, rows, gates: (_combine(layout, rows, gates), (layout, rows, gates)),
    _combine_backward,
)


def _source(layout):
    """(R,) token of each row; T where empty."""
    empty = layout.assignment == layout.k * layout.tokens
    # Assignments are numbered j T + t: the token is the remainder.
    return jnp.where(empty, layout.tokens, layout.assignment % max(layout.tokens, 1))


def _take(x, index):
    """Rows of `x`; 0 beyond its end."""
    return jnp.asarray(x).at[index].get(mode="fill", fill_value=0)
