r"""MobileBERT, rows of the paper's table 4: `configs/mpop/mobilebert.py:VARIANT,TASK`.

    python -m experiments.train --config=configs/mpop/mobilebert.py:mpop,rte \
        --config.model=FOLDER --config.data_dir=DATA --workdir=runs/mobilebert/mpop-rte
    python -m experiments.table mpop_table4 --list    # the command of every row

Variants: dense (MobileBERT), mpop (MPOP_M, squeezed to the 15.4 M of table 4), and full, full_lfa,
dir (cut once to 15.4 M), svd (low rank within 15.4 M), which the paper does not show. Tasks: sst2
mnli qnli cola stsb qqp mrpc rte wnli. FOLDER holds config.json, safetensors weights and the
tokenizer; left out, `google/mobilebert-uncased` of the hub. Neither factor lists nor the set of
matrices are published for MobileBERT: here the word embedding, attention, all feed-forwards and
bottlenecks, with the library's lists. Hyper-parameters: those of ALBERT.

Cost: a quarter of BERT. Expected, as published, one run each: RTE 65.7, MRPC 85.3, WNLI 56.2 (the
majority class) for mpop.
"""

import ml_collections

from configs.mpop import rows

MODEL = rows.Model(
    file="configs/mpop/mobilebert.py",
    architecture="mobilebert-uncased",
    weights="google/mobilebert-uncased",
    groups=(
        rows.EMBEDDING,
        "layers/.*/bottleneck/.*",
        "layers/.*/attention/(query|key|value|out)",
        "layers/.*/feed_forwards/.*/(up|down)",
    ),
    budget=15.4e6,  # table 4
)


def get_config(argument: str = "full_lfa,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    return rows.make(MODEL, *rows.read_argument(MODEL, argument))
