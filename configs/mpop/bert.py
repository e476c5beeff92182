r"""BERT-base uncased, rows of the paper's tables 4 and 5: `configs/mpop/bert.py:VARIANT,TASK`.

    python -m experiments.train --config=configs/mpop/bert.py:mpop,rte \
        --config.model=FOLDER --config.data_dir=DATA --workdir=runs/bert/mpop-rte
    python -m experiments.table mpop_table4 --list    # the command of every row; also mpop_table5

Variants: dense (BERT), mpop (MPOP_B, squeezed to the 70.4 M of table 4), last_1, last_2, last_3
(table 5: the last layers with embeddings, pooler and head), and full, full_lfa, dir (cut once to
70.4 M), svd (low rank within 70.4 M), which the paper does not show for BERT. Tasks: sst2 mnli qnli
cola stsb qqp mrpc rte wnli. FOLDER holds config.json, safetensors weights and the tokenizer; left
out, `google-bert/bert-base-uncased` of the hub. Hyper-parameters: those of ALBERT, none are
published for BERT.

Cost (estimated): 800 steps of 32 x 128 tokens take minutes on one GPU, most of a day on two CPU
cores. Expected, as published, one run each: RTE 70.8, MRPC 84.3, WNLI 56.3 (the majority class) for
mpop.
"""

import ml_collections

from configs.mpop import rows

MODEL = rows.Model(
    file="configs/mpop/bert.py",
    architecture="bert-base-uncased",
    weights="google-bert/bert-base-uncased",
    groups=rows.GROUPS,
    budget=70.4e6,  # table 4
    variants=(*rows.VARIANTS, "last_1", "last_2", "last_3"),
)


def get_config(argument: str = "full_lfa,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = rows.read_argument(MODEL, argument)
    if not variant.startswith("last_"):
        return rows.make(MODEL, variant, task)
    config = rows.make(MODEL, "dense", task)
    config.variant = config.trainable = variant
    return config
