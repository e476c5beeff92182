"""Groups of a super-set of adapters, and what the loss would lose without each.

After Lawton et al. 2023. Removing theta_i changes the loss to first order by -theta_i dL/dtheta_i;
a group's score is the sum over its entries. Functions of {array path: array}, one array for each
layer, whatever stacks a model keeps.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("module", "entries", "chain")
CRITERIA = (
    *("taylor", "taylor_signed", "taylor_batch_abs", "fisher", "magnitude", "random", "hybrid"),
)
BALANCES = ("unit_mean", "factor_mean", "none")

Scores = dict[str, tuple[Any, ...]]  # {unit: one array for each group axis, see `Groups`}


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of one unit of a super-set: of one bias vector, or one adapter of a matrix.

    | kind    | a group is                                     | scores, masks                     |
    | module  | the whole unit                                 | one array ()                      |
    | entries | an entry                                       | for each array one of its shape   |
    | chain   | an index of a bond: a slice of both its cores  | for each inner bond one (d_k,)    |

    Attributes:
      kind: see above.
      arrays: paths of its arrays; of a chain its cores in order, (d_{k-1}, i_k, j_k, d_k), or the
        two factors (in, rank), (rank, out) of low rank, which is the chain of two cores.
    """

    kind: str
    arrays: tuple[str, ...]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if self.kind == "chain" and len(self.arrays) < 2:
            raise ValueError(f"a chain of {len(self.arrays)} core has no bond to prune.")


Spec = Mapping[str, Groups]


def score_groups(
    params: Mapping[str, jax.Array],
    grads: Mapping[str, jax.Array],
    spec: Spec,
    reference: Mapping[str, jax.Array] | None = None,
) -> Scores:
    """First-order change of the loss if each group went: -(theta - reference) . dL/dtheta.

    Of a bond one side is summed, its left core: both sides give the same number, the part of W
    through the index times dL/dW. Exact for a loss that is linear in W. Works under jit; products
    and sums in float32 or wider.

    Args:
      params, grads: of the units' arrays, by path; more are ignored.
      spec: {unit: groups}.
      reference: what an entry goes back to; zero where absent.

    Returns:
      {unit: tuple of arrays}, see `Groups`; positive where the loss would rise.
    """
    return {
        unit: _sums(groups, _changes(groups, params, grads, reference))
        for unit, groups in (spec.items())
    }


def _changes(groups: Groups, params, grads, reference) -> list[jax.Array]:
    changes = []
    for name in groups.arrays:
        value, slope = _wide(params[name]), _wide(grads[name])
        if reference is not None and name in reference:
            value = value - jnp.asarray(reference[name], value.dtype)
        changes.append(-value * slope)
    return changes


