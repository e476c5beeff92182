r"""Defaults of deep low-rank updates: one model, one task, one seed.

    python -m experiments.train --config=configs/deep_lora/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --config.train_examples=256 --workdir=runs/mine

All other fields are those of `configs/mpop/base.py`. Depth and scale of the start are the paper's,
whose bases learn apart (--config.deep_lora.basis_rate=0.01); rank and learning rates are ours.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods import deep_lora


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = base.get_config()
    config.method = "deep_lora"
    config.deep_lora = dataclasses.asdict(deep_lora.DeepLoRASettings())
    with config.deep_lora.ignore_type():
        config.deep_lora.basis_rate = ml_collections.config_dict.placeholder(float)
    config.trainable = "adapters"  # and the head
    config.optimizer.learning_rate = 1e-3
    config.optimizer.role_learning_rates = {"adapter": 1e-2}
    # Gradients of the cores start at init_scale^(depth - 1) times that of the matrix.
    config.optimizer.epsilon = 1e-12
    config.optimizer.warmup_steps = 0.0
    return config
