r"""T-Few's recipe: a language model tuned on few examples of a task whose answers are texts.

    python -m experiments.train --config=configs/t_few/base.py --config.model=FOLDER \
        --config.task=rte --config.shots=16 --config.data_dir=DATA --workdir=runs/mine

Any encoder-decoder or decoder; `configs/t_few/prompts.py` has the words of four tasks. Published:
1,000 steps of 8 examples, Adafactor with rate 3e-3, linear warm-up of 60 steps and decay, vectors
that rescale keys, values and inner activations, the three losses with weight 1, sources of at most
256 tokens. All other fields are those of `configs/mpop/base.py`.
"""

import dataclasses

import ml_collections

from configs.mpop import base
from mpojax.methods import t_few

# (IA)^3; the inner activations are the input of the second map of a feed-forward block.
IA3 = (
    (".*/(key|value)", {"kind": "rescale"}),
    (".*/feed_forward/down", {"kind": "rescale", "side": "input"}),
)


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = base.get_config()
    config.choices = dataclasses.asdict(t_few.ChoiceSettings())
    config.adapters, config.trainable = IA3, "adapters"
    config.steps, config.batch_size, config.eval_batch_size = 1000, 8, 16
    config.max_length, config.lengths = 256, ()
    config.optimizer.update(
        {"name": "adafactor", "learning_rate": 3e-3, "warmup_steps": 60.0, "clip_norm": 1.0}
    )
    return config
