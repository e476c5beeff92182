"""Adapters of a fine-tuning run: added to the loaded model, or already trained with it."""

import ml_collections
from flax import nnx

from mpojax import compression, models

# When the adapters come in: MPOBERT's algorithm 2 has them in pre-training, its section 3.2.2
# offers them to the tasks that need layers of their own.
PHASES = ("fine_tuning", "pre_training")


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the fields about adapters without a model.

    Raises:
      ValueError: an unknown phase, or malformed rules.
    """
    if config.adapter_phase not in PHASES:
        raise ValueError(
            f"config.adapter_phase={config.adapter_phase!r} must be one of {', '.join(PHASES)}."
        )
    for rule in config.adapters:
        compression.parse_rule(rule, compression.AdapterRule)


def adapted(config: ml_collections.ConfigDict, model: models.Model) -> models.Model:
    """The model with the adapters that the config asks for; fresh ones do nothing at first.

    Raises:
      ValueError: rules that do not fit the model; in the phase "pre_training", or with a tuned
        model that has adapters, others than the config asks for.
    """
    rules = [(pattern, dict(settings)) for pattern, settings in config.adapters]
    if not rules:
        return model
    wanted = compression.adapter_settings(model.config, rules)
    present = models.adapter_settings(model.config)
    goes_on = bool(config.init_checkpoint and present)
    if config.adapter_phase == "fine_tuning" and not goes_on:
        return compression.add_adapters(model, rules, rngs=nnx.Rngs(config.seed))
    if wanted != present:
        where = config.init_checkpoint or config.model
        path = next(p for p in {**wanted, **present} if wanted.get(p) != present.get(p))
        raise ValueError(
            f"{where} must have the adapters of config.adapters, but at {path} there is "
            f"{present.get(path, 'none')} there and {wanted.get(path, 'none')} in the config. "
            "config.adapter_phase='fine_tuning' adds adapters to a model that has none."
        )
    return model
