"""Experts without a limit on their tokens."""

import dataclasses

from flax import nnx

from mpojax.models.decoder import LanguageModel
from mpojax.models.encoder_decoder import EncoderDecoder


def dropless(model: LanguageModel | EncoderDecoder) -> LanguageModel | EncoderDecoder:
    """The same parameters, with experts that take every token sent to them.

    Under a `capacity_factor` what a token becomes depends on how many other tokens of a call chose
    its expert: right for the speed of training, wrong where texts are generated or scored one by
    one. Nothing is copied; works under jax transformations, too.
    """
    config = model.config
    if all(settings.capacity_factor is None for _, settings in config.experts):
        return model
    experts = tuple((pattern, _without_capacity(settings)) for pattern, settings in config.experts)
    # Modules of its own on the same variables: their settings change without those of `model`.
    result = nnx.merge(*nnx.split(model))
    result.config = dataclasses.replace(config, experts=experts)
    for _, module in nnx.iter_modules(result):
        if hasattr(module, "block"):  # of experts
            settings = _without_capacity(module.block.settings)
            module.block = dataclasses.replace(module.block, settings=settings)
        elif hasattr(module, "stack_ranges"):
            module.config = result.config
    return result


def _without_capacity(settings):
    if settings.capacity_factor is None:
        return settings
    return dataclasses.replace(settings, capacity_factor=None, dispatch="auto")
