"""MPOBERT24: 24 layers of width 1024, the released code's step towards 48.

    python -m experiments.pretrain --config=configs/mpobert/base24.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert24
    python -m experiments.pretrain --config=configs/mpobert/base24.py --config.corpus=CORPUS \
        --dry_run

46,232,754 parameters in pre-training. The teacher, ALBERT-large, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `--config.start.kind=scratch
--config.optimizer.name=adamw --config.optimizer.learning_rate=1e-3`. Published: no cost.
"""

from configs.mpobert import paper


def get_config():
    """Config of the variant mpobert24."""
    return paper.get_config("mpobert24")
