"""What multi-task and few-shot runs have in common: the models that they compare."""

import ml_collections

from configs import common
from configs.mpobert import finetune, recipes

# Not in the paper: small enough for two cores, and its weights come with a Python package.
MINILM = "minilm"
SYSTEMS = (*finetune.VARIANTS, MINILM)


def put(config: ml_collections.ConfigDict, name: str) -> None:
    """Puts the model of a variant, and what it needs, into a config.

    Raises:
      ValueError: an unknown name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"unknown variant {name!r}; there are {', '.join(SYSTEMS)}.")
    config.variant = name
    if name != MINILM:
        variant = finetune.VARIANTS[name]
        config.model, config.architecture = variant.weights, variant.preset
        config.adapters = variant.adapters
        return
    common.take_minilm(config)
    config.max_length, config.lengths = 64, (32, 64)
    config.dev_examples = 500


def optimizer(name: str) -> ml_collections.ConfigDict:
    """The optimizer of a variant on several tasks at once.

    No rate is published for that. Ours: for 12 and 24 layers those of QQP, the largest task that
    has both; for 48 the middle of the range of MNLI and QNLI; for dense models what is usual.
    """
    if name == MINILM:
        return recipes.optimizer(1e-4)
    if name.startswith("mpobert48"):
        return recipes.optimizer(2e-6)
    if finetune.VARIANTS[name].pretraining:
        return recipes.optimizer(
            recipes.RECIPES["qqp"].learning_rate, recipes.RECIPES["qqp"].core_rate
        )
    return recipes.optimizer(2e-5)
