"""MPOBERT48plus: 48 layers of width 1024 in three blocks with central cores of their own.

    python -m experiments.pretrain --config=configs/mpobert/base48plus.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert48plus
    python -m experiments.pretrain --config=configs/mpobert/base48plus.py --config.corpus=CORPUS \
        --dry_run

99,810,482 parameters in pre-training. The teacher, ALBERT-large, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `--config.start.kind=scratch
--config.optimizer.name=adamw --config.optimizer.learning_rate=1e-3`. Published: 3.8 days on eight
V100 of 32 GB.
"""

from configs.mpobert import paper


def get_config():
    """Config of the variant mpobert48plus."""
    return paper.get_config("mpobert48plus")
