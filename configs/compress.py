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
    config.model = ""  # folder, hub id, package:NAME/PATH or .gguf file
    config.budget = config_dict.placeholder(float)  # to keep: a fraction, or a number of parameters
    config.budgets = ()  # of a decoder: several instead
    # "model": budgets are of all parameters; "matrices": of those of the compressed matrices.
    config.budget_of = "model"
    config.bond = config_dict.placeholder(int)  # of MPOs: cap of every bond instead
    config.keep_dense = True  # matrices whose MPO would save nothing may stay dense
    # Of a decoder names of methods (mpojax.compression.METHODS), by default best (of a mixture of
    # experts: experts), whitened, activation_scaled, svd; else of the variants below, by default
    # mpo, svd.
    config.compare = ()
    # Regular expressions over matrix paths such as layers/0/attention/query. "all": all of the
    # layers, the token embedding and an encoder-decoder's output map; of a decoder its layers.
    config.matrices = ("all",)
    # Texts for variants that look at activations.
    config.calibration = {
        "texts": "python_docs",  # of a decoder: a file, or a name of mpojax.data.load_documents
        "windows": 64,  # that are read
        "length": 512,  # tokens of a window
        "order": "spread",  # over the text; "first", or "random" by the seed
        "seed": 0,  # of the random order
        "task": "",  # of any other model: a name of mpojax.data.load_task, or file:...
        "data_dir": "",  # folder of the texts or the task
        "split": "train",  # of the texts or the task
        "examples": 1024,  # of the task
        "max_length": 128,  # tokens of an example
    }
    # Of a decoder: perplexity of each variant, of dense and best their speed.
    config.evaluation = {
        "texts": "python_docs",  # a file, or a name of mpojax.data.load_documents
        "split": "test",  # of the texts
        "data_dir": "",  # their folder
        "window": 1024,  # tokens that the model sees at once
        "stride": config_dict.placeholder(int),  # tokens from start to start; None: a whole window
        "num_windows": 8,  # at most; None: all
        "speed_rounds": 3,  # of timed decoding and prefill; 0: no timing
        "speed_budgets": (),  # sizes whose best is timed; (): all
    }
    shared = {name: config.get_ref(name) for name in ("matrices", "keep_dense")}
    # Of a decoder: tuning of the best by its original, on the calibration texts.
    config.heal = {
        "steps": 0,  # 0: no healing
        "batch_size": 4,  # rows of a step
        "length": 512,  # tokens of a row
        "learning_rate": healing.OPTIMIZER["learning_rate"],  # peak
        "budgets": (),  # sizes whose best is healed; (): all
    }
    # Of a decoder: a greedy continuation by the dense model and the best of each size.
    config.sample = {
        "prompt": "The moon is",  # what is continued
        "new_tokens": 24,  # of the continuation; 0: none
    }
    low_rank = {"form": "low_rank"}
    # Rows that `compare` may name.
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
