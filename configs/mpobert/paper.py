"""The pre-training recipe of the paper and its released code, for the configs base12 .. base48plus.

BookCorpus and English Wikipedia, masked words and sentence order, 10,000 steps of 4096 rows, from
the weights of a shared-layer ALBERT. Rate and bounds of LAMB are those of the code: with them a
matrix moves by 1.5 % of its norm at most, a light continuation of ALBERT. From scratch
(`base48.py:scratch`) AdamW runs at 1e-3 instead, which the paper does not give.
"""

import ml_collections

from configs.mpobert import pretraining
from mpojax.methods import mpobert

# The hub's ALBERT of the same width; the paper starts its deep models from the large one.
TEACHERS = {768: "albert/albert-base-v2", 1024: "albert/albert-large-v2"}


def get_config(name: str, start: str = "teacher") -> ml_collections.ConfigDict:
    """The config of a name in `mpobert.VARIANTS`, from a "teacher" or from "scratch".

    Raises:
      ValueError: another start.
    """
    if start not in pretraining.STARTS:
        raise ValueError(
            f"the config's argument is {' or '.join(pretraining.STARTS)}, not {start!r}."
        )
    config = pretraining.get_config()
    config.variant = name
    config.model.update(mpobert.VARIANTS[name])
    config.batch_size, config.steps = 4096, 10_000
    config.length = 128  # the paper names none
    config.dtype = "bfloat16"
    if start == "scratch":
        return config
    config.start.kind, config.start.teacher = "teacher", TEACHERS[config.model.hidden_size]
    config.start.gauge = "symmetric"  # that of the code
    # Algorithm 2 of the paper; its code copies the teacher into all layers ("none").
    config.start.scaling, config.start.num_teacher_layers = "paper_algorithm", 24
    config.optimizer.update(
        name="lamb",
        learning_rate=1.76e-6,
        # The code plans 125,000 steps and stops after 10,000: 94.4 % of the rate is left then.
        warmup_steps=3125,
        end_factor=0.944,
        bias_correction=False,
        trust_bounds=(0.01, 0.3),
        clip_norm=0.0,
    )
    return config
