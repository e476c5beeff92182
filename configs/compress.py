r"""Compress your own checkpoint.

    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.6 --workdir=runs/mine

FOLDER is a checkpoint with config.json and safetensors weights, a GGUF file, a hub id, or
`package:NAME/PATH`. `--config.budget` is the fraction of the model's parameters to keep (or a
number of parameters).

**A decoder** (LLaMA-like, GPT-2, ...) is compressed by what it does on texts: give some like those
it is for, `--config.calibration.texts=FILE` (else Python's own documentation is read), and others
to measure perplexity on, `--config.evaluation.texts=FILE`. Each published method of the same size
stands next to the result. `--config.budgets="(0.8, 0.6)"` makes a curve;
`--config.budget_of=matrices` counts the compressed matrices alone; `--config.heal.steps=300` tunes
the best result on the calibration texts, as the original would answer.

**A mixture of experts** (Mixtral, Qwen-MoE, OLMoE, or one made here) as any decoder; each map of
its experts takes the form that loses least on the tokens that reach them.

**An encoder**, or an encoder-decoder: `--config.bond=64` caps every bond instead; with neither the
MPO is exact. A plain low rank of the same size stands next to the result. Seconds for a small
encoder, about a minute for BERT-base. Far better where texts of the model's use are at hand
(minutes, not seconds; `best` and the other methods of decoders are there, too, `similarity` is the
mean cosine of sentence vectors on the development texts):

    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.6 --config.compare=best,whitened,mpo,svd,searched \
        --config.calibration.task="file:train=texts.tsv;dev=train;text=sentence;label=label" \
        --workdir=runs/aware
"""

import ml_collections
from ml_collections import config_dict

from mpojax import compression
from mpojax.methods import healing


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = ml_collections.ConfigDict()
    config.model = ""
    config.budget = config_dict.placeholder(float)
    config.budgets = ()  # of a decoder: several instead
    # "model": budgets are of all parameters; "matrices": of those of the compressed matrices.
    config.budget_of = "model"
    config.bond = config_dict.placeholder(int)
    config.keep_dense = True  # matrices whose MPO would save nothing may stay dense
    # Regular expressions over matrix paths such as layers/0/attention/query. "all": all of the
    # layers, the token embedding and an encoder-decoder's output map; of a decoder its layers.
    config.matrices = ("all",)
    # Texts for variants that look at activations: of a decoder plain texts by `mpojax.data.
    # load_documents`; else a task, or `file:...` (`mpojax.data.load_task`).
    config.calibration = {
        "texts": "python_docs",
        # 64 x 512 tokens
        "windows": 64,
        "length": 512,
        "order": "spread",  # over the text; "first", or "random" by the seed
        "seed": 0,
        "task": "",
        "data_dir": "",
        "split": "train",
        "examples": 1024,
        "max_length": 128,
    }
    # Of a decoder: perplexity of each variant, of dense and best their speed.
    config.evaluation = {
        "texts": "python_docs",
        "split": "test",
        "data_dir": "",
        "window": 1024,
        "stride": config_dict.placeholder(int),
        "num_windows": 8,
        "speed_rounds": 3,
    }
    shared = {name: config.get_ref(name) for name in ("matrices", "keep_dense")}
    # Of a decoder: steps of tuning of the best by its original, on the calibration texts; of those
    # sizes among `budgets`, () of all.
    rate = healing.OPTIMIZER["learning_rate"]
    config.heal = {"steps": 0, "batch_size": 4, "length": 512, "learning_rate": rate, "budgets": ()}
    # Of a decoder: a greedy continuation by the dense model and the best of each size.
    config.sample = {"prompt": "The moon is", "new_tokens": 24}
    low_rank = {"form": "low_rank"}
    config.variants = {
        **{name: _by_method(config, name) for name in compression.METHODS if name != "svd"},
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
    # Of a decoder names of methods (mpojax.compression.METHODS), by default best (of a mixture of
    # experts: experts), whitened, activation_scaled, svd; else of the variants above, by default
    # mpo, svd.
    config.compare = ()
    return config


def _by_method(config: ml_collections.ConfigDict, name: str) -> dict:
    """A variant by what the model does on the calibration texts."""
    settings = {"method": name, "budget": config.get_ref("budget")}
    label = compression.METHODS[name].label
    return {"label": label, "matrices": config.get_ref("matrices"), **settings}


def _same_size(label: str, shared: dict, **settings) -> dict:
    """A variant with as many parameters as "mpo"."""
    own = {"label": f"{label}, same size", "settings": settings, "same_size_as": "mpo"}
    return own | shared
