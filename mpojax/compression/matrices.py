"""The matrices of a model by path, and the model with others in their place.

A model of this library gives them through its settings and its flat dict of arrays; any other Flax
NNX module by its layers: `nnx.Linear`, `nnx.LinearGeneral` (the projections of attention),
`nnx.Embed`, and the dense and MPO layers of `mpojax.nn`. All verbs of this package work on either.
"""

import abc
import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from flax import nnx

from mpojax import devices, models, mpo, nn
from mpojax.compression import layers
from mpojax.compression.rules import named_patterns
from mpojax.models import arrays as arrays_lib
from mpojax.models import evaluation

Dense = Mapping[str, np.ndarray]
NONE: Dense = MappingProxyType({})
Chains = Mapping[str, tuple[mpo.MPOShape, Sequence[np.ndarray]]]
_OF_EXPERTS = (
    "it is a map of experts, which methods compress: compress(model, method='experts', budget=..., "
    "calibration=batches)"
)
# Arrays of a batch that say which inputs count.
MASKS = ("attention_mask", "example_mask")


class Matrices(abc.ABC):
    """The matrices of one model.

    Attributes:
      model: as it was given, never changed; of a stored one with shapes in the place of arrays.
      stored: a model of this library, taken apart.
      sizes: {path: (in_features, out_features)} of all matrices that may become chains.
      shapes: {path: shape} of those in MPO form.
      named: {name: patterns} that a rule may use instead of a pattern.
      refused: {path: reason} of layers that no chain can stand for.
      tables: paths whose rows are looked up.
      shares_parts: layers share parts of their matrices.
      expert_sizes: {path: (in_features, out_features)} of maps whose experts have a dense matrix
        each, (experts, in, out) together.
    """

    model: nnx.Module
    stored: models.StoredModel | None = None
    sizes: dict[str, tuple[int, int]]
    shapes: dict[str, mpo.MPOShape]
    named: dict[str, tuple[str, ...]]
    refused: dict[str, str]
    tables: Collection[str] = models.config.TABLES
    expert_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({})
    shares_parts: bool = False

    @abc.abstractmethod
    def weights(self, path: str) -> np.ndarray:
        """A dense matrix (in_features, out_features), of the type that the model holds it in."""

    @abc.abstractmethod
    def with_chains(
        self, chains: Chains, dense: Dense = NONE, groups: tuple[int, ...] | None = None
    ) -> nnx.Module:
        """A new model with these chains in place of dense matrices, and other dense ones.

        What stands for a matrix in 16 bits is in bfloat16, everything else in float32.
        `groups`: numbers of neighbouring layers that share the central cores of these chains.
        """

    def of_paths(self, paths: Sequence[str]) -> Mapping[str, np.ndarray]:
        """`weights` by path, each made when it is asked for."""
        return _Weights(self, paths)

    def whole(self) -> nnx.Module:
        """The model, with all of its arrays in memory."""
        return self.model

    @abc.abstractmethod
    def observed(self) -> dict[tuple, list[tuple[str, int | None]]]:
        """{location of a dense layer: [(matrix path, index on its leading axis or None)]}."""

    @abc.abstractmethod
    def inputs(self, batch: Any, where: str) -> tuple[dict, tuple[np.ndarray, ...]]:
        """(arrays by name, weights of the inputs that count: 1, else 0), checked.

        Weights are (B, S), one array for each kind of ids, or (B,).
        """

    @staticmethod
    @abc.abstractmethod
    def call(model: nnx.Module, batch: Mapping) -> jax.Array:
        """Any output that depends on all layers, as a function of a batch of `inputs`."""

    @abc.abstractmethod
    def _num_dense_in_chains(self) -> int:
        """Parameters of the dense matrices that the chains of the model stand for."""

    @property
    def all_sizes(self) -> dict[str, tuple[int, int]]:
        """`sizes` and `expert_sizes`."""
        return {**self.sizes, **self.expert_sizes}

    def num_matrices(self, path: str) -> int:
        """Dense matrices that a path stands for, of experts less one that all share in parallel."""
        return 1

    @property
    def num_parameters(self) -> int:
        """Parameters in the model as it is."""
        return sum(models.count_parameters(self.model).values())

    @property
    def num_dense_parameters(self) -> int:
        """Parameters in the model with every matrix dense."""
        counts = models.count_parameters(self.model)
        in_chains = counts["central"] + counts["auxiliary"]
        return sum(counts.values()) - in_chains + self._num_dense_in_chains()


