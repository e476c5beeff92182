"""MPOP: lightweight fine-tuning of auxiliary cores (ACL 2021, "Enabling Lightweight Fine-tuning for
Pre-trained Language Model Compression based on Matrix Product Operators", pp. 5388-5398).

Trained in the paper's lightweight fine-tuning: the auxiliary cores and everything that is dense in
every variant (biases, layer norms, position and type embeddings, mapping, classifier). Frozen: the
central cores.

The word embedding. In the paper it is always an MPO, thus its central core is frozen and its
auxiliary cores are trained, which the roles give without a rule of its own. Where a user keeps it
dense, the paper says nothing; we freeze it, because it stands for the frozen central core and, at
a fifth or more of all numbers, training it would not be lightweight. Other matrices that a user
keeps dense are trained, as in the authors' released code.
"""

import math
from collections.abc import Callable
from typing import Any

from flax import nnx

from mpojax import models
from mpojax.layers import roles


def _word_table(path: tuple, variable: Any) -> bool:
    """A dense word embedding: `.../word/table`."""
    return tuple(str(part) for part in path[-2:]) == ("word", "table")


def _head(path: tuple, variable: Any) -> bool:
    return any(str(part) == "head" for part in path)


def lightweight_filter() -> nnx.filterlib.Filter:
    """The paper's rule: every parameter but the central cores, and no dense word table."""
    return nnx.All(nnx.Param, nnx.Not(roles.CentralCore), nnx.Not(_word_table))


# What a config's `trainable` may name.
FILTERS: dict[str, Callable[[], nnx.filterlib.Filter]] = {
    "all": lambda: nnx.Param,
    "lightweight": lightweight_filter,
    # Stricter than the paper: nothing but auxiliary cores; with the (new, thus untrained) task
    # head.
    "auxiliary": lambda: roles.AuxiliaryCore,
    "auxiliary_and_head": lambda: nnx.Any(roles.AuxiliaryCore, _head),
}


def trainable_filter(name: str) -> nnx.filterlib.Filter:
    """The NNX filter of a name in `FILTERS`."""
    if name not in FILTERS:
        raise ValueError(f"unknown trainable set {name!r}; allowed are {sorted(FILTERS)}")
    return FILTERS[name]()


def parameter_counts(model: nnx.Module, trainable: Any = nnx.Param) -> dict[str, int]:
    """Counts numbers, each shared parameter once.

    Returns:
      {"total", "trainable", "central", "auxiliary", "adapter", "other"}: the roles add up to the
      total. The paper's #To is `total`; its #Pr is `trainable` under the lightweight filter.
    """
    accept = nnx.filterlib.to_predicate(trainable)
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    trained = sum(math.prod(leaf.shape) for path, leaf in parameters if accept(path, leaf))
    counts = models.count_parameters(model)
    return {"total": sum(counts.values()), "trainable": trained} | counts
