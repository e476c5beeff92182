"""Parameters taken over from a trained encoder: chains, copied or fitted, and all the rest."""

from collections.abc import Iterator, Mapping

import numpy as np
from absl import logging

from mpojax import models, mpo
from mpojax.methods.mpobert import fit as mpobert_fit

# What a teacher must have in common with the model.
_TEACHER_FIELDS = (
    *("vocab_size", "hidden_size", "embedding_size", "num_heads", "intermediate_size"),
    *("max_positions", "token_types", "activation", "norm", "norm_eps", "projection"),
    *("trigram_input", "bottleneck_size", "bottleneck_attention", "num_feed_forwards"),
)


Chains = Iterator[tuple[str, tuple[np.ndarray, ...]]]  # (matrix path, cores)


def check_teacher(teacher: models.Model, config: models.EncoderConfig) -> None:
    """Raises ValueError for a teacher that a model of these settings cannot continue."""
    if teacher.shapes or teacher.config.adapters:
        what = f"{len(teacher.shapes)} matrices in MPO form" if teacher.shapes else "adapters"
        raise ValueError(f"the teacher has {what}; merge it before: compression.merge(teacher).")
    if teacher.config.shares_parts:
        raise ValueError("the teacher's layers share a part of their parameters; merge it before.")
    both_pool = teacher.config.pooling == config.pooling == "pooler"
    problems = [
        f"{name}: {getattr(teacher.config, name)!r} in the teacher, {getattr(config, name)!r} here"
        for name in (*_TEACHER_FIELDS, *(["pooler_activation"] if both_pool else []))
        if getattr(teacher.config, name) != getattr(config, name)
    ]
    if problems:
        raise ValueError("the teacher does not fit the model:\n  " + "\n  ".join(problems))


def check_central(central: str | int, teacher: models.EncoderConfig) -> None:
    """Raises ValueError for what is neither "mean" nor the number of a layer of the teacher."""
    layers = range(teacher.num_layers)
    is_layer = isinstance(central, int) and not isinstance(central, bool) and central in layers
    if central != "mean" and not is_layer:
        raise ValueError(
            f"central={central!r} must be 'mean', or the number of one of the teacher's layers, 0.."
            f"{layers[-1]}."
        )


def copies_one_layer(teacher: models.EncoderConfig, config: models.EncoderConfig) -> bool:
    """True if all layers of each block begin as one and the same layer of the teacher."""
    if not teacher.shares_everything:
        return False
    sources = {}
    for layer in range(config.num_layers):
        block = layer // config.block_size
        sources.setdefault(block, set()).add(_map(layer, teacher, config) // teacher.block_size)
    return all(len(found) == 1 for found in sources.values())


def take_over(arrays: dict, teacher_arrays: Mapping, teacher, config) -> None:
    """Puts the teacher's arrays in the place of ours, for everything that is no chain.

    That is tables, map, pooler, heads, biases and norms of layers.
    """
    for name in arrays:
        source = name
        if name.startswith("layers/"):
            _, layer, rest = name.split("/", 2)
            source = f"layers/{_map(int(layer), teacher, config)}/{rest}"
        is_own = "/adapter/" in name or (
            name.startswith("head/") and not _same_head(teacher, config)
        )
        if source in teacher_arrays and not is_own:
            if teacher_arrays[source].shape != arrays[name].shape:
                found, wanted = teacher_arrays[source].shape, arrays[name].shape
                raise ValueError(
                    f"the teacher does not fit the model: {source} is {found}, must be {wanted}."
                )
            arrays[name] = teacher_arrays[source]


def _same_head(teacher, config) -> bool:
    names = ("num_labels", "head", "masked_lm")
    return all(getattr(teacher, name) == getattr(config, name) for name in names)


def copied_chains(teacher_arrays, teacher, config, shapes, central, gauge) -> Chains:
    """(path, cores) of every matrix; each of the teacher's is decomposed once."""
    known = {}
    for path, shape in shapes.items():
        source = _map(layer_of(path), teacher, config)
        key = role_of(path), source - source % teacher.block_size, shape
        if key not in known:
            w = np.asarray(teacher_arrays[_kernel(key[1], key[0])], np.float64)
            known[key] = mpo.decompose(w, shape, gauge)
        yield path, known[key]


def fitted_chains(teacher_arrays, teacher, config, shapes, central, gauge) -> Chains:
    """(path, cores): central cores of a mean or one layer, auxiliary cores by least squares."""
    errors: dict[str, list[float]] = {}
    for first in range(0, config.num_layers, config.block_size):
        block = range(first, first + config.block_size)
        for role, shape in roles(shapes).items():
            own = {
                layer: np.asarray(teacher_arrays[_kernel(_map(layer, teacher, config), role)])
                for layer in block
            }
            if central == "mean":
                middle = np.mean(np.stack(list(own.values())), axis=0, dtype=np.float64)
            else:
                middle = np.asarray(teacher_arrays[_kernel(central, role)], np.float64)
            start = mpo.decompose(middle, shape, gauge)
            if shares_auxiliary(config):
                yield f"layers/{first}/{role}", start
                continue
            for layer, w in own.items():
                cores, error = mpobert_fit.fit_auxiliary(np.asarray(w, np.float64), start, shape)
                errors.setdefault(role, []).append(error)
                yield f"layers/{layer}/{role}", cores
    for role, values in errors.items():
        logging.info(
            "%s: relative error of the fitted layers %.3f on average, %.3f at most",
            *(role, np.mean(values), np.max(values)),
        )


def _kernel(layer: int, role: str) -> str:
    return f"layers/{layer}/{role}/kernel"


def _map(layer: int, teacher, config) -> int:
    """The teacher's layer that a layer begins as."""
    return layer * teacher.num_layers // config.num_layers


def shares_auxiliary(config: models.EncoderConfig) -> bool:
    """True if several layers have the same auxiliary cores."""
    return config.block_size > 1 and "auxiliary" in config.shared_roles


def roles(shapes: Mapping[str, mpo.MPOShape]) -> dict[str, mpo.MPOShape]:
    """{role: shape}; a role is the path of a matrix in its layer."""
    return {role_of(path): shape for path, shape in shapes.items()}


def role_of(path: str) -> str:
    """`attention/query` of `layers/3/attention/query`."""
    return path.split("/", 2)[2]


def layer_of(path: str) -> int:
    """3 of `layers/3/attention/query`."""
    return int(path.split("/", 2)[1])
