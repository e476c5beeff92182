"""A config whose rows are toys, for tests of tables and of what runs them."""

import ml_collections

from configs.mpop import base


def get_config(argument: str = "dense,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    config = base.get_config()
    config.variant, config.task = argument.split(",")
    config.architecture, config.model = "albert-base-v2", "google/toy"
    config.steps, config.batch_size, config.eval_every = {"rte": 100, "mrpc": 20}[config.task], 8, 0
    return config
