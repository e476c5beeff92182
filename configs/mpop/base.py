r"""Defaults of every fine-tuning run: one model, one task, one seed.

    python -m experiments.finetune --config=configs/mpop/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

The configs of the paper's rows and the cells of sweeps start from here. As it stands: everything
trained, nothing compressed.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = ml_collections.ConfigDict()
    config.model = ""  # folder, hub id, or package:NAME/SUBFOLDER
    config.architecture = ""  # of mpojax.models.PRESETS: counts the parameters without weights
    # Folder of a model saved by this library, whose weights (and head, where it fits the task) are
    # used in place of those of `model`; `model` gives the tokenizer.
    config.init_checkpoint = ""
    config.variant = ""  # name of the row in tables and plots

    config.task = "sst2"
    config.data_dir = ""
    # dev_split: what is reported; "": the task's own; "held_out": `held_out_examples`, so that
    # settings can be chosen without a look at the task's own.
    config.train_split, config.dev_split = "train", ""
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
    config.dropout = -1.0  # negative: as the model has it

    # Compression: matrices with one set of settings for all, or rules with settings for each.
    config.matrices = ()  # regular expressions over matrix paths; none: the model stays dense
    config.settings = {}  # fields of mpojax.compression.MatrixRule
    config.rules = ()  # (pattern, settings) pairs; replace matrices and settings
    config.budget = config_dict.placeholder(float)  # fraction of the dense parameters, or a number
    config.bond = config_dict.placeholder(int)  # cap for every bond
    config.keep_dense = True  # whether a budget may leave matrices dense (which are then trained)
    # Training examples whose activations data-aware settings, and their gradients the allocation
    # "first_order", look at; 0: no calibration.
    config.calibration_examples = 0
    config.allocation = "error"  # or "first_order"

    # Low-rank adapters: (regular expression over matrix paths, {"rank": 8}) pairs.
    config.adapters = ()
    # "fine_tuning": added to the loaded model; "pre_training": the model must have just these.
    config.adapter_phase = "fine_tuning"

    config.trainable = "all"  # a name in mpojax.methods.mpop.FILTERS
    config.squeeze = {}  # fields of mpop.settings.SqueezingSettings; none: no squeezing

    config.seed = 0
    config.steps = 1000
    config.batch_size = 32
    config.grad_accum_steps = 1  # micro-batches per step
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
    config.dtype = "float32"  # of the computation; "bfloat16" where the hardware has it
    config.remat = False  # recompute layers in the backward pass
    config.mesh = {}  # sizes of data / fsdp / tensor / expert; all devices on data
    config.eval_every = 0  # 0: only at the end
    config.keep_best = False  # report the best development state instead of the last
    config.checkpoint_every = 200
    config.log_every = 10
    config.save_model = False
    return config
