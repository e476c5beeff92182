r"""Defaults of every fine-tuning run: one encoder, one task or several, one seed.

    python -m experiments.train --config=configs/mpop/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

The configs of the paper's rows and the cells of sweeps start from here. As it stands: everything
trained, nothing compressed.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = common.get_config()
    config.task = "sst2"
    config.train_split = "train"
    # What is reported; "": the task's own; "held_out": `held_out_examples`, so that settings can be
    # chosen without a look at the task's own.
    config.dev_split = ""
    config.train_examples, config.dev_examples = 0, 0  # 0: all
    # Few-shot: examples of every class (of a task without classes, in all; 0: all there are), and
    # which draw of them.
    config.shots, config.draw = 0, 0
    config.metric = ""  # the one that counts; "": the task's first
    # Examples taken from the training split, by which squeezing decides; 0: the split that is
    # reported decides, as in the paper.
    config.held_out_examples = 0
    config.max_length = 128
    config.lengths = (32, 64, 128)  # batches are cropped to one of these
    config.pooling = ""  # "": the model's own, "pooler" where it has none
    config.eval_batch_size = 64
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 2e-5,
        "role_learning_rates": {},  # such as {"auxiliary": 1e-4}
        "schedule": "linear",
        "warmup_steps": 0.1,  # below 1: a fraction of all steps
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.mesh = {}  # sizes of data / fsdp / tensor / expert; all devices on data
    return config
