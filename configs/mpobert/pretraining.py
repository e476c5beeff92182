r"""Defaults of every pre-training run: one model, one corpus, one seed.

    python -m tools.prepare_corpus --text=TEXTS --out=CORPUS --vocab_size=8000
    python -m experiments.train --config=configs/mpobert/pretraining.py \
        --config.corpus=CORPUS --config.model.num_layers=12 --config.model.hidden_size=256 \
        --workdir=runs/mine

As it stands: an MPOBERT of 12 layers, from scratch, with rates for training from scratch. The
configs of the paper's variants start from here.
"""

import ml_collections
from ml_collections import config_dict

from mpojax import training


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = ml_collections.ConfigDict()
    config.variant = ""  # name of the row in tables and plots
    config.method = "tuning"  # or module:Class of your own
    config.corpus = ""  # folder made by tools/prepare_corpus.py
    config.architecture = "mpobert"  # or "shared", "unshared": dense matrices of the same sizes
    # Arguments of mpojax.methods.mpobert.settings; 0 stands for their defaults.
    config.model = {
        "num_layers": 12,  # depth L
        "hidden_size": 768,  # width H
        "num_heads": 0,  # hidden size / 64
        "intermediate_size": 0,  # 4 x hidden size
        "embedding_size": 128,  # E, mapped to H
        "vocab_size": 0,  # that of the corpus
        "max_positions": 512,  # longest row
        "groups": 1,  # blocks of layers with central cores of their own
        "num_cores": 5,  # n of every chain
        "bond": config_dict.placeholder(int),  # cap of every bond; None: full bonds
        "adapter_rank": 0,  # of low-rank updates in every layer; 0: none
        "adapter_scale": 1.0,  # factor of the updates
        "adapter_targets": ("query", "key", "value", "out"),  # which matrices have them
        "adapt_outside": False,  # pooler and embedding map, too
        "share_auxiliary": False,  # auxiliary cores once a block, too
        "bias_and_norm": "shared",  # or "per_layer"
        "dropout": 0.0,  # of all kinds
    }
    config.start = {
        "kind": "scratch",  # or "teacher"
        "init": "normal",  # of chains from scratch; or "xavier", "identity"
        "stddev": 0.02,  # of matrices from scratch
        "adapter_stddev": 0.02,  # of the down maps of fresh adapters
        # Folder or hub id of a trained ALBERT, BERT or pre-training run; gives all sizes but depth.
        "teacher": "",
        "central": "mean",  # of an unshared teacher's layers; or the number of one of them
        # Of layers beyond the teacher's (from scratch: of all): or "paper_text", "paper_algorithm",
        # "theory", "theory_each_core". A deep model wants one of these.
        "scaling": "none",
        "num_teacher_layers": config_dict.placeholder(int),  # None: as many as the teacher has
        "gauge": "central",  # of chains made from matrices, one of mpojax.mpo.GAUGES
    }

    config.length = 128  # tokens of a row
    config.batch_size = 64  # rows of a step
    config.grad_accum_steps = 1  # micro-batches that it is split into
    config.steps = 10_000
    config.masking = {"rate": 0.15, "whole_words": True}  # fields of mpojax.data.Masking
    config.sop = True  # sentence order
    config.pack = True  # short texts share rows
    config.max_segments = 8

    config.seed = 0
    # All keys: adamw, lamb or muon, rates by role.
    config.optimizer = training.default_config()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 0.06
    config.optimizer.weight_decay = 0.01
    config.dtype = "float32"  # of the computation; "bfloat16" where the hardware has it
    config.remat = True  # recompute layers in the backward pass
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "expert": 1}  # -1: all remaining devices

    config.eval_batch_size = 64
    config.eval_rows = 0  # rows of the development split that are evaluated; 0: all
    config.eval_every = 500
    config.samples_every = 500  # filled masks in the log; 0: never
    config.statistics_every = 0  # update sizes and norms by layer; 0: never
    config.checkpoint_every = 500
    config.log_every = 10
    config.save_model = True
    return config