class _Weights(Mapping):
    def __init__(self, matrices: Matrices, paths: Sequence[str]):
        self.matrices, self.paths = matrices, paths

    def __getitem__(self, path: str) -> np.ndarray:
        return self.matrices.weights(path)

    def __iter__(self):
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


# BLAS with one thread: on factorisations of these sizes more gain little on an idle machine, and on
# a busy one lose tenfold, as they wait for each other. For the whole process, while it runs.
one_blas_thread = threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")

T = TypeVar("T")
R = TypeVar("R")
_MOST_THREADS = 4  # each holds float64 copies of a large matrix


def num_threads() -> int:
    """As many as there are cores, up to 4."""
    return min(devices.num_cores(), _MOST_THREADS)


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`function` of each item, in order, in `num_threads` threads.

    For factorisations: numpy's run outside the interpreter's lock; those of scipy hold it.
    """
    with futures.ThreadPoolExecutor(num_threads()) as pool:
        yield from pool.map(function, items)


def fingerprint(w) -> str:
    """Short hash of a matrix."""
    return hashlib.blake2b(np.ascontiguousarray(w, np.float32), digest_size=8).hexdigest()


def stored_type(w) -> np.dtype:
    """Of what stands for a matrix: bfloat16 for one in 16 bits, else float32.

    Cores of a matrix in float16 could leave the range of that.
    """
    return np.dtype(jnp.bfloat16 if np.dtype(w.dtype).itemsize == 2 else np.float32)


def matrices_of(model: nnx.Module | models.StoredModel) -> Matrices:
    """The matrices of a model of this library, or of any Flax NNX module.

    Raises:
      TypeError: neither of them.
    """
    if isinstance(model, models.Model | models.StoredModel):
        return _ModelMatrices(model)
    layers.check_module(model)
    return _ModuleMatrices(model)


class _ModelMatrices(Matrices):
    """Of a model of this library: its layers are stacked, its matrices have logical paths."""

    def __init__(self, model: models.Model | models.StoredModel):
        self.stored = models.StoredModel.of(model)
        self.model = self.stored.abstract if model is self.stored else model
        self.shapes, self.refused = self.stored.shapes, {}
        self.shares_parts = model.config.shares_parts
        self.arrays = self.stored.arrays
        self.sizes = model.config.matrix_sizes()
        if model.config.experts:
            # Theirs are many matrices under one path, which only some methods know.
            experts_of = model.config.experts_of
            theirs = {p: size for p, size in self.sizes.items() if experts_of(p.rpartition("/")[0])}
            self.sizes = {p: size for p, size in self.sizes.items() if p not in theirs}
            self.expert_sizes = {p: size for p, size in theirs.items() if p not in self.shapes}
            self.refused = dict.fromkeys(theirs, _OF_EXPERTS)
        self.named = named_patterns(self.sizes)

    def weights(self, path: str) -> np.ndarray:
        return np.asarray(self.arrays[models.dense_name(path)])

    def with_chains(
        self, chains: Chains, dense: Dense = NONE, groups: tuple[int, ...] | None = None
    ) -> models.Model:
        arrays, shapes, config = dict(self.arrays), dict(self.shapes), self.model.config
        if groups is not None:
            config = dataclasses.replace(config, layer_groups=groups, shared_roles=("central",))
        arrays |= {models.dense_name(path): self._stored(path, w) for path, w in dense.items()}
        experts = {path for path in chains if path in self.expert_sizes}
        if experts:
            config = config.with_experts(_settings_of_experts(config, experts, chains, dense))
        for path, (shape, cores) in chains.items():
            is_first = groups is None or _is_first(config, path)
            # The central core that a group shares is stored under its first layer alone.
            arrays |= {
                f"{path}/cores/{k}": self._stored(path, core)
                for k, core in enumerate(cores)
                if is_first or k != shape.central
            }
            if path not in dense:  # a matrix that experts share parallel to their chains
                del arrays[models.dense_name(path)]
            shapes[path] = shape
        return models.from_arrays(config, shapes, arrays, release=True, keep_16_bits=True)

    def _stored(self, path: str, array) -> np.ndarray:
        """An array that stands for a matrix, in the type that is for it; integers as they are."""
        dtype = stored_type(self.arrays[models.dense_name(path)])
        is_final = array.dtype == dtype or np.issubdtype(array.dtype, np.integer)
        return array if is_final else array.astype(dtype)

    def whole(self) -> models.Model:
        return self.stored.load() if self.model is self.stored.abstract else self.model

    def observed(self) -> dict[tuple, list[tuple[str, int | None]]]:
        found, sizes = {}, self.model.config.matrix_sizes()
        for path, _, layer_range in models.variables(self.model):
            layer = nn.submodule(self.model, path[:-1])
            if path[-1] in ("kernel", "table") and layers.is_dense(layer):
                names = arrays_lib.logical_names(path[:-1], layer_range)
                # Not rows of distances, which are read whole.
                found |= {path[:-1]: names} if names[0][0] in sizes else {}
        return found

    def inputs(self, batch: Any, where: str) -> tuple[dict, tuple[np.ndarray, ...]]:
        batch = {name: array for name, array in batch.items() if array is not None}
        masks = {"input_ids": ("attention_mask",)}
        if "decoder_input_ids" in self.model.batch_inputs:
            masks["decoder_input_ids"] = ("decoder_attention_mask", "target_weights")
        # One (B, S) for each kind of ids: sources, and targets where the model has a decoder.
        weights = [_real_tokens(batch, ids, names, where) for ids, names in masks.items()]
        for ids, real in zip(masks, weights, strict=True):
            evaluation.check_vocabulary(self.model, np.asarray(batch[ids])[real], where)
        if len(weights) == 2 and weights[0].shape == weights[1].shape:
            # Sources are told from targets by their lengths: a column of padding changes nothing.
            mask = batch.get("attention_mask", np.ones(weights[0].shape, np.int32))
            batch |= {"input_ids": _padded(batch["input_ids"]), "attention_mask": _padded(mask)}
            weights[0] = _padded(weights[0])
        return batch, tuple(weights)

    @staticmethod
    def call(model: nnx.Module, batch: Mapping) -> jax.Array:
        return model(*(batch.get(name) for name in model.batch_inputs))

    def _num_dense_in_chains(self) -> int:
        return sum(
            self.num_matrices(path) * shape.num_dense_params for path, shape in self.shapes.items()
        )

    def num_matrices(self, path: str) -> int:
        block, _, name = path.rpartition("/")
        experts = self.model.config.experts_of(block)
        return 1 if experts is None else experts.number - (name in experts.shared_base)


def _settings_of_experts(config: models.Config, paths, chains: Chains, dense: Dense) -> dict:
    """{block: settings of its experts} where the maps of these paths become chains."""
    found: dict[str, nn.ExpertSettings] = {}
    for path in sorted(paths):
        block, _, name = path.rpartition("/")
        shape, cores = chains[path]
        settings = found.get(block) or config.experts_of(block)
        found[block] = settings.with_map(name, cores[shape.central].ndim == 4, path in dense)
    return found


def _is_first(config: models.Config, path: str) -> bool:
    """True if what a block of layers shares is stored under the layer of a matrix."""
    layer = int(path.split("/")[1])
    return layer == config.block_of(layer).start


def _real_tokens(batch: Mapping, ids: str, masks: Sequence[str], where: str) -> np.ndarray:
    """Booleans (B, S): tokens that count, by the first of these masks that the batch has."""
    if ids not in batch:
        raise ValueError(
            f"{where} has no {ids!r}, only {sorted(batch)}; batches are mappings of token arrays "
            "(B, S)."
        )
    shape = np.shape(batch[ids])
    weights = np.asarray(next((batch[m] for m in masks if m in batch), np.ones(shape))) != 0
    if "example_mask" in batch:
        weights = weights & np.asarray(batch["example_mask"], bool)[:, None]
    if len(shape) != 2 or weights.shape != shape or not weights.any():
        raise ValueError(
            f"{where} has {ids} {shape} and a mask {weights.shape} with {weights.sum()} real "
            "tokens; both must be (B, S) with at least one real token."
        )
    return weights


def _padded(array) -> np.ndarray:
    return np.pad(np.asarray(array), ((0, 0), (0, 1)))


class _ModuleMatrices(Matrices):
    """Of any Flax NNX module, by the paths of its layers, such as "blocks/0/attention/query"."""

    def __init__(self, module: nnx.Module):
        self.model = module
        self.found = layers.locations(module)
        own = {path: entry.layer for path, entry in self.found.items()}
        reasons = {path: layers.refusal(layer) for path, layer in own.items()}
        self.refused = {path: why for path, why in reasons.items() if why is not None}
        own = {path: layer for path, layer in own.items() if path not in self.refused}
        self.refused |= {
            other: f"it is held twice; its path is {path}"
            for other, path in layers.aliases(module).items()
            if path in own
        }
        chains = {path: layers.chain_of(layer) for path, layer in own.items()}
        self.sizes = {path: layers.size(layer) for path, layer in own.items()}
        self.shapes = {path: chain.shape for path, chain in chains.items() if chain is not None}
        self.tables = {path for path, layer in own.items() if layers.is_table(layer)}
        maps = (path for path in own if path not in self.tables)
        self.named = {"layers": tuple(map(re.escape, maps))}
        self.named["all"] = self.named["default"] = tuple(map(re.escape, self.sizes))

    def weights(self, path: str) -> np.ndarray:
        return np.asarray(layers.matrix(self.found[path].layer), np.float32)

    def with_chains(self, chains: Chains, dense: Dense = NONE, groups: None = None) -> nnx.Module:
        entries = {path: self.found[path] for path in dense}
        new = {
            e.location: layers.with_matrix(e.layer, np.asarray(dense[path]))
            for path, e in entries.items()
        }
        for path, (shape, cores) in chains.items():
            entry = self.found[path]
            new[entry.location] = layers.to_chain(entry.layer, shape, cores)
        return layers.exchanged(self.model, new)

    def observed(self) -> dict[tuple, list[tuple[str, int | None]]]:
        dense = (path for path in self.sizes if path not in self.shapes)
        return {self.found[path].location: [(path, None)] for path in dense}

    def inputs(self, batch: Any, where: str) -> tuple[dict, tuple[np.ndarray, ...]]:
        names = _argument_names(self.model)
        if not isinstance(batch, Mapping):
            batch = batch if isinstance(batch, tuple | list) else (batch,)
            batch = dict(zip(names, batch, strict=False)) if len(batch) <= len(names) else {}
        batch = {name: array for name, array in batch.items() if array is not None}
        if not set(batch) & set(names):
            raise ValueError(
                f"{where} holds no input: {type(self.model).__name__} takes {', '.join(names)}; "
                "give an array, a tuple of them in this order, or a mapping by these names."
            )
        return batch, tuple(np.asarray(batch[name]) != 0 for name in MASKS if name in batch)

    @staticmethod
    def call(model: nnx.Module, batch: Mapping) -> jax.Array:
        given = {name: batch[name] for name in _argument_names(model) if name in batch}
        variadic = _variadic_name(model)
        positional = [given.pop(variadic)] if variadic in given else []
        outputs = model(*positional, **given)
        floating = (o for o in jax.tree.leaves(outputs) if jnp.issubdtype(o.dtype, jnp.floating))
        return jnp.concatenate([o.astype(jnp.float32).reshape(-1) for o in floating])

    def _num_dense_in_chains(self) -> int:
        return sum(math.prod(self.sizes[path]) for path in self.shapes)


def _argument_names(module: nnx.Module) -> list[str]:
    parameters = inspect.signature(module.__call__).parameters
    return [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]


def _variadic_name(module: nnx.Module) -> str | None:
    """Name of the *args that a module takes, as `nnx.Sequential` does."""
    parameters = inspect.signature(module.__call__).parameters
    return next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
