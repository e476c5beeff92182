"""Sets of trained parameters, lightweight fine-tuning (LFA) among them, and their counts."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from flax import nnx

from mpojax import compression, models, mpo, nn


def _word_table(path: tuple, variable: Any) -> bool:
    """A dense word embedding: `.../word/table`."""
    return tuple(str(part) for part in path[-2:]) == ("word", "table")


def _head(path: tuple, variable: Any) -> bool:
    return any(str(part) == "head" for part in path)


def _norm(path: tuple, variable: Any) -> bool:
    """A norm's scale or bias: `.../attention_norm/scale`, `norm/bias`."""
    return str(path[-2]).endswith("norm") if len(path) > 1 else False


def lightweight_filter() -> nnx.filterlib.Filter:
    """The paper's rule: every parameter but the central cores, and no dense token embedding."""
    return nnx.All(nnx.Param, nnx.Not(nn.CentralCore), nnx.Not(_word_table))


_CORES = nnx.Any(nn.CentralCore, nn.AuxiliaryCore)
# What a config's `trainable` may name, besides `last_1`, `last_2`, ...: the last layers of a model,
# its embeddings, pooler and head (table 5 of the paper). "cores" are auxiliary and central ones.
FILTERS: dict[str, Callable[[], nnx.filterlib.Filter]] = {
    "all": lambda: nnx.Param,
    "lightweight": lightweight_filter,
    # Stricter than the paper: nothing but auxiliary cores; with the (new, thus untrained) task
    # head.
    "auxiliary": lambda: nn.AuxiliaryCore,
    "auxiliary_and_head": lambda: nnx.Any(nn.AuxiliaryCore, _head),
    "head": lambda: _head,
    "cores": lambda: _CORES,
    "cores_and_norms": lambda: nnx.Any(_CORES, _norm),
}
# Adapters of every kind, and the head: the filter needs the model.
ADAPTERS = "adapters"


def trainable_filter(name: str, model: nnx.Module | None = None) -> nnx.filterlib.Filter:
    """The NNX filter of a name in `FILTERS`, or of `last_<k>`, which needs the model.

    Raises:
      ValueError: an unknown name; more layers than the model has; a stack of layers that would be
        trained in part (`with_trainable` makes a model whose stacks fit).
    """
    if name in FILTERS:
        return FILTERS[name]()
    count = None if name == ADAPTERS else _last_layers(name)
    if model is None:
        raise ValueError(f"trainable={name!r} depends on the model: pass it.")
    if name == ADAPTERS:
        return models.adapter_filter(model)
    first = _first_trained_layer(model.config, name, count)
    frozen = set()
    for path, _, layers in models.variables(model):
        if layers is None or layers.start >= first:
            continue
        if layers.stop > first:
            raise ValueError(
                f"layers {layers.start}..{layers.stop - 1} are one stack, of which {name} trains "
                f"a part; use with_trainable, or reconfigure(model, scan_boundaries=({first},))."
            )
        frozen.add(path)
    return nnx.All(nnx.Param, lambda path, variable: tuple(path) not in frozen)


def with_trainable(model: models.Model, name: str) -> tuple[models.Model, nnx.filterlib.Filter]:
    """The model, its layers regrouped where the set needs it, and the filter of the set.

    Raises:
      ValueError: adapters of a model that has none.
    """
    if name == ADAPTERS and not models.adapter_settings(model.config):
        raise ValueError(
            f"trainable={name!r}, but the model has no adapters: add some, such as adapters="
            '((".*/(query|value)", {"rank": 8}),), or train another set.'
        )
    if name == "lightweight" and not model.shapes:
        logging.warning(
            "trainable='lightweight' freezes central cores and the token embedding, but no matrix "
            "of this model is in MPO form: all of them are trained. Compress some first."
        )
    if name not in FILTERS and name != ADAPTERS:
        first = _first_trained_layer(model.config, name, _last_layers(name))
        if 0 < first not in model.config.scan_boundaries:
            breaks = tuple(sorted({*model.config.scan_boundaries, first}))
            model = models.reconfigure(model, scan_boundaries=breaks)
    return model, trainable_filter(name, model)


def check_trainable(name: str) -> None:
    """Raises ValueError for a name that is no set of trainable parameters."""
    if name not in FILTERS and name != ADAPTERS:
        _last_layers(name)


def head_parameters(model: models.Model) -> int:
    """Parameters in the head of a task; 0 for a model without one."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return sum(v.size for path, v in flat if models.adapters.is_head(model, path))


def parameter_counts(model: nnx.Module, trainable: Any = nnx.Param) -> dict[str, int]:
    """Counts numbers, each shared parameter once; works on abstract models too.

    Returns:
      {"total", "trainable", "central", "auxiliary", "adapter", "other"}: the roles add up to the
      total. The paper's #To is `total`; its #Pr is `trainable` under the lightweight filter.
    """
    accept = nnx.filterlib.to_predicate(trainable)
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    trained = sum(math.prod(leaf.shape) for path, leaf in parameters if accept(path, leaf))
    counts = models.count_parameters(model)
    return {"total": sum(counts.values()), "trainable": trained} | counts


def counts(
    architecture: models.EncoderConfig,
    rules: Sequence[tuple[str, Mapping]] = (),
    trainable: str = "all",
    num_labels: int | None = 2,
    bond: int | None = None,
) -> dict[str, int]:
    """`parameter_counts` of a model that is never built: from settings and rules alone.

    Args:
      architecture: settings of the encoder, such as those in `models.PRESETS`.
      rules: as for `compression.compress`, with bonds that the rules fix (no tolerance, no search).
      trainable: a name as for `trainable_filter`.
      num_labels: outputs of the head (on the pooler, where the encoder has none); None for none.
      bond: cap for the rules that say nothing about bonds.

    Raises:
      ValueError: rules that do not fit, or whose bonds depend on the weights.
    """
    config = architecture
    if num_labels is not None:
        pooling = "pooler" if config.pooling == "none" else config.pooling
        config = dataclasses.replace(config, num_labels=num_labels, pooling=pooling)
    if trainable not in FILTERS:
        first = _first_trained_layer(config, trainable, _last_layers(trainable))
        config = dataclasses.replace(config, scan_boundaries=(first,) if first else ())
    shapes = compression.planned_shapes(config, rules, bond=bond) if rules else {}
    model = abstract(config, shapes)
    return parameter_counts(model, trainable_filter(trainable, model))


def abstract(config: models.EncoderConfig, shapes: Mapping[str, mpo.MPOShape]) -> models.Model:
    """The model with shapes in the place of arrays: nothing is allocated."""
    return models.abstract(config, shapes)


def _last_layers(name: str) -> int:
    matched = re.fullmatch(r"last_([1-9]\d*)", str(name))
    if matched is None:
        raise ValueError(
            f"unknown trainable set {name!r}; allowed are {', '.join(sorted(FILTERS))}, and "
            "last_1, last_2, ... for the last layers with embeddings, pooler and head."
        )
    return int(matched[1])


def _first_trained_layer(config: models.EncoderConfig, name: str, count: int) -> int:
    stored = len(config.matrix_layers)
    if count > stored or config.shares_parts:
        what = "shares parts between layers" if config.shares_parts else f"stores {stored} layers"
        raise ValueError(f"trainable={name!r}: the model {what}.")
    return config.matrix_layers[stored - count]
