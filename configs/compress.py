r"""Compress your own checkpoint, without training.

    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.5 --workdir=runs/mine

FOLDER is a checkpoint of the BERT family, GPT-2, LLaMA or T5 with config.json and safetensors
weights, or a hub id.
`--config.budget` is the fraction of the model's parameters to keep (or a number of parameters);
`--config.bond=64` caps every bond instead; with neither the MPO is exact. A plain low rank of
the same size stands next to the result. Seconds for a small encoder, about a minute for BERT-base.

Far better where texts of the model's use are at hand (minutes, not seconds):

    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.5 --config.compare=mpo,svd,svd_aware,searched \
        --config.calibration.task="file:train=texts.tsv;dev=train;text=sentence;label=label" \
        --workdir=runs/aware
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = ml_collections.ConfigDict()
    config.model = ""
    config.budget = config_dict.placeholder(float)
    config.bond = config_dict.placeholder(int)
    config.keep_dense = True  # matrices whose MPO would save nothing may stay dense
    # Regular expressions over matrix paths such as layers/0/attention/query. "all": all of the
    # layers, the token embedding and a language model's output map, of any architecture.
    config.matrices = ("all",)
    # Texts for variants that look at activations: a task, or `file:...` (`mpojax.data.load_task`).
    config.calibration = {
        "task": "",
        "data_dir": "",
        "split": "train",
        "examples": 1024,
        "max_length": 128,
    }
    shared = {name: config.get_ref(name) for name in ("matrices", "keep_dense")}
    low_rank = {"form": "low_rank"}
    config.variants = {
        "mpo": {
            "label": "MPO",
            "budget": config.get_ref("budget"),
            "bond": config.get_ref("bond"),
            **shared,
        },
        "svd": _same_size("low rank (SVD)", shared, **low_rank),
        "svd_aware": _same_size("low rank for the outputs", shared, **low_rank, data_aware=True),
        "searched": _same_size(
            "searched factors for the outputs", shared, search=True, data_aware=True
        ),
    }
    config.compare = ("mpo", "svd")
    return config


def _same_size(label: str, shared: dict, **settings) -> dict:
    """A variant with as many parameters as "mpo"."""
    own = {"label": f"{label}, same size", "settings": settings, "same_size_as": "mpo"}
    return own | shared
