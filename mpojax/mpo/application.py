"""x @ W for W in MPO form, through the strategy of a plan.

Training goes through one custom derivative that keeps only x and the cores, whatever the bonds: the
backward pass rebuilds what it needs. Automatic differentiation of a chain would keep 30 to 1,000
times the input.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mpojax import devices
from mpojax.mpo import contract, pivoted, planning
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
      shape: needed where the matrix is zero-padded or the chain pivoted; otherwise read off the
        cores.
      plan: a `Plan`, the name of a strategy, or None to choose by cost.
      training: choose by the cost of forward and backward rather than of forward alone.

    Returns:
      (..., out_features).

    Raises:
      ValueError: x is not floating or does not have in_features columns, or an unknown strategy.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from mpojax import mpo
      >>> w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
      >>> cores = mpo.decompose(w, mpo.MPOShape.balanced(64, 64))
      >>> x = jnp.ones((2, 64))
      >>> bool(jnp.allclose(mpo.apply(cores, x), x @ w, atol=1e-3))
      True
    """
    cores = tuple(cores)
    shape = shape or shape_from_cores(cores)
    _check_features(x, shape)
    tokens = math.prod(x.shape[:-1])
    # A plan is for at least one token.
    if tokens == 0:
        return jnp.zeros((*x.shape[:-1], shape.out_features), x.dtype)
    if not isinstance(plan, Plan):
        dtypes = {"dtype": x.dtype.name, "core_dtype": cores[0].dtype.name}
        plan = planning.plan(shape, tokens=tokens, training=training, strategy=plan, **dtypes)
    # Strategy, variant and shape are static: each combination is a program of its own.
    chosen = plan.strategy, plan.chosen.variant, shape, cores
    # (x A) B keeps x and x A for the backward pass: automatic differentiation is as lean. The order
    # of a pivoted chain's columns has no derivative.
    if shape.pivoted or plan.strategy in planning.MATMULS:
        return _differentiable(*chosen, x)
    y = _apply(*chosen, x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], shape.out_features)


def _differentiable(strategy, variant, shape, cores, x):
    merged = _merged(strategy, variant, cores, shape, x.dtype)
    return apply_merged(strategy, variant, merged, shape, x)


_apply = jax.custom_vjp(_differentiable, nondiff_argnums=(0, 1, 2))


def _apply_forward(strategy, variant, shape, cores, x):
    return _apply(strategy, variant, shape, cores, x), (cores, x)


def _apply_backward(strategy, variant, shape, saved, dy):
    cores, x = saved
    if strategy == "rebuild":
        # dW = x^T dy, dx = dy W^T. Products on TPUs round what they read to 16 bits: a wider dW
        # would only be moved.
        on_tpu = devices.platform() == "tpu"
        dtype = x.dtype if on_tpu else cores[0].dtype
        w, pull_back = jax.vjp(lambda cores: contract.to_matrix(cores, shape).astype(dtype), cores)
        # Elsewhere the value comes from the faster merge, the pull-back from the one that
        # transposes once.
        w = w if on_tpu else contract.to_matrix_forward(cores, shape).astype(x.dtype)
        dw = jnp.matmul(x.T, dy, preferred_element_type=dtype)
        return *pull_back(dw), dy @ w.T

    # Merges and contracts once more, from the saved x and cores; only that is differentiated.
    forward = functools.partial(_differentiable, strategy, variant, shape)
    return jax.vjp(forward, cores, x)[1](dy)


_apply.defvjp(_apply_forward, _apply_backward)


def prepare(cores, plan: Plan, dtype=None) -> tuple[jax.Array, ...]:
    """Merges once, for inference: the matrix, two or three groups, or the cores as they are.

    The arrays go, with the plan, to `apply_prepared`.

    Args:
      cores: n arrays (d_{k-1}, i_k, j_k, d_k).
      plan: made with `training=False, prepared=True` so that merging is not counted.
      dtype: dtype of the merged arrays; default that of the cores.
    """
    dtype = dtype or cores[0].dtype
    return _merged(plan.strategy, plan.chosen.variant, tuple(cores), plan.shape, dtype)


def apply_prepared(prepared: tuple[jax.Array, ...], plan: Plan, x):
    """x (..., in_features) -> (..., out_features), with what `prepare` merged for this plan."""
    _check_features(x, plan.shape)
    if x.size == 0:
        return jnp.zeros((*x.shape[:-1], plan.shape.out_features), x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    y = apply_merged(plan.strategy, plan.chosen.variant, prepared, plan.shape, rows)
    return y.reshape(*x.shape[:-1], plan.shape.out_features)


def _merged(strategy, variant, cores, shape, dtype):
    """The arrays that `apply_merged` contracts: merged in the dtype of the cores, then cast."""
    if strategy == "rebuild":
        cores = (contract.to_matrix_forward(cores, shape),)
    elif strategy == "two_groups":
        cut, left_to_right = variant
        cores = contract.pack_two_groups(contract.two_groups(cores, cut), left_to_right)
    elif strategy == "three_groups":
        cores = contract.three_groups(cores)
    elif strategy == "pivoted":
        *cores, order = cores
        # The order of the columns stays an array of integers.
        return *(core.astype(dtype) for core in cores), order
    return tuple(core.astype(dtype) for core in cores)


def apply_merged(strategy: str, variant: tuple, arrays, shape: MPOShape, x):
    """x (T, in_features) -> (T, out_features) through what a strategy has merged."""
    if strategy == "rebuild":
        return x @ arrays[0]
    if strategy == "low_rank":
        return pivoted.product(pivoted.product(x, arrays[0][0, :, 0]), arrays[1][:, 0, :, 0])
    if strategy == "pivoted":
        return pivoted.apply(arrays, x)
    missing = shape.padded_in_features - shape.in_features
    # Zeros meet the padded rows of W: nothing is added to y.
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
