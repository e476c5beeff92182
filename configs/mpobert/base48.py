r"""MPOBERT48: 48 layers of width 1024 around one set of central cores.

    python -m experiments.train --config=configs/mpobert/base48.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert48
    python -m experiments.train --config=configs/mpobert/base48.py --config.corpus=CORPUS \
        --dry_run

74,618,034 parameters in pre-training. The teacher, ALBERT-large, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `base48.py:scratch`.
Published: 3.8 days on eight V100 of 32 GB.
"""

from configs.mpobert import paper


def get_config(start: str = "teacher"):
    """Config of the variant mpobert48; `start` is "teacher" or "scratch"."""
    return paper.get_config("mpobert48", start)