def _sums(groups: Groups, entries: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    if groups.kind == "entries":
        return tuple(entries)
    if groups.kind == "module":
        return (sum(jnp.sum(array) for array in entries),)
    return tuple(jnp.sum(core, axis=tuple(range(core.ndim - 1))) for core in entries[:-1])


def _wide(x) -> jax.Array:
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def open_bonds(cores: Sequence[jax.Array], grads: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """S_k[a, b] = sum of T_k[..., a] * dL/dT_k[..., b] of every inner bond: (d_k, d_k) each.

    Its diagonal holds the scores (but for their sign); under an orthogonal change Q of the bond's
    basis it becomes Q^T S_k Q.
    """
    return tuple(
        jnp.tensordot(core, grad, axes=(tuple(range(core.ndim - 1)),) * 2)
        for core, grad in zip(cores[:-1], grads[:-1], strict=True)
    )


def batch_scores(
    params: Mapping[str, jax.Array],
    grads: Mapping[str, jax.Array],
    spec: Spec,
    criterion: str,
    reference: Mapping[str, jax.Array] | None = None,
) -> Scores:
    """Part of a criterion's scores from one batch; sums over batches go to `final_scores`.

    "taylor" and "taylor_signed" sum signed changes, "taylor_batch_abs" their sizes, "fisher" the
    squares of the entries' changes, "hybrid" changes, and squares for its second order.

    Raises:
      ValueError: a criterion that reads no gradients, or an unknown one.
    """
    if criterion in ("taylor", "taylor_signed"):
        return score_groups(params, grads, spec, reference)
    if criterion == "taylor_batch_abs":
        return jax.tree.map(jnp.abs, score_groups(params, grads, spec, reference))
    if criterion == "fisher":
        return {
            unit: _sums(groups, [jnp.square(c) for c in _changes(groups, params, grads, reference)])
            for unit, groups in spec.items()
        }
    if criterion == "hybrid":
        signed = score_groups(params, grads, spec, reference)
        # h * |piece|^2 of a component, h from the Fisher information: the square of its change. Of
        # a batch's mean change, which near a minimum is smaller by the batch's size.
        return jax.tree.map(lambda s: s + 0.5 * jnp.square(s), signed)
    raise ValueError(f"criterion={criterion!r} reads no gradients, or is none of {CRITERIA}.")


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
      spec: {unit: groups}.
      params: of the units' arrays: what "magnitude" reads, and the shapes of all.
      total: sum of `batch_scores`; not for "magnitude" and "random".
      reference: as for `score_groups`.
      rng: of "random".
    """
    if criterion == "random":
        return {unit: _drawn(groups, params, rng) for unit, groups in spec.items()}
    if criterion == "magnitude":
        found = {}
        for unit, groups in spec.items():
            entries = [_distance(params, reference, name) for name in groups.arrays]
            found[unit] = _norms(groups, entries)
        return found
    sign = 1.0 if criterion == "taylor_signed" else None
    return {
        unit: tuple(
            np.asarray(s, np.float64) if sign else np.abs(np.asarray(s, np.float64)) for s in arrays
        )
        for unit, arrays in total.items()
    }


def _norms(groups: Groups, entries: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Sizes of entries; norms of vectors, and of what passes through each index of a bond.

    The latter by the two cores next to the bond: exact for low ranks, and in a gauge in which the
    others are orthogonal.
    """
    if groups.kind == "entries":
        return tuple(np.abs(e) for e in entries)
    if groups.kind == "module":
        return (np.sqrt(sum(np.sum(np.square(e)) for e in entries)),)
    left = [np.linalg.norm(e.reshape(-1, e.shape[-1]), axis=0) for e in entries[:-1]]
    right = [np.linalg.norm(e.reshape(len(e), -1), axis=1) for e in entries[1:]]
    return tuple(one * other for one, other in zip(left, right, strict=True))


def _distance(params, reference, name) -> np.ndarray:
    value = np.asarray(params[name], np.float64)
    return value if reference is None or name not in reference else value - reference[name]


def _drawn(groups: Groups, params, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    shapes = [np.shape(params[name]) for name in groups.arrays]
    if groups.kind == "module":
        shapes = [()]
    elif groups.kind == "chain":
        shapes = [shape[-1:] for shape in shapes[:-1]]
    return tuple(np.asarray(rng.random(shape)) for shape in shapes)


def normalise(
    scores: Mapping[str, Sequence[np.ndarray]],
    masks: Mapping[str, Sequence[np.ndarray]],
    spec: Spec,
    balance: str = "unit_mean",
) -> dict[str, tuple[np.ndarray, ...]]:
    """Unstructured scores, one for each entry, balanced between the arrays of their unit.

    Scores of other kinds stay. Both factors of a low rank have the same sum of scores (Euler), so
    that the entries of the smaller factor have the larger ones, whatever they are worth.
    "factor_mean" divides by the mean over what is left of the array: every factor then has the mean
    1, whatever its unit does to the loss, and a bias, which is no factor, has not. "unit_mean"
    multiplies by the unit's mean again: units, and biases, stay comparable.

    Raises:
      ValueError: a balance that is none of `BALANCES`.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r} must be one of {', '.join(BALANCES)}.")
    found = {}
    for unit, groups in spec.items():
        arrays = tuple(np.asarray(s, np.float64) for s in scores[unit])
        if groups.kind == "entries" and balance != "none" and len(arrays) > 1:
            sizes = [np.abs(s[m]) for s, m in zip(arrays, masks[unit], strict=True)]
            means = [float(size.mean()) if size.size else 0.0 for size in sizes]
            whole = float(np.concatenate(sizes).mean()) if any(s.size for s in sizes) else 0.0
            factor = whole if balance == "unit_mean" else 1.0
            arrays = tuple(
                s / mean * factor if mean else s for s, mean in zip(arrays, means, strict=True)
            )
        found[unit] = arrays
    return found
