r"""Defaults of every distillation: a fine-tuned teacher, a student of some of its layers.

    python -m experiments.train --config=configs/opdf/base.py --config.teacher=runs/mine/model \
        --config.model=FOLDER --config.task=sst2 --config.data_dir=DATA --workdir=runs/student

All other fields are those of `configs/mpop/base.py`; `model` gives the tokenizer.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods import opdf
from mpojax.methods.opdf import distillation
from mpojax.methods.opdf import theseus as replacement


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = base.get_config()
    config.method = "distillation"
    config.teacher = ""  # folder of a model that was tuned and saved (config.save_model=True)
    # Of the teacher, with which the student starts; (): those of opdf.layer_map, by default every
    # second one. Where these are given and no map is, they are what the student is aligned with.
    config.student_layers = ()
    # "kd": the student learns the teacher's outputs; "theseus": its layers replace the teacher's.
    config.distillation = "kd"
    # Of "theseus": fields of mpojax.methods.opdf.theseus.ReplacementSettings.
    config.replacement = dataclasses.asdict(replacement.ReplacementSettings())
    # Of "kd", terms of the loss: fields of mpojax.methods.opdf.distillation.Weights.
    config.weights = dataclasses.asdict(distillation.Weights())
    # With `matrices` or `rules` (of configs/mpop/base.py) the student is the teacher compressed by
    # them instead; `trainable` then says what of it learns.
    # Chains while training: fields of opdf.OPDFSettings. enabled=False: a dense student.
    config.opdf = {
        "enabled": True,  # False: the student stays as it is
    } | dataclasses.asdict(opdf.OPDFSettings())
    # Learning rate of cores: that of the optimizer times (number of cores)^-rate_exponent.
    config.rate_exponent = 0.5
    config.optimizer.warmup_steps = 0.0
    return config
