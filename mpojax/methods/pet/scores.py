"""Scores of groups of parameters: the change of the loss without each.

Removing theta_i changes the loss to first order by -theta_i dL/dtheta_i; a group's score is the
sum over its entries. Functions of {array path: array}, one array for each layer, whatever stacks a
model keeps.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mpojax.methods.pet.groups import Masks, Scores, Spec, Unit

CRITERIA = ("taylor", "hybrid", "magnitude", "random")
BALANCES = ("unit_mean", "factor_mean", "none")


def score_groups(
    params: Mapping[str, jax.Array],
    grads: Mapping[str, jax.Array],
    spec: Spec,
    reference: Mapping[str, jax.Array] | None = None,
) -> Scores:
    """First-order change of the loss if each group went: -(theta - reference) . dL/dtheta.

    Exact for a loss that is linear in the matrix of a chain. Works under jit; products and sums in
    float32 or wider.

    Args:
      params, grads: of the units' arrays, by path; more are ignored.
      spec: {name: unit}.
      reference: what an entry goes back to; zero where absent.

    Returns:
      {unit: arrays}, positive where the loss would rise.
    """
    return {
        name: unit.sums(_changes(unit, params, grads, reference)) for name, unit in spec.items()
    }


def _changes(unit: Unit, params, grads, reference) -> list[jax.Array]:
    changes = []
    for name in unit.arrays:
        value, slope = _wide(params[name]), _wide(grads[name])
        if reference is not None and name in reference:
            value = value - jnp.asarray(reference[name], value.dtype)
        # -(theta - theta_ref) dL/dtheta, entry by entry; the unit adds up what its groups own.
        changes.append(-value * slope)
    return changes


def _wide(x) -> jax.Array:
    x = jnp.asarray(x)
    # Signed terms that cancel: 16 bits would leave little of their sum.
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def batch_scores(
    params: Mapping[str, jax.Array],
    grads: Mapping[str, jax.Array],
    spec: Spec,
    criterion: str,
    reference: Mapping[str, jax.Array] | None = None,
) -> Scores:
    """Part of a criterion's scores from one batch; sums over batches go to `final_scores`.

    "taylor" sums the signed changes s, "hybrid" s + 1/2 s^2: of a component that is not small,
    h |piece|^2 with h from the Fisher information is the square of its change. That of a batch's
    mean is smaller than the mean of squares near a minimum, by the batch's size.

    Raises:
      ValueError: a criterion that reads no gradients, or an unknown one.
    """
    if criterion not in ("taylor", "hybrid"):
        raise ValueError(f"criterion={criterion!r} reads no gradients, or is none of {CRITERIA}.")
    signed = score_groups(params, grads, spec, reference)
    if criterion == "taylor":
        return signed
    # s = <g, d> with d = -theta, and d^T F d of one batch is s^2 (empirical Fisher F = g g^T).
    return jax.tree.map(lambda s: s + 0.5 * jnp.square(s), signed)


def final_scores(
    criterion: str,
    spec: Spec,
    params: Mapping[str, np.ndarray],
    total: Scores | None = None,
    *,
    reference: Mapping[str, np.ndarray] | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, tuple[np.ndarray, ...]]:
    """Scores by which groups are ranked, float64; the smallest go first.

    Args:
      criterion: of `CRITERIA`.
      spec: {name: unit}.
      params: of the units' arrays: what "magnitude" reads, and the shapes of all.
      total: sum of `batch_scores`; not for "magnitude" and "random".
      reference: as for `score_groups`.
      rng: of the random baseline, "random".
    """
    if criterion == "random":
        sizes = {name: np.shape(value) for name, value in params.items()}
        return {
            name: tuple(np.asarray(rng.random(shape)) for shape in unit.mask_shapes(sizes))
            for name, unit in spec.items()
        }
    if criterion == "magnitude":
        return {
            name: unit.norms([_distance(params, reference, array) for array in unit.arrays])
            for name, unit in spec.items()
        }
    return {
        # A rise and a fall of the loss are both effects of the group: only the size counts.
        name: tuple(np.abs(np.asarray(s, np.float64)) for s in arrays)
        for name, arrays in total.items()
    }


def _distance(params, reference, name) -> np.ndarray:
    value = np.asarray(params[name], np.float64)
    return value if reference is None or name not in reference else value - reference[name]


def normalise(
    scores: Mapping[str, Sequence[np.ndarray]],
    masks: Masks,
    spec: Spec,
    balance: str = "unit_mean",
) -> dict[str, tuple[np.ndarray, ...]]:
    """Unstructured scores, one for each entry, balanced between the arrays of their unit.

    Scores of other kinds stay. Both factors of a low rank have the same sum of scores (Euler), so
    that the entries of the smaller factor have the larger ones, whatever they are worth.
    "factor_mean" divides by the mean over what is left of the array: every factor then has the mean
    1, whatever its unit does to the loss, and a bias, which is no factor, has not. "unit_mean"
    multiplies by the unit's mean again: units, and biases, stay comparable.
    """
    return {
        name: unit.balanced([np.asarray(s, np.float64) for s in scores[name]], masks[name], balance)
        for name, unit in spec.items()
    }
