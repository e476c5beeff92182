"""MPOBERT12: 12 layers of width 768 around one set of central cores.

    python -m experiments.pretrain --config=configs/mpobert/base12.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert12
    python -m experiments.pretrain --config=configs/mpobert/base12.py --config.corpus=CORPUS \
        --dry_run

19,544,162 parameters in pre-training. The teacher, ALBERT-base, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `--config.start.kind=scratch
--config.optimizer.name=adamw --config.optimizer.learning_rate=1e-3`. Published: no cost.
"""

from configs.mpobert import paper


def get_config():
    """Config of the variant mpobert12."""
    return paper.get_config("mpobert12")
