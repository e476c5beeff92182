r"""Defaults of fine-tuning with some matrices over-parameterised, merged at the end (OPF).

    python -m experiments.train --config=configs/opf/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

All other fields are those of `configs/mpop/base.py`.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods import opf


def get_config() -> ml_collections.ConfigDict:
    """Default config: dynamic selection; N, n, L and the rate are the paper's for base models."""
    config = base.get_config()
    config.method = "opf"
    config.opf = dataclasses.asdict(opf.OPFSettings())  # fields of opf.OPFSettings
    # Of "static": folder of the same model, fine-tuned on the task (experiments.train with
    # config.save_model=True); its loss without a matrix says what that is worth.
    config.scoring_checkpoint = ""
    # Learning rate of cores: that of the optimizer times (number of cores)^-rate_exponent.
    config.rate_exponent = 0.5
    config.optimizer.learning_rate = 3e-5
    return config
