r"""Defaults of training with matrices as sums: one model, one task, one seed.

    python -m experiments.train --config=configs/branches/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

As it stands: three majority kernels. All other fields are those of `configs/mpop/base.py`.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods import branches


def get_config() -> ml_collections.ConfigDict:
    """Default config; all of its numbers are ours."""
    config = base.get_config()
    config.method = "branches"
    config.branches = dataclasses.asdict(branches.BranchSettings())
    return config
