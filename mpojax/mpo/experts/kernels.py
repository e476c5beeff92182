"""The matrices of many experts that share one central core (MPOE).

"Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (COLING 2022),
section 3.1: every expert e owns its auxiliary cores, all share the central core C. With the cores
left and right of C merged,

    W_e = L_e C R_e,

so that rebuilding all experts is one matrix product with C and one batched product, and tokens of
all experts go through C in one matrix product.

Cores of experts: n arrays, the auxiliary ones stacked (experts, d_{k-1}, i_k, j_k, d_k), the
central one shared (d_{c-1}, i_c, j_c, d_c) or stacked like the others.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mpojax import checks, devices
from mpojax.mpo import contract
from mpojax.mpo.shape import MPOShape

ORDERS = ("right_first", "left_first")


def expert_matrices(cores, shape: MPOShape, keep: bool = False):
    """Rebuilds the matrices of all experts.

    Its derivative keeps the cores alone and merges them again; the intermediate L C, as large as
    all matrices together, is not saved.

    Args:
      cores: cores of experts, see above.
      shape: of one expert's matrix; zero-padded rows and columns are sliced off.
      keep: save the intermediates for the backward pass instead.

    Returns:
      (experts, in_features, out_features).

    Raises:
      ValueError: cores that do not fit the shape, or a shape of one core.
    """
    cores = tuple(cores)
    _check(cores, shape)
    return _merged(grouped(cores, shape), shape) if keep else _matrices(cores, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _matrices(cores, shape):
    return _product(cores, shape)


def _matrices_forward(cores, shape):
    return _matrices(cores, shape), cores


def _matrices_backward(shape, cores, dw):
    # Merges once more: the cores are small, L C is as large as all matrices.
    _, pull_back = jax.vjp(lambda cores: _product(cores, shape), cores)
    return pull_back(dw)


_matrices.defvjp(_matrices_forward, _matrices_backward)


def _product(cores, shape):
    """All matrices: at once, or on CPU one after the other, whose intermediates fit its caches."""
    if devices.platform() != "cpu":
        return _merged(grouped(cores, shape), shape)
    own, shared = own_groups(cores, shape)
    of_expert = jax.checkpoint(lambda own: group_matrix(own, shared, shape))  # L C is not saved
    return jax.lax.map(of_expert, own)


def own_groups(cores, shape: MPOShape):
    """((L, C, R), C): what experts own, stacked, and what they share; None where there is none."""
    left, central, right = grouped(cores, shape)
    if central.ndim == 4:
        return (left, None, right), central
    return (left, central, right), None


def group_matrix(own, shared, shape: MPOShape):
    """The matrix of one expert, of its entries of `own_groups`."""
    left, central, right = (None if group is None else group[None] for group in own)
    return _merged((left, shared if central is None else central, right), shape)[0]


def _merged(groups, shape):
    left, central, right = groups
    i, k, a, j, m, b = group_factors(shape)
    p, q = central.shape[-4], central.shape[-1]
    n = (right if left is None else left).shape[0]
    if right is None or (left is not None and left_product_first(shape)):
        # (n, i j, p) @ (p, k m q), one product for all experts; then (n, i j k m, q) @ (n, q, a b)
        w = left.reshape(n, i * j, p) if left is not None else central[None]
        w = _with_shared(w, central.reshape(*central.shape[:-4], p, k * m * q))
        if right is not None:
            w = w.reshape(n, i * j * k * m, q) @ right.reshape(n, q, a * b)
        # Digits in the order of the cores -> row digits (i k a), then column digits (j m b).
        w = w.reshape(n, i, j, k, m, a, b).transpose(0, 1, 3, 5, 2, 4, 6)
    else:
        # C R first, by its transpose: (n, a b, q) @ (q, p k m), then (n, a b k m, p) @ (n, p, i j)
        w = right.reshape(n, q, a * b).swapaxes(1, 2)
        c = jnp.moveaxis(central, -1, -4)  # (q, p, k, m)
        w = _with_shared(w, c.reshape(*c.shape[:-4], q, p * k * m))  # (n, a b, p k m)
        if left is not None:
            w = w.reshape(n, a * b, p, k * m).swapaxes(2, 3).reshape(n, a * b * k * m, p)
            w = w @ left.reshape(n, i * j, p).swapaxes(1, 2)
        # The same from the right, where the digits stand in reverse.
        w = w.reshape(n, a, b, k, m, i, j).transpose(0, 5, 3, 1, 6, 4, 2)
    w = w.reshape(n, i * k * a, j * m * b)
    return w[:, : shape.in_features, : shape.out_features] if shape.is_padded else w


def _with_shared(stacked, central):
    """(n, rows, inner) @ (inner, columns) or (n, inner, columns)."""
    if central.ndim == 3:
        return stacked @ central
    n, rows, inner = stacked.shape
    # One large product: n small ones with the same right operand would not fill the unit.
    return (stacked.reshape(n * rows, inner) @ central).reshape(n, rows, -1)


def apply_shared_core(cores, shape: MPOShape, rows, matmul, order: str = "right_first"):
    """Multiplies tokens with the matrices of their experts without rebuilding any.

    The two small groups are products for each expert; a shared central core is one matrix product
    for the tokens of all experts.

    Args:
      cores: cores of experts. They may be wider than `rows`: merging runs in their dtype.
      shape: of one expert's matrix.
      rows: (R, in_features), each row a token on its way to one expert.
      matmul: (rows (R, g, inner), weights (experts, inner, outer)) -> (R, g, outer), which knows
        the expert of each row.
      order: one of `ORDERS`: R, C, L, or L, C, R.

    Returns:
      (R, out_features).

    Raises:
      ValueError: an unknown order, or see `expert_matrices`.
    """
    checks.check_value("order", order, checks.one_of(*ORDERS))
    cores = tuple(cores)
    _check(cores, shape)
    # Zeros meet the padded rows of the matrix: nothing is added to y.
    missing = shape.padded_in_features - shape.in_features
    x = jnp.pad(rows, ((0, 0), (0, missing))) if missing else rows
    groups = tuple(g if g is None else g.astype(rows.dtype) for g in grouped(cores, shape))
    run = _right_first if order == "right_first" else _left_first
    return run(groups, group_factors(shape), x, matmul)[:, : shape.out_features]


def _right_first(groups, factors, x, matmul):
    (left, central, right), (i, k, a, j, m, b) = groups, factors
    p, q = central.shape[-4], central.shape[-1]
    r = x.shape[0]
    if right is not None:
        # sum over a of x[a] R[q, a, b]: the last row digit leaves, the last column digit enters.
        x = matmul(
            x.reshape(r, i * k, a), right.transpose(0, 2, 3, 1).reshape(-1, a, b * q)
        )  # (r, i k, b q)
    # (r, i b, k q) @ (k q, m p): C takes the middle digit and the bond q, and leaves p.
    x = x.reshape(r, i, k, b, q).transpose(0, 1, 3, 2, 4).reshape(r, i * b, k * q)
    c = _permuted(central, (1, 3, 2, 0)).reshape(*central.shape[:-4], k * q, m * p)
    x = _through(x, c, matmul).reshape(r, i, b, m, p)
    if left is not None:
        # (r, b m, i p) @ (i p, j): the first row digit and p leave, all column digits are there.
        x = x.transpose(0, 2, 3, 1, 4).reshape(r, b * m, i * p)
        x = matmul(x, left.transpose(0, 1, 3, 2).reshape(-1, i * p, j))
    # Column digits came last to first.
    return x.reshape(r, b, m, j).transpose(0, 3, 2, 1).reshape(r, j * m * b)


def _left_first(groups, factors, x, matmul):
    (left, central, right), (i, k, a, j, m, b) = groups, factors
    p, q = central.shape[-4], central.shape[-1]
    r = x.shape[0]
    x = x.reshape(r, i, k * a).swapaxes(1, 2)  # (r, k a, i)
    if left is not None:
        # (r, k a, i) @ (i, j p): from the left the first digit is exchanged first.
        x = matmul(x, left.reshape(-1, i, j * p))
    x = x.reshape(r, k, a, j, p).transpose(0, 2, 3, 1, 4).reshape(r, a * j, k * p)
    # (r, a j, k p) @ (k p, m q)
    c = _permuted(central, (1, 0, 2, 3)).reshape(*central.shape[:-4], k * p, m * q)
    x = _through(x, c, matmul).reshape(r, a, j, m, q)
    if right is not None:
        # (r, j m, a q) @ (a q, b)
        x = x.transpose(0, 2, 3, 1, 4).reshape(r, j * m, a * q)
        x = matmul(x, right.transpose(0, 2, 1, 3).reshape(-1, a * q, b))
    return x.reshape(r, j * m * b)


def _through(x, central, matmul):
    """Rows (R, g, inner) through the central core: one product, or one for each expert."""
    if central.ndim == 3:
        return matmul(x, central)
    return (x.reshape(-1, x.shape[-1]) @ central).reshape(*x.shape[:-1], -1)


def _permuted(core, axes):
    first = core.ndim - 4
    return core.transpose(*range(first), *(first + axis for axis in axes))


def grouped(cores, shape: MPOShape):
    """(L (experts, i, j, p), C, R (experts, q, a, b)); a side without cores is None."""
    centre = shape.central
    left = right = None
    if centre > 0:
        left = jax.vmap(contract.merge_run)(cores[:centre])[:, 0]
    if centre < shape.num_cores - 1:
        right = jax.vmap(functools.partial(contract.merge_run, from_right=True))(
            cores[centre + 1 :]
        )[..., 0]
    return left, cores[centre], right


def group_factors(shape: MPOShape) -> tuple[int, ...]:
    """(i, k, a, j, m, b): row factors of L, C, R, then column factors of L, C, R."""
    c = shape.central
    return tuple(
        math.prod(part)
        for factors in (shape.in_factors, shape.out_factors)
        for part in (factors[:c], factors[c : c + 1], factors[c + 1 :])
    )


def left_product_first(shape: MPOShape) -> bool:
    """True if (L C) R costs at most as many multiply-adds as L (C R)."""
    return contract.left_first(contract.group_shapes(shape))


def _check(cores, shape):
    if shape.num_cores < 2:
        raise ValueError(
            f"an expert's matrix needs at least two cores, got the factor lists {shape.in_factors} "
            f"x {shape.out_factors}: with one core there is nothing that experts own."
        )
    expected = shape.core_shapes
    fits = len(cores) == len(expected) and all(
        tuple(core.shape[-4:]) == core_shape
        and (core.ndim == 5 or (core.ndim == 4 and k == shape.central))
        for k, (core, core_shape) in enumerate(zip(cores, expected, strict=True))
    )
    if not fits or len({core.shape[0] for core in cores if core.ndim == 5}) != 1:
        raise ValueError(
            f"cores have shapes {[tuple(core.shape) for core in cores]}; experts need auxiliary "
            f"cores (experts, *shape) and a central one with or without that axis, of the shapes "
            f"{list(expected)} with index {shape.central} central."
        )
