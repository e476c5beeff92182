r"""The paper's models, pre-trained by its recipe: `configs/mpobert/paper.py:VARIANT[,scratch]`.

    python -m experiments.train --config=configs/mpobert/paper.py:mpobert48 --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert48
    python -m experiments.train --config=configs/mpobert/paper.py:mpobert48,scratch \
        --config.corpus=CORPUS --config.mesh.fsdp=4 --dry_run

Variants: mpobert12 (19,544,162 parameters in pre-training, width 768), mpobert24 (46,232,754, width
1024), mpobert48 (74,618,034), mpobert48plus (99,810,482: three blocks of layers with central cores
of their own; published: 3.8 days on eight V100 of 32 GB), and all others of `mpobert.VARIANTS`.

They start from the weights of a shared-layer ALBERT of the same width, which comes from the hub; a
folder with it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`).

The recipe is that of the paper and its code: BookCorpus and English Wikipedia, masked words and
sentence order, 10,000 steps of 4096 rows. Rate and bounds of LAMB are those of the code: with them
a matrix moves by 1.5 % of its norm at most, a light continuation of ALBERT. From scratch AdamW runs
at 1e-3 instead, which the paper does not give.
"""

import ml_collections

from configs.mpobert import pretraining
from mpojax.methods import mpobert

# The hub's ALBERT of the same width; the paper starts its deep models from the large one.
TEACHERS = {768: "albert/albert-base-v2", 1024: "albert/albert-large-v2"}


def get_config(argument: str = "mpobert12") -> ml_collections.ConfigDict:
    """`argument` is VARIANT, or VARIANT,scratch."""
    name, _, start = argument.partition(",")
    if name not in mpobert.VARIANTS or start not in ("", "scratch"):
        raise ValueError(
            f"configs/mpobert/paper.py:{argument}: the argument is VARIANT or VARIANT,scratch with "
            f"a variant of {', '.join(mpobert.VARIANTS)}."
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
