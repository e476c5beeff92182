"""The training state: one pytree that holds everything a run needs to continue.

The position in the data is the step itself, because batches are a pure function of (seed, step).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mpojax import nn

_PARTS = ("trainable", "frozen", "optimizer")  # of a state, the trees of arrays
Filter = Any  # an NNX filter: a variable type, `...`, a predicate (path, variable) or nnx.Any(...)


class ModelDefinition:
    """Static part of a model: how to put its arrays back. Hashable, compared by content."""

    def __init__(self, graph: nnx.GraphDef, trainable: tuple, frozen: tuple):
        self._parts = (graph, trainable, frozen)
        self._hash = hash(self._parts)  # jax hashes it at every call

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other) -> bool:
        if self is other:
            return True
        return isinstance(other, ModelDefinition) and self._parts == other._parts

    def merge(self, trainable: Mapping, frozen: Mapping) -> nnx.Module:
        graph, trainable_paths, frozen_paths = self._parts
        return nnx.merge(
            graph, _with_paths(trainable, trainable_paths), _with_paths(frozen, frozen_paths)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of one run.

    Attributes:
      step: int32 scalar, the number of finished steps.
      trainable: nested dict of float arrays; joined by `/` its keys are the parameter paths.
      frozen: the same for everything that is not trained; has no optimizer state.
      optimizer: optax state of `trainable`.
      key: uint32 data of the run's random key; the key of a step is folded from it.
      definition: static; puts the arrays back into the module.
    """

    step: jax.Array
    trainable: dict
    frozen: dict
    optimizer: Any
    key: jax.Array
    definition: ModelDefinition = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        model: nnx.Module,
        trainable: Filter,
        optimizer: optax.GradientTransformation,
        *,
        seed: int = 0,
    ) -> "TrainState":
        """Splits a model into what is trained and what is frozen.

        The arrays are copied: training donates its buffers, and `model` stays usable.

        Raises:
          ValueError: the filter matches nothing, or something that has no gradient.
        """
        definition, trained, frozen = split(model, trainable)
        # Not jnp.copy, which compiles a program for every shape.
        trained, frozen = jax.device_put((trained, frozen), may_alias=False)
        return cls(
            step=jnp.zeros((), jnp.int32),
            trainable=trained,
            frozen=frozen,
            optimizer=optimizer.init(trained),
            key=jax.random.key_data(jax.random.key(seed)),
            definition=definition,
        )

    def __repr__(self) -> str:
        """A line, without the arrays; `print(state.model())` says more."""
        parts = ", ".join(f"{name} {_size(getattr(self, name))}" for name in _PARTS)
        return f"TrainState(step {self.step}: {parts})"

    def model(self) -> nnx.Module:
        """The module with the state's arrays (shared, not copied)."""
        return self.definition.merge(self.trainable, self.frozen)

    def step_key(self) -> jax.Array:
        """Random key of the next step: a pure function of (seed, step)."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)

    def with_model(
        self,
        model: nnx.Module,
        trainable: Filter,
        optimizer: optax.GradientTransformation,
        optimizer_state: Any = None,
    ) -> "TrainState":
        """The same run with another model, e.g. with cut bonds: step and key are kept.

        Args:
          optimizer_state: mapped by the caller; None starts the optimizer afresh, the learning
            rate's schedule (warm-up included) too.
        """
        fresh = TrainState.create(model, trainable, optimizer)
        if optimizer_state is None:
            optimizer_state = fresh.optimizer
        return dataclasses.replace(fresh, step=self.step, key=self.key, optimizer=optimizer_state)

    def arrays(self, unsaved: Collection[str] = ()) -> dict:
        """The state as nested dicts of arrays alone: what a checkpoint holds.

        Args:
          unsaved: parts of the model (first names of paths) whose frozen arrays are left out.
        """
        return {
            "step": self.step,
            "key": self.key,
            "trainable": self.trainable,
            "frozen": {name: part for name, part in self.frozen.items() if name not in unsaved},
            "optimizer": nest(flatten(self.optimizer)),
        }

    def with_arrays(self, arrays: Mapping) -> "TrainState":
        """Inverse of `arrays`, for a state of the same structure; what was left out stays."""
        leaves = flatten(arrays["optimizer"])
        names = flatten(self.optimizer)
        treedef = jax.tree.structure(self.optimizer)
        # In the order of the state's own leaves; the dicts of a checkpoint are sorted by name.
        optimizer = jax.tree.unflatten(treedef, [leaves[name] for name in names])
        rest = {name: arrays[name] for name in ("step", "key", "trainable")}
        frozen = {**self.frozen, **arrays["frozen"]}
        return dataclasses.replace(self, optimizer=optimizer, frozen=frozen, **rest)


def _size(tree: Any) -> str:
    arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, "shape")]
    num_bytes = sum(x.size * x.dtype.itemsize for x in arrays)
    return f"{sum(x.size for x in arrays):,} ({len(arrays)} arrays, {num_bytes / 1e6:,.1f} MB)"


def split(model: nnx.Module, trainable: Filter) -> tuple[ModelDefinition, dict, dict]:
    """(definition, trained arrays, frozen arrays) of a model by an NNX filter.

    Shared variables appear once. Variables that are not parameters (counters, statistics) are
    frozen.
    """
    accept = nnx.filterlib.to_predicate(trainable)
    graph, trained, frozen = nnx.split(model, lambda path, value: accept(path, value), ...)
    trained_paths = tuple(path for path, _ in nnx.to_flat_state(trained))
    frozen_paths = tuple(path for path, _ in nnx.to_flat_state(frozen))
    if not trained_paths:
        raise ValueError(
            f"the trainable filter {trainable!r} matches no variable of {type(model).__name__}; "
            f"its variables have the roles {sorted(set(roles(model).values()))}"
        )
    trained, frozen = _nested(trained), _nested(frozen)
    for path, leaf in flatten(trained).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"cannot train {path}: its dtype is {leaf.dtype}; narrow the filter")
    for path, leaf in flatten(frozen).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"{path} is a random key inside the model; use the loss function's key instead"
            )
    return ModelDefinition(graph, trained_paths, frozen_paths), trained, frozen


def roles(model: nnx.Module) -> dict[str, str]:
    """{parameter path: role} ("central", "auxiliary", "adapter", "other"); shared ones once."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {join(path): nn.role_of(leaf) for path, leaf in flat}


