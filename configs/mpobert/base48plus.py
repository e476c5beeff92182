r"""MPOBERT48plus: 48 layers of width 1024 in three blocks with central cores of their own.

    python -m experiments.train --config=configs/mpobert/base48plus.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert48plus
    python -m experiments.train --config=configs/mpobert/base48plus.py --config.corpus=CORPUS \
        --dry_run

99,810,482 parameters in pre-training. The teacher, ALBERT-large, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `base48plus.py:scratch`.
Published: 3.8 days on eight V100 of 32 GB.
"""

from configs.mpobert import paper


def get_config(start: str = "teacher"):
    """Config of the variant mpobert48plus; `start` is "teacher" or "scratch"."""
    return paper.get_config("mpobert48plus", start)
