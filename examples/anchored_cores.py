r"""A method of your own: lightweight fine-tuning whose auxiliary cores stay near their start.

    python -m experiments.train --config=examples/anchored_cores.py --config.data_dir=DATA \
        --config.anchor.weight=0.1 --workdir=runs/anchored

The idea is that of L2-SP (Li et al. 2018, arXiv:1802.01483), on cores:

    loss + weight * sum over auxiliary cores of || T - T_start ||^2

This file is both the method and its config; `docs/tutorials/own_method.md` explains it.
"""

import dataclasses

import jax.numpy as jnp
import ml_collections
from flax import nnx

from configs.mpop import minilm
from mpojax import checks, nn
from mpojax.methods import protocol


@checks.settings(prefix="anchor.")
class AnchorSettings:
    """Settings of the penalty.

    Attributes:
      weight: of the squared distance to the start.
    """

    weight: float = checks.field(checks.number(0), 0.01)


class AnchoredCores(protocol.Method):
    """Tuning with a penalty on how far auxiliary cores have moved."""

    Settings, section = AnchorSettings, "anchor"

    def setup(self, setup: protocol.Setup) -> protocol.Setup:
        start = nnx.state(setup.model, nn.AuxiliaryCore)

        def loss(model, batch, key):
            value, metrics = setup.loss(model, batch, key)
            distance = squared_distance(nnx.state(model, nn.AuxiliaryCore), start)
            return value + self.settings.weight * distance, metrics | {"distance": distance}

        return dataclasses.replace(setup, loss=loss)


def squared_distance(state: nnx.State, start: nnx.State):
    """Sum of squared differences over all arrays of two states of the same structure."""
    pairs = zip(nnx.to_flat_state(state), nnx.to_flat_state(start), strict=True)
    return sum(jnp.sum((now[...] - then[...]) ** 2) for (_, now), (_, then) in pairs)


def get_config() -> ml_collections.ConfigDict:
    """all-MiniLM-L6-v2 on SST-2, as `configs/mpop/minilm.py:full_lfa,sst2`, with the penalty."""
    config = minilm.get_config("full_lfa,sst2")
    config.method = "examples.anchored_cores:AnchoredCores"
    config.variant = "anchored"
    config.anchor = dataclasses.asdict(AnchorSettings())
    return config
