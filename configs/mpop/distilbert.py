r"""DistilBERT, rows of the paper's table 4: `configs/mpop/distilbert.py:VARIANT,TASK`.

    python -m experiments.train --config=configs/mpop/distilbert.py:mpop,rte \
        --config.model=FOLDER --config.data_dir=DATA --workdir=runs/distilbert/mpop-rte
    python -m experiments.table mpop_table4 --list    # the command of every row

Variants: dense (DistilBERT), mpop (MPOP_D, squeezed to the 43.4 M of table 4), and full, full_lfa,
dir (cut once to 43.4 M), svd (low rank within 43.4 M), which the paper does not show. Tasks: sst2
mnli qnli cola stsb qqp mrpc rte wnli. FOLDER holds config.json, safetensors weights and the
tokenizer; left out, `distilbert/distilbert-base-uncased` of the hub. Factor lists: those of BERT,
none are published for DistilBERT. Hyper-parameters: those of ALBERT, for the same reason.

Cost: half of BERT. Expected, as published, one run each: RTE 61.7, MRPC 84.3, WNLI 56.3 (the
majority class) for mpop.
"""

import ml_collections

from configs.mpop import rows

MODEL = rows.Model(
    file="configs/mpop/distilbert.py",
    architecture="distilbert-base-uncased",
    weights="distilbert/distilbert-base-uncased",
    groups=rows.GROUPS,
    budget=43.4e6,  # table 4
)


def get_config(argument: str = "full_lfa,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    return rows.make(MODEL, *rows.read_argument(MODEL, argument))
