r"""Defaults of every run that tunes adapters, searched or not: one model, one task, one seed.

    python -m experiments.train --config=configs/pet_search/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --config.search.budget=20000 --workdir=runs/mine

As it stands: low-rank adapters of rank 8 parallel to the matrices of all layers, and all biases,
searched for 20,000 parameters. All other fields are those of `configs/mpop/base.py`.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods.pet import search

LAYERS = ".*/(query|key|value|out|up|down)"
# A bias of a linear map or of a norm, wherever it is but in the head.
BIASES = r"(?!head/).*/bias"


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = base.get_config()
    config.method = "pet_search"
    config.series = ""  # name of the line in plots; the variant is the point
    config.adapters = ((LAYERS, {"rank": 8}), (BIASES, {"kind": "bias"}))
    config.trainable = "adapters"  # and the head
    # Fields of mpojax.methods.pet.search.SearchSettings. budget=0: no search, plain tuning.
    config.search = dataclasses.asdict(search.SearchSettings(budget=20_000))
    # After the last round: "continue" training what is left, or "retrain" it from its start with
    # the steps of the whole run.
    config.after_search = "continue"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.role_learning_rates = {"adapter": 5e-4}
    config.optimizer.warmup_steps = 0.06
    return config
