"""Adapters beside the matrices of a model that has none yet, by rules."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from mpojax import layers, models
from mpojax.interop import rules as rules_lib


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The adapters of one rule: low rank, W + scale * down @ up.

    Attributes:
      rank: columns of `down` and rows of `up`.
      deviation: standard deviation of a fresh `down`.
    """

    rank: int
    deviation: float = 0.02

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank={self.rank!r} must be an integer of at least 1.")
        if not self.deviation > 0:
            raise ValueError(f"deviation={self.deviation!r} must be above 0.")


def add_adapters(
    model: models.Model,
    rules: Sequence[tuple[str, Mapping]],
    *,
    scale: float | None = None,
    rngs: nnx.Rngs,
) -> models.Model:
    """The model with fresh adapters; it computes the same as before, because `up` starts at zero.

    Where layers share every parameter, they share the adapters, too.

    Args:
      model: any; matrices may be dense or in MPO form.
      rules: (regular expression over whole matrix paths, settings), such as
        `[("layers/.*/(query|key|value|out)", dict(rank=8))]`. Tables and heads have no adapters.
      scale: what the output of every adapter is multiplied with; None for that of the model.
      rngs: for `down`.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing or a matrix that
        has an adapter, another scale than that of adapters which are there.
    """
    config = model.config
    present = models.adapter_ranks(config)
    added = _matched(config, rules)
    if twice := [path for path in added if path in present]:
        raise ValueError(
            f"{twice[0]} has an adapter of rank {present[twice[0]]} already: a rule may name "
            "matrices without one only."
        )
    if present and scale not in (None, config.adapter_scale):
        raise ValueError(
            f"scale={scale} differs from that of the adapters that are there, "
            f"{config.adapter_scale}: all have one."
        )
    config = dataclasses.replace(
        config,
        adapters=(*config.adapters, *((pattern, settings["rank"]) for pattern, settings in rules)),
        adapter_scale=config.adapter_scale if scale is None else float(scale),
    )
    arrays, sizes = models.to_arrays(model), models.matrix_sizes(config)
    for path, settings in added.items():
        fresh = layers.LowRankAdapter(
            *sizes[path], settings.rank, deviation=settings.deviation, rngs=rngs
        )
        arrays[f"{path}/adapter/down"] = np.asarray(fresh.down[...])
        arrays[f"{path}/adapter/up"] = np.asarray(fresh.up[...])
    return models.from_arrays(config, model.shapes, arrays)


def adapter_ranks(
    config: models.EncoderConfig, rules: Sequence[tuple[str, Mapping]]
) -> dict[str, int]:
    """{matrix path: rank} of the adapters that the rules give a model of these settings.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing.
    """
    return {path: settings.rank for path, settings in _matched(config, rules).items()}


def _matched(config, rules) -> dict[str, AdapterSettings]:
    found = rules_lib.match(rules, models.adaptable(config), AdapterSettings)
    return {path: settings for path, (_, settings) in found.items()}
