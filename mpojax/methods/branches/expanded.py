"""A model whose matrices are weighted sums, its loss, and gradients that do the same."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, models
from mpojax.methods import opdf
from mpojax.training import objectives
from mpojax.training import state as state_lib
from mpojax.training.optimizer import Optimizer

FORMS = ("majority", "branches", "gradients", "search")
# Of the weights of kernels among all that is sampled from the key of a step.
_STREAM = 0x6B65726E  # "kern" in ASCII


@checks.settings("config.branches.")
class BranchSettings:
    """How matrices are expanded while they are trained.

    Attributes:
      form: "majority": kernels under random weights; "branches": under constant ones; "gradients":
        no branches, but the multiplied gradients by which a matrix learns as their sum does;
        "search": branches whose scales are trained, from `scales`, to be given to these two.
      kernels: of "majority", of every matrix.
      spread: of "majority": standard deviation of a kernel around its matrix at the start, relative
        to that of the matrix; the mean of all is the matrix.
      scales: a_b of every branch; the first is dense and starts as the matrix, all others at zero.
      groups: blocks on the diagonal that a branch is made of; 1: dense. As many as `scales`.
      matrices: regular expression over matrix paths; of every stack all layers or none.
    """

    form: str = checks.field(checks.one_of(*FORMS), "majority")
    kernels: int = checks.field(checks.integer(2), 3)
    spread: float = checks.field(checks.number(0), 0.0)
    scales: tuple[float, ...] = checks.field(checks.sequence(checks.number(above=0)), (1.0, 1.0))
    groups: tuple[int, ...] = checks.field(checks.sequence(checks.integer(1)), (1, 8))
    matrices: str = checks.field(checks.expression(), opdf.MATRICES)

    def __post_init__(self):
        if len(self.scales) != len(self.groups) or self.groups[:1] != (1,):
            raise ValueError(
                f"config.branches.groups={self.groups} must be as many as scales={self.scales}, "
                "the first 1: a dense branch, which starts as the matrix."
            )

    @property
    def count(self) -> int:
        """Summands of every matrix."""
        return self.kernels if self.form == "majority" else len(self.scales)

    def mask(self, branch: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """M_b (1, ..., in, out) for matrices (..., in, out); None where nothing is masked.

        Raises:
          ValueError: more groups than rows or columns.
        """
        groups = 1 if self.form == "majority" else self.groups[branch]
        if groups == 1:
            return None
        rows, columns = shape[-2:]
        limit = checks.integer(1, min(rows, columns))
        checks.check_value(f"config.branches.groups of {rows} x {columns}", groups, limit)
        # Group of each row and each column: M_b is 1 where they are equal.
        own = (np.arange(size) * groups // size for size in (rows, columns))
        mask = np.equal.outer(*own).astype(np.float32)
        return mask.reshape(*[1] * (len(shape) - 2), rows, columns)

    def weights(self, shape: tuple[int, ...], key: jax.Array | None) -> list[Any]:
        """a_b of all branches, for matrices (..., in, out); without a key those of the end.

        Of "majority" they are uniform on the simplex, sampled for each matrix of a stack.
        """
        if self.form != "majority":
            return list(self.scales)
        if key is None:
            return [1.0 / self.kernels] * self.kernels
        # Exponential variables over their sum are Dirichlet(1, ..., 1).
        sampled = jax.random.exponential(key, (self.kernels, *shape[:-2], 1, 1))
        return list(sampled / jnp.sum(sampled, axis=0, keepdims=True))


class Expanded(nnx.Module):
    """A dense model with further summands of some of its matrices; computes what `combined` does.

    Attributes:
      model: its chosen matrices are the first summands.
      extras: the others: for each a tree of variables like those of the model.
      scales: of "search": for each summand a tree of its scales, (..., 1, 1); else empty.
    """

    def __init__(
        self,
        model: models.Model,
        settings: BranchSettings,
        extras: list[Mapping],
        scales: list[Mapping] = (),
    ):
        self.model, self.settings = model, settings
        self.extras = nnx.List([_tree(extra) for extra in extras])
        self.scales = nnx.List([_tree(scale) for scale in scales])

    @property
    def config(self):
        return self.model.config

    @property
    def shapes(self):
        return self.model.shapes

    @property
    def found(self) -> list[float]:
        """Mean size of the scales of every summand over all matrices; empty unless "search"."""
        trees = [state_lib.flatten_variables(scale).values() for scale in self.scales]
        return [float(np.mean([np.mean(np.abs(v)) for v in tree])) for tree in trees]

    def __call__(self, *args, **more):
        return combined(self)(*args, **more)


def _tree(flat: Mapping[str, Any]) -> nnx.Dict:
    """Nested modules of parameters from {path joined by "/": array}."""

    def build(tree):
        is_leaf = not isinstance(tree, Mapping)
        return nnx.Param(tree) if is_leaf else nnx.Dict({k: build(v) for k, v in tree.items()})

    return build(state_lib.nest(flat))


def expand(model: models.Model, settings: BranchSettings, seed: int = 0) -> Expanded:
    """The model with expanded matrices; it computes the same.

    Raises:
      ValueError: see `checked`.
    """
    flat, rng = state_lib.flatten_variables(model), np.random.default_rng(seed)
    extras: list[dict[str, Any]] = [{} for _ in range(settings.count - 1)]
    firsts = {}
    for path in checked(model, settings):
        matrix = np.asarray(flat[path], np.float32)
        firsts[path], *others = _starts(matrix, settings, rng)
        for extra, other in zip(extras, others, strict=True):
            extra[path] = jnp.asarray(other)
    scales = []
    if settings.form == "search":
        shapes = {path: (*matrix.shape[:-2], 1, 1) for path, matrix in firsts.items()}
        scales = [{p: jnp.full(s, a) for p, s in shapes.items()} for a in settings.scales]
    return Expanded(_with_variables(model, firsts), settings, extras, scales)


def _starts(matrix: np.ndarray, settings: BranchSettings, rng) -> list[np.ndarray]:
    if settings.form != "majority":
        zeros = [np.zeros_like(matrix) for _ in settings.scales[1:]]
        # a_1 (W / a_1) + sum_b a_b 0 = W
        return [matrix / np.float32(settings.scales[0]), *zeros]
    noise = rng.standard_normal((settings.kernels, *matrix.shape), np.float32)
    # Centred over the kernels: their mean is the matrix.
    noise = settings.spread * matrix.std(axis=(-2, -1), keepdims=True) * (noise - noise.mean(0))
    return [np.float32(matrix + each) for each in noise]


def checked(model: models.Model, settings: BranchSettings) -> list[str]:
    """Paths of the variables whose matrices become sums.

    Raises:
      ValueError: see `chosen`; or a branch with more groups than rows or columns.
    """
    flat, paths = state_lib.flatten_variables(model), chosen(model, settings.matrices)
    for path in paths:
        _masks(settings, flat[path].shape)
    return paths


def chosen(model: models.Model, pattern: str) -> list[str]:
    """Paths of the variables that hold the dense matrices which a pattern names.

    Raises:
      ValueError: it names none, one in MPO form, or some of the layers of one stack.
    """
    found = []
    for path, _, layers in models.variables(model):
        names = [name for name, _ in models.logical_names(path, layers)]
        matched = [
            bool(re.fullmatch(pattern, name.removesuffix("/kernel"))) and name.endswith("/kernel")
            for name in names
        ]
        if any(matched) and not all(matched):
            raise ValueError(
                f"config.branches.matrices={pattern!r} names {names[matched.index(True)]} but not "
                f"{names[matched.index(False)]}, which is in the same stack: name all or none."
            )
        if all(matched):
            found.append(state_lib.join(path))
    if not found:
        raise ValueError(
            f"config.branches.matrices={pattern!r} matches no dense matrix; it must match a whole "
            f"path such as {model.config.adaptable()[0]}."
        )
    return found


def combined(expanded: Expanded, key: jax.Array | None = None) -> models.Model:
    """The plain model of summed matrices; without a key as it is left at the end. Works under jit.

    Args:
      key: of the weights of "majority".
    """
    settings = expanded.settings
    extras, scales = (
        [state_lib.flatten_variables(tree) for tree in trees]
        for trees in (expanded.extras, expanded.scales)
    )
    flat, sums = state_lib.flatten_variables(expanded.model), {}
    paths = list(extras[0]) if extras else chosen(expanded.model, settings.matrices)
    for number, path in enumerate(paths):
        own = None if key is None else jax.random.fold_in(key, number)
        parts = [flat[path], *(extra[path] for extra in extras)]
        learnt = [scale[path] for scale in scales]
        weights = learnt or settings.weights(flat[path].shape, own)
        # W = sum_b a_b M_b W_b
        sums[path] = sum(
            weight * part if mask is None else weight * (mask * part)
            for weight, part, mask in zip(
                weights, parts, _masks(settings, flat[path].shape), strict=True
            )
        )
    return _with_variables(expanded.model, sums)


def _masks(settings: BranchSettings, shape: tuple[int, ...]) -> list[np.ndarray | None]:
    return [settings.mask(branch, shape) for branch in range(settings.count)]


def _with_variables(model: models.Model, arrays: Mapping[str, Any]) -> models.Model:
    """The model with other arrays in the variables of these paths."""
    graph, state = nnx.split(model)
    flat = {
        path: variable.replace(jnp.asarray(arrays[joined])) if joined in arrays else variable
        for path, variable in nnx.to_flat_state(state)
        for joined in [state_lib.join(path)]
    }
    return nnx.merge(graph, nnx.from_flat_state(flat))


def expanded_loss(loss: objectives.LossFunction) -> objectives.LossFunction:
    """The loss of a plain model as one of `Expanded`, with random weights where there is a key."""

    def value(expanded: Expanded, batch: dict, key: jax.Array | None):
        own = None if key is None else jax.random.fold_in(key, _STREAM)
        return loss(combined(expanded, own), batch, key)

    return value


def multiplier(settings: BranchSettings, shape: tuple[int, ...], power: int = 2) -> np.ndarray:
    """sum_b a_b^power M_b (1, ..., in, out), or () where no branch is masked.

    >>> settings = BranchSettings(form="gradients", scales=(1.0, 2.0), groups=(1, 2))
    >>> multiplier(settings, (2, 2)).tolist()
    [[5.0, 1.0], [1.0, 5.0]]
    """
    masks = _masks(settings, shape)
    pairs = zip(settings.scales, masks, strict=True)
    return np.float32(sum(a**power * (1.0 if mask is None else mask) for a, mask in pairs))


def multiplied(
    optimizer: Optimizer, settings: BranchSettings, paths: list[str], power: int = 2
) -> Optimizer:
    """The optimizer by which these matrices learn as their branches would.

    With W = sum_b a_b M_b W_b the gradient of branch b is a_b M_b dL/dW. SGD moves W along dL/dW
    times the multiplier of power 2 (proposition 1 of Ding et al.). Adam's steps do not depend on
    a_b: it moves W by its own step times the multiplier of power 1, without weight decay.

    Args:
      power: 2: gradients are multiplied, before anything else; 1: steps are.
    """

    def scaled(path, leaf):
        return leaf * multiplier(settings, leaf.shape, power) if path in paths else leaf

    def update(gradients, state, params=None):
        if power == 2:
            return optimizer.update(state_lib.map_with_path(scaled, gradients), state, params)
        changes, state = optimizer.update(gradients, state, params)
        return state_lib.map_with_path(scaled, changes), state

    return optimizer._replace(update=update)
