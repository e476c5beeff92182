"""Contractions of a chain: merge cores, rebuild the matrix, contract with activations.

Axis letters: p, q, r bonds; i, k row digits; j, l column digits; T tokens. Every function here is
multilinear and plain `jnp`: differentiable, jit-able, vmap-able. `mpo.apply` chooses between them.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import devices
from mpojax.mpo import pivoted
from mpojax.mpo.shape import MPOShape

# Most matrix products that the transpose-free last merge may emit.
_MAX_BLOCKS = 32


def merge(left, right):
    """Merges two neighbouring cores: (p, i, j, q), (q, k, l, r) -> (p, i*k, j*l, r)."""
    (p, i, j, q), (_, k, m, r) = left.shape, right.shape
    # M[(p i j), (k m r)] = sum_q L[(p i j), q] R[q, (k m r)]; the digits are then put in order.
    product = left.reshape(p * i * j, q) @ right.reshape(q, k * m * r)
    product = product.reshape(p, i, j, k, m, r).swapaxes(2, 3)
    return product.reshape(p, i * k, j * m, r)


def merge_to_matrix(left, right):
    """Merges the last two cores, (1, i, j, q) and (q, k, l, 1), into the matrix (i*k, j*l).

    Equal to `merge`, with blocks of columns or rows written where they belong instead of
    transposing the whole product: XLA on CPU transposes several times slower than it multiplies.
    For forward use; the transpose is the better form to differentiate.
    """
    (_, i, j, q), (_, k, m, _) = left.shape, right.shape
    if min(j, k) > _MAX_BLOCKS or devices.platform() != "cpu" or _all_numpy((left, right)):
        return merge(left, right)[0, :, :, 0]
    if k <= j:
        # One block (i, j m) for each row digit a of the right core: rows (i, a) of the matrix.
        blocks = [left.reshape(i * j, q) @ right[:, a, :, 0] for a in range(k)]
        return jnp.stack([b.reshape(i, j * m) for b in blocks], 1).reshape(i * k, j * m)
    # One block (i k, m) for each column digit a of the left core: columns (a, m) of the matrix.
    blocks = [left[0, :, a] @ right.reshape(q, k * m) for a in range(j)]
    return jnp.stack([b.reshape(i * k, m) for b in blocks], 1).reshape(i * k, j * m)


def merge_run(cores, from_right: bool = False):
    """Merges a run of neighbouring cores into one, starting from its left or right end."""
    if from_right:
        merged = cores[-1]
        for core in reversed(cores[:-1]):
            merged = _apart(merge(core, merged))
        return merged
    merged = cores[0]
    for core in cores[1:]:
        merged = _apart(merge(merged, core))
    return merged


def three_groups(cores):
    """(L, C, R): the cores left of the centre merged, the central core, the cores right of it.

    A side without cores is left out. Each side is merged from its outer end, which stays small.
    """
    centre = (len(cores) - 1) // 2
    groups = [cores[centre]]
    if centre > 0:
        groups.insert(0, merge_run(cores[:centre]))
    if centre < len(cores) - 1:
        groups.append(merge_run(cores[centre + 1 :], from_right=True))
    return tuple(groups)


def two_groups(cores, cut: int):
    """(A, B): cores before `cut` merged, cores from `cut` on merged, each from its outer end."""
    return merge_run(cores[:cut]), merge_run(cores[cut:], from_right=True)


def group_shapes(shape: MPOShape) -> tuple[tuple[int, int, int, int], ...]:
    """Shapes (p, i, j, q) of the cores of `three_groups`."""
    cores, centre = shape.core_shapes, shape.central
    runs = [cores[:centre], cores[centre : centre + 1], cores[centre + 1 :]]
    return tuple(merged_shape(run) for run in runs if run)


def merged_shape(run) -> tuple[int, int, int, int]:
    """Shape of the core that a run of core shapes merges into."""
    return (
        run[0][0],
        math.prod(core[1] for core in run),
        math.prod(core[2] for core in run),
        run[-1][3],
    )


def left_first(groups) -> bool:
    """True if (L C) R costs at most as many multiply-adds as L (C R), given the group shapes."""
    if len(groups) < 3:
        return True
    (_, i, j, p), (_, k, m, q), (_, a, b, _) = groups
    # (L C) R: L p M q + L M q R multiply-adds; L (C R): p M q R + L p M R.
    left, middle, right = i * j, k * m, a * b
    return left * p * middle * q + left * middle * q * right <= (
        p * middle * q * right + left * p * middle * right
    )


def merge_steps(groups, from_right: bool = False) -> Iterator[tuple]:
    """Pairs of core shapes that `merge_run` merges, in its order: what each product multiplies."""
    groups = list(groups)
    while len(groups) > 1:
        at = len(groups) - 2 if from_right else 0
        pair = tuple(groups[at : at + 2])
        yield pair
        groups[at : at + 2] = [merged_shape(pair)]


def side_merge_steps(shape: MPOShape, cut: int | None = None) -> Iterator[tuple]:
    """Pairs merged on both sides of the centre, or of `cut`, each side from its outer end."""
    cores, centre = shape.core_shapes, shape.central
    first, last = (centre, centre + 1) if cut is None else (cut, cut)
    yield from merge_steps(cores[:first])
    yield from merge_steps(cores[last:], from_right=True)


def rebuild_steps(shape: MPOShape) -> Iterator[tuple]:
    """Pairs that `to_matrix` multiplies."""
    yield from side_merge_steps(shape)
    groups = group_shapes(shape)
    yield from merge_steps(groups, from_right=not left_first(groups))


def to_matrix(cores, shape: MPOShape | None = None):
    """Rebuilds the matrix (in_features, out_features) in the cheaper association order.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k).
      shape: when given, zero-padded rows and columns are sliced off; needed for a pivoted chain.
    """
    if shape is not None and shape.pivoted:
        return pivoted.to_matrix(cores)
    groups = three_groups(cores)
    if len(groups) == 3 and _is_on_tpu(groups):
        return unpadded(_columns_minor(groups), shape)
    from_right = not left_first([group.shape for group in groups])
    matrix = merge_run(groups, from_right)[0, :, :, 0]
    return unpadded(matrix, shape)


def _columns_minor(groups):
    """Merges (L, C, R) so that the columns of C R stay the minor axis of all that is large.

    Lanes of a TPU are 128 wide: an array whose minor axis has 4 entries takes 32 times its size.
    """
    left, central, right = groups
    (p, k, m, _), (_, a, b, _) = central.shape, right.shape
    # (C R)[p, (k a), (m b)] = sum_q C[p, k, m, q] R[q, a, b]
    columns = jnp.einsum("pkmq,qab->pkamb", central, right[..., 0])
    columns = _apart(columns.reshape(p, k * a, m * b))
    return _apart(_matrix_of(left[0], columns))


@jax.custom_vjp
def _matrix_of(left, columns):
    """W[(i x), (j c)] = sum_p L[i, j, p] (C R)[p, x, c]."""
    (i, j, p), (_, x, c) = left.shape, columns.shape
    # j is moved before i first: then the compiler writes the product in its final order.
    rows = left.transpose(1, 0, 2).reshape(j * i, p)
    w = jnp.einsum("rp,pxc->rxc", rows, columns).reshape(j, i, x, c)
    return w.transpose(1, 2, 0, 3).reshape(i * x, j * c)


def _matrix_of_forward(left, columns):
    return _matrix_of(left, columns), (left, columns)


def _matrix_of_backward(saved, dw):
    left, columns = saved
    (i, j, _), (_, x, c) = left.shape, columns.shape
    dw = dw.reshape(i, x, j, c)
    # With x in front the compiler takes it as a batch, and dW need not be transposed.
    dcolumns = jnp.einsum("ijp,ixjc->xpc", left, dw).transpose(1, 0, 2)
    # dL[i, j, p] = sum_{x c} dW[(i x), (j c)] (C R)[p, x, c]
    return jnp.einsum("ixjc,pxc->ijp", dw, columns), dcolumns


_matrix_of.defvjp(_matrix_of_forward, _matrix_of_backward)


def _apart(x):
    """The array, on TPU not fused with what uses it.

    Products with several digits are convolutions there; fused into one another three deep they
    overflow the compiler's stack (libtpu 0.0.42).
    """
    return jax.lax.optimization_barrier(x) if _is_on_tpu((x,)) else x


def _is_on_tpu(arrays) -> bool:
    return not _all_numpy(arrays) and devices.platform() == "tpu"


def to_matrix_forward(cores, shape: MPOShape | None = None):
    """`to_matrix` where nothing is differentiated: the last merge without a transpose."""
    if shape is not None and shape.pivoted:
        return pivoted.to_matrix(cores)
    groups = three_groups(cores)
    if len(groups) == 3 and _is_on_tpu(groups):
        return unpadded(_columns_minor(groups), shape)
    if len(groups) == 3:
        groups = (
            (merge(*groups[:2]), groups[2])
            if left_first([group.shape for group in groups])
            else (groups[0], merge(*groups[1:]))
        )
    matrix = merge_to_matrix(*groups) if len(groups) == 2 else groups[0][0, :, :, 0]
    return unpadded(matrix, shape)


def unpadded(matrix, shape: MPOShape | None):
    """Slices zero-padded rows and columns off; the matrix itself when `shape` is None."""
    if shape is None or not shape.is_padded:
        return matrix
    return matrix[: shape.in_features, : shape.out_features]


def chain_left_to_right(cores, x):
    """x (T, in) -> (T, out), one core after the other from the left; never forms the matrix."""
    tokens = x.shape[0]
    state = x.reshape(tokens, 1, 1, -1)  # (T, columns done, bond, rows to do)
    for core in cores:
        p, i, j, q = core.shape
        done, todo = state.shape[1], state.shape[3] // i
        # y[T, d, j, q, t] = sum_{p, i} x[T, d, p, i, t] core[p, i, j, q]
        state = state.reshape(tokens, done, p, i, todo)
        state = jnp.einsum("Tdpit,pijq->Tdjqt", state, core)
        state = state.reshape(tokens, done * j, q, todo)
    return state.reshape(tokens, -1)


def chain_right_to_left(cores, x):
    """As `chain_left_to_right`, starting with the last core."""
    tokens = x.shape[0]
    state = x.reshape(tokens, -1, 1, 1)  # (T, rows to do, bond, columns done)
    for core in reversed(cores):
        p, i, j, q = core.shape
        todo, done = state.shape[1] // i, state.shape[3]
        # y[T, t, p, j, d] = sum_{i, q} x[T, t, i, q, d] core[p, i, j, q]
        state = state.reshape(tokens, todo, i, q, done)
        state = jnp.einsum("Ttiqd,pijq->Ttpjd", state, core)
        state = state.reshape(tokens, todo, p, j * done)
    return state.reshape(tokens, -1)


def pack_two_groups(groups, left_to_right: bool):
    """Lays the two merged cores out so that one token needs no transpose in `apply_two_groups`."""
    first, second = groups[0][0], groups[1][..., 0]  # (i, j, q), (q, k, l)
    if left_to_right:
        return first.transpose(1, 2, 0), second
    return first.transpose(1, 0, 2), second.transpose(1, 0, 2)


def apply_two_groups(packed, x, left_to_right: bool):
    """x (T, in) -> (T, out) through two groups packed by `pack_two_groups`."""
    tokens = x.shape[0]
    first, second = packed
    if left_to_right:  # first (j, q, i), second (q, k, l)
        state = jax.lax.dot_general(
            first, x.reshape(tokens, first.shape[2], -1), (((2,), (1,)), ((), ()))
        )  # (j, q, T, k)
        # (T, j, q, k): q and k are summed next
        # With one token nothing moves: (j, q, 1, k) -> (1, j, q, k).
        state = state.transpose(2, 0, 1, 3)
        out = jax.lax.dot_general(state, second, (((2, 3), (0, 1)), ((), ())))
        return out.reshape(tokens, -1)
    # first (j, i, q), second (k, q, l)
    state = jax.lax.dot_general(
        x.reshape(tokens, first.shape[1], -1), second, (((2,), (0,)), ((), ()))
    )  # (T, i, q, l)
    out = jax.lax.dot_general(first, state, (((1, 2), (1, 2)), ((), ())))  # (j, T, l)
    return out.transpose(1, 0, 2).reshape(tokens, -1)


def _all_numpy(arrays) -> bool:
    return all(isinstance(array, np.ndarray) for array in arrays)
