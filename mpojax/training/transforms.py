"""Gradient transformations that know how layers are stored.

Parameters of stacked layers are one array with a leading layer axis, those of experts with an axis
of experts after it. To LAMB and Muon each slice is a parameter of its own: a stacked model is
updated exactly as separate layers and experts would be.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mpojax import mpo
from mpojax.training import state as state_lib


class StartState(NamedTuple):
    """The values from which parameters started, where they decay towards them."""

    start: dict


def decays(rate: float, without: Sequence[str], to_start: Sequence[str]) -> list:
    """Weight decay towards zero, or towards the start value, as parts of an optax chain.

    Args:
      rate: what is added to the update is rate * (parameter - its goal).
      without: patterns of paths (re.fullmatch) that do not decay.
      to_start: patterns of paths whose goal is the value at the start of the run: cores near the
        identity, say, which zero would pull the whole chain away from.
    """

    def matches(patterns, path):
        return any(re.fullmatch(pattern, path) for pattern in patterns)

    def mask(params):
        others = (*without, *to_start)
        return state_lib.map_with_path(lambda path, _: not matches(others, path), params)

    parts = [optax.add_decayed_weights(rate, mask=mask)]
    if not to_start:
        return parts

    def init(params):
        flat = state_lib.flatten(params)
        chosen = [p for p in flat if matches(to_start, p) and not matches(without, p)]
        # Copies: a step gives the buffers of the parameters away.
        return StartState(state_lib.nest({p: jnp.array(flat[p], copy=True) for p in chosen}))

    def update(updates, state, params=None):
        start = state_lib.flatten(state.start)

        def decayed(path, update, parameter):
            if path not in start:
                return update
            # u + rate (p - p_0)
            return update + jnp.asarray(rate, update.dtype) * (parameter - start[path])

        return state_lib.map_with_path(decayed, updates, params), state

    return [*parts, optax.GradientTransformation(init, update)]


def scale_by_adam(beta1: float, beta2: float, epsilon: float, bias_correction: bool = True):
    """`optax.scale_by_adam`, also without the bias correction of the first steps.

    The state is `optax.ScaleByAdamState` in both cases.
    """
    adam = optax.scale_by_adam(beta1, beta2, epsilon)
    if bias_correction:
        return adam

    def update(updates, state, params=None):
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, beta2, 2)
        # m / (sqrt(v) + eps), without the 1 / (1 - beta^t) of both.
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        count = optax.safe_increment(state.count)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(adam.init, update)


def scale_by_adafactor(clip: float = 1.0, least: float = 1e-3) -> list:
    """Adafactor without momentum, as parts of an optax chain; one RMS for each stacked slice.

        v = average of g^2 + 1e-30 with decay 1 - t^-0.8;  u = g / sqrt(v)
        update = max(least, RMS(parameter)) u / max(1, RMS(u) / clip)

    Of matrices whose sides have 128 and more entries only the sums of v over rows and columns are
    kept.

    Shazeer, Stern, "Adafactor: adaptive learning rates with sublinear memory cost" (2018,
    arXiv:1804.04235), algorithm 4.
    """

    def rms(path, leaf):
        # norm / sqrt(entries of a slice); leaf.size / norm.size of them
        norm = slice_norm(path, leaf)
        return norm * math.sqrt(norm.size / leaf.size)

    def scale(path, update, parameter):
        update = update / jnp.maximum(1.0, rms(path, update) / clip)
        return update * jnp.maximum(least, rms(path, parameter))

    scaled = optax.stateless(
        lambda updates, params: state_lib.map_with_path(scale, updates, params)
    )
    return [optax.scale_by_factored_rms(decay_rate=0.8, epsilon=1e-30), scaled]


def scale_by_trust_ratio(
    bounds: tuple[float, float] | None = None, excluded: Sequence[str] = ()
) -> optax.GradientTransformation:
    """LAMB's ratio |parameter| / |update| (You et al., ICLR 2020), one for each stacked slice.

    Where either norm is zero, the ratio is 1.

    Args:
      bounds: least and largest ratio.
      excluded: patterns of paths (re.fullmatch) that keep a ratio of 1.
    """

    def scale(path, update, parameter):
        if any(re.fullmatch(pattern, path) for pattern in excluded):
            return update
        own, change = slice_norm(path, parameter), slice_norm(path, update)
        # A parameter that starts at zero would never move by a ratio of zero.
        is_zero = (own == 0.0) | (change == 0.0)
        # The divisor is made 1 where it is 0, or its gradient and NaN checks would see inf.
        ratio = own / jnp.where(is_zero, jnp.ones_like(change), change)
        if bounds is not None:
            ratio = jnp.clip(ratio, *bounds)
        return update * jnp.where(is_zero, jnp.ones_like(ratio), ratio)

    return optax.stateless(lambda updates, params: state_lib.map_with_path(scale, updates, params))


def slice_norm(path: str, leaf: jax.Array) -> jax.Array:
    """Euclidean norm of each slice, see `stack_axes`; the other axes are kept with size 1."""
    axes = tuple(range(state_lib.stack_axes(path), leaf.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True))


def scale_by_muon(
    roles: Mapping[str, str],
    *,
    muon_roles: Sequence[str],
    excluded: Sequence[str],
    momentum: float,
    rms: float,
    adam: optax.GradientTransformation,
    chains: Mapping[str, mpo.MPOShape] | None = None,
) -> optax.GradientTransformation:
    """Muon (Jordan, 2024) on matrices, layer by layer; `adam` on everything else.

    The momentum of a matrix (in, out) is orthogonalised. A core (d, i, j, d'), where its role is
    chosen, counts as the matrix (d i, j d'); a central core in `chains`, whose momentum then has
    that shape, as the matrix that it is between identity cores.

    Args:
      roles: {parameter path: role}.
      muon_roles: roles whose matrices are orthogonalised.
      excluded: patterns of paths (re.fullmatch) that are left to Adam.
      momentum: of the gradients, Nesterov's.
      rms: root mean square of the update's entries, as if all singular values were 1; 0.2 is that
        of Adam (Liu et al., 2025), so that both share one learning rate.
      chains: {path of a central core: shape of its chain}.
    """
    chains = {p: s for p, s in (chains or {}).items() if mpo.is_matrix_between_identities(s)}

    def seen_through(view, tree):
        return state_lib.map_with_path(
            lambda path, x: view(x, chains[path]) if _is_array(x, path, chains) else x, tree
        )

    as_matrices = functools.partial(seen_through, mpo.central_to_matrix)
    as_cores = functools.partial(seen_through, mpo.matrix_to_central)

    def is_matrix(path, leaf) -> bool:
        return (
            roles.get(path) in muon_roles
            and leaf.ndim - state_lib.stack_axes(path) in (2, 4)
            and not any(re.fullmatch(pattern, path) for pattern in excluded)
        )

    def labels(params):
        made = state_lib.map_with_path(
            lambda path, leaf: "muon" if is_matrix(path, leaf) else "adam", params
        )
        if "muon" not in jax.tree.leaves(made):
            raise ValueError(
                f"muon finds no matrix to orthogonalise among the trained parameters: muon_roles="
                f"{tuple(muon_roles)}, muon_excluded={tuple(excluded)}; change them, or use adamw"
            )
        return made

    def by_shape(path, update):
        # All singular values 1: the entries have rms 1 / sqrt(max(rows, columns)).
        reduction, output = _matrix_axes(path, update)
        largest = max(math.prod(update.shape[a] for a in axes) for axes in (reduction, output))
        return update * jnp.asarray(rms * math.sqrt(largest), update.dtype)

    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum,
            weight_dimension_numbers=lambda updates: state_lib.map_with_path(
                lambda path, u: optax.contrib.MuonDimensionNumbers(*_matrix_axes(path, u)), updates
            ),
        ),
        optax.stateless(lambda updates, params: state_lib.map_with_path(by_shape, updates)),
    )

    def update(updates, state, params=None):
        made, state = muon.update(
            as_matrices(updates), state, None if params is None else as_matrices(params)
        )
        return as_cores(made), state

    through = optax.GradientTransformation(lambda params: muon.init(as_matrices(params)), update)
    return optax.partition({"muon": through, "adam": adam}, labels)


def _is_array(leaf: Any, path: str, chains: Mapping) -> bool:
    """True if it is a central core to be seen as a matrix; optax masks leaves of other labels."""
    return path in chains and hasattr(leaf, "ndim")


def _matrix_axes(path: str, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes that are rows, and axes that are columns, of a stacked matrix or core."""
    axes = tuple(range(state_lib.stack_axes(path), leaf.ndim))
    half = len(axes) // 2
    return axes[:half], axes[half:]
