r"""MPOBERT24: 24 layers of width 1024, the released code's step towards 48.

    python -m experiments.train --config=configs/mpobert/base24.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert24
    python -m experiments.train --config=configs/mpobert/base24.py --config.corpus=CORPUS \
        --dry_run

46,232,754 parameters in pre-training. The teacher, ALBERT-large, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `base24.py:scratch`.
"""

from configs.mpobert import paper


def get_config(start: str = "teacher"):
    """Config of the variant mpobert24; `start` is "teacher" or "scratch"."""
    return paper.get_config("mpobert24", start)
