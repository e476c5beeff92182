"""x @ W for W in MPO form, through the strategy of a plan.

Training goes through one custom derivative that keeps only x and the cores, whatever the bonds: the
backward pass rebuilds what it needs. Automatic differentiation of a chain would keep 30 to 1,000
times the input.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpojax.mpo import contract, planning
from mpojax.mpo.planning import Plan
from mpojax.mpo.shape import MPOShape, shape_from_cores


def apply(
    cores,
    x,
    shape: MPOShape | None = None,
    plan: Plan | str | None = None,
    training: bool = True,
):
    """Multiplies activations with a matrix in MPO form.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k).
      x: (..., in_features). Its dtype is that of the result; cores may be wider (float32 cores with
        bfloat16 activations): merging runs in the dtype of the cores, the merged cores are cast.
      shape: needed where the matrix is zero-padded; otherwise read off the cores.
      plan: a `Plan`, the name of a strategy, or None to choose by cost.
      training: choose by the cost of forward and backward rather than of forward alone.

    Returns:
      (..., out_features).

    Raises:
      ValueError: x is not floating or does not have in_features columns, or an unknown strategy.
    """
    cores = tuple(cores)
    shape = shape or shape_from_cores(cores)
    _check_features(x, shape)
    tokens = math.prod(x.shape[:-1])
    if tokens == 0:
        return jnp.zeros((*x.shape[:-1], shape.out_features), x.dtype)
    if not isinstance(plan, Plan):
        plan = planning.plan(shape, tokens=tokens, training=training, strategy=plan)
    y = _apply(plan.chosen.strategy, plan.chosen.variant, shape, cores, x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], shape.out_features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _apply(strategy, variant, shape, cores, x):
    if strategy == "rebuild":
        return x @ contract.to_matrix_forward(cores, shape).astype(x.dtype)
    return _run(strategy, variant, _merge_for(strategy, variant, cores, x.dtype), shape, x)


def _apply_forward(strategy, variant, shape, cores, x):
    return _apply(strategy, variant, shape, cores, x), (cores, x)


def _apply_backward(strategy, variant, shape, saved, dy):
    cores, x = saved
    if strategy == "rebuild":
        # The value comes from the faster merge, the pull-back from the one that transposes once.
        w = contract.to_matrix_forward(cores, shape).astype(x.dtype)
        dw = jnp.matmul(x.T, dy, preferred_element_type=cores[0].dtype)
        _, pull_back = jax.vjp(lambda cores: contract.to_matrix(cores, shape), cores)
        return *pull_back(dw), dy @ w.T
    _, pull_back = jax.vjp(
        lambda cores, x: _run(
            strategy, variant, _merge_for(strategy, variant, cores, x.dtype), shape, x
        ),
        cores,
        x,
    )
    return pull_back(dy)


_apply.defvjp(_apply_forward, _apply_backward)


class Prepared(NamedTuple):
    """Result of `prepare`: a pytree of arrays; pass it with its plan to `apply_prepared`."""

    arrays: tuple[jax.Array, ...]


def prepare(cores, plan: Plan, dtype=None) -> Prepared:
    """Merges once, for inference: the matrix, two or three groups, or the cores as they are.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k).
      plan: made with `training=False, prepared=True` so that merging is not counted.
      dtype: dtype of the merged arrays; default that of the cores.
    """
    strategy, variant = plan.chosen.strategy, plan.chosen.variant
    dtype = dtype or cores[0].dtype
    if strategy == "rebuild":
        return Prepared((contract.to_matrix_forward(tuple(cores), plan.shape).astype(dtype),))
    return Prepared(_merge_for(strategy, variant, tuple(cores), dtype))


def apply_prepared(prepared: Prepared, plan: Plan, x):
    """x (..., in_features) -> (..., out_features), with what `prepare` merged for this plan."""
    _check_features(x, plan.shape)
    if x.size == 0:
        return jnp.zeros((*x.shape[:-1], plan.shape.out_features), x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    if plan.strategy == "rebuild":
        y = rows @ prepared.arrays[0]
    else:
        y = _run(plan.strategy, plan.chosen.variant, prepared.arrays, plan.shape, rows)
    return y.reshape(*x.shape[:-1], plan.shape.out_features)


def _merge_for(strategy, variant, cores, dtype):
    """The arrays that `_run` contracts: merged in the dtype of the cores, then cast."""
    if strategy == "two_groups":
        cut, left_to_right = variant
        cores = contract.pack_two_groups(contract.two_groups(cores, cut), left_to_right)
    elif strategy == "three_groups":
        cores = contract.three_groups(cores)
    return tuple(core.astype(dtype) for core in cores)


def _run(strategy, variant, arrays, shape, x):
    missing = shape.padded_in_features - shape.in_features
    x = jnp.pad(x, ((0, 0), (0, missing))) if missing else x
    if strategy == "two_groups":
        y = contract.apply_two_groups(arrays, x, left_to_right=variant[1])
    else:
        left_to_right = variant[1] if variant else strategy == "chain_left_to_right"
        chain = contract.chain_left_to_right if left_to_right else contract.chain_right_to_left
        y = chain(arrays, x)
    return y[:, : shape.out_features]


def _check_features(x, shape):
    if x.shape[-1] != shape.in_features:
        raise ValueError(
            f"x has shape {x.shape}, but the matrix has {shape.in_features} rows: the last "
            "axis of x must be in_features."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; activations must be floating, cast them first.")