def flatten_variables(model: nnx.Module) -> dict[str, Any]:
    """{parameter path: array} of a model, arrays or abstract; shared ones once."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {join(path): jax.tree.leaves(variable)[0] for path, variable in flat}


def layer_axes(path: str) -> int:
    """Number of leading axes of a parameter that count layers, or blocks of layers: 0 or 1.

    A model keeps its layers in `stacks/<k>/...`, each parameter with such an axis in front.
    """
    return 1 if re.fullmatch(r"(.*/)?stacks/\d+/.+", path) else 0


def stack_axes(path: str) -> int:
    """Number of leading axes that count layers, blocks of layers, or experts: 0, 1 or 2.

    What each expert of a feed-forward block owns is in `experts/...`, with an axis of experts after
    that of layers. Each slice along these axes is a parameter of its own.
    """
    return layer_axes(path) + (re.fullmatch(r"(.*/)?experts/.+", path) is not None)


def owner(path: str, parameters: Mapping[str, Any]) -> str | None:
    """The parameter whose path ends an optimizer leaf's path; the longest such."""
    while path not in parameters:
        if "/" not in path:
            return None
        path = path.split("/", 1)[1]
    return path


def join(path: Iterable) -> str:
    """A path tuple as text: ('layers', 0, 'kernel') -> 'layers/0/kernel'."""
    return "/".join(str(part) for part in path)


def flatten(tree: Any) -> dict[str, Any]:
    """{path joined by `/`: leaf} of any pytree, in the order of its leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def map_with_path(function: Callable, tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the path, joined by `/`, before the leaves."""
    others = [jax.tree.structure(tree).flatten_up_to(other) for other in rest]
    leaves = [
        function(path, *group)
        for (path, *group) in zip(flatten(tree), jax.tree.leaves(tree), *others, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def nest(flat: Mapping[str, Any]) -> dict:
    """Nested dicts from {path joined by `/`: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def _nested(state: nnx.State) -> dict:
    """Nested dicts with text keys: list places become '0', '1', ..."""
    return nest({join(path): _array(leaf) for path, leaf in nnx.to_flat_state(state)})


def _array(leaf: Any) -> jax.Array:
    return leaf[...] if isinstance(leaf, nnx.Variable) else leaf


def _with_paths(nested: Mapping, paths: tuple) -> dict:
    """Inverse of `_nested`: keys as NNX wrote them (list places are integers)."""
    flat = flatten(nested)
    tree: dict = {}
    for path in paths:
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = flat[join(path)]
    return tree
