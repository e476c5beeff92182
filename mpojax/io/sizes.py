"""Sizes of settings against the tensors of a file, before anything is built or enumerated."""

from collections.abc import Mapping

from mpojax import models

# So many layers are quickly enumerated, and the tensors that are missing named.
_FEW = 500


def check(config: models.Config, tensors: Mapping, where: str) -> None:
    """Checks that a file may hold a model of so many layers: each has at least one tensor.

    Raises:
      ValueError: it has fewer tensors than that.
    """
    if isinstance(config, models.EncoderConfig):
        depth = len(config.matrix_layers) * config.num_feed_forwards
    else:
        depth = config.num_layers + getattr(config, "num_decoder_layers", 0)
    if depth > max(_FEW, len(tensors)):
        raise ValueError(
            f"the weights in {where} do not fit its configuration: {len(tensors)} tensors are too "
            f"few for {depth} layers (num_layers)."
        )
