r"""MPOBERT12: 12 layers of width 768 around one set of central cores.

    python -m experiments.train --config=configs/mpobert/base12.py --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert12
    python -m experiments.train --config=configs/mpobert/base12.py --config.corpus=CORPUS \
        --dry_run

19,544,162 parameters in pre-training. The teacher, ALBERT-base, comes from the hub; a folder with
it: `--config.start.teacher=FOLDER`. The corpus must be tokenised with its tokenizer
(`tools/prepare_corpus.py --tokenizer=FOLDER`). Without any teacher: `base12.py:scratch`.
"""

from configs.mpobert import paper


def get_config(start: str = "teacher"):
    """Config of the variant mpobert12; `start` is "teacher" or "scratch"."""
    return paper.get_config("mpobert12", start)
