r"""Defaults of every run of a language model: one model, its texts or task, one seed.

    python -m experiments.train --config=configs/mpoe/base.py --config.model=FOLDER \
        --config.dataset=wikitext2 --config.data_dir=DATA --workdir=runs/mine
    python -m experiments.train --config=configs/mpoe/base.py --config.model=FOLDER \
        --config.task=rte --config.data_dir=DATA --workdir=runs/rte

A decoder is tuned (or, without a model, trained) on plain text, `config.dataset`; an
encoder-decoder on one task (`config.task`) or several (`config.tasks`) as text to text, whatever
the dataset is. As it stands: everything trained, no experts. Fields that only one of the two reads
are marked.
"""

import ml_collections
from ml_collections import config_dict

from configs import common
from mpojax.methods import mpoe
from mpojax.methods.mpoe import gradient_mask

WEIGHTS = {
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
    "gpt2": "openai-community/gpt2",
}


def get_config() -> ml_collections.ConfigDict:
    """Default config."""
    config = common.get_config()
    config.num_layers_kept = 0  # only the first layers of the model; 0: all
    # A model from scratch: fields of a mpojax.models.DecoderConfig, or with kind="encoder_decoder"
    # of an EncoderDecoderConfig. On the command line all at once:
    # --config.model_config="{'hidden_size': 128, 'num_layers': 4, ...}".
    config.model_config = {}

    # Experts: fields of mpojax.compression.ExpertRule.
    config.experts = {
        "form": "dense",  # no experts; or "mpoe", "unshared" (a central core each), "switch"
        # Regular expression over paths such as layers/3/feed_forward; each becomes a mixture.
        "blocks": r"(.*/)?layers/\d+/feed_forward",
        "number": 8,
        "router": "switch",
        "k": 2,
        "capacity_factor": config_dict.placeholder(float),  # None: no token is dropped
        "dispatch": "auto",
        "structure": "auto",
        "remat": True,
        "router_bias": True,
        "share_bias": False,
        "cores": 5,
        "factorization": "published",  # or "separable"
        "bond": config_dict.placeholder(int),  # cap of every bond; None: full bonds, exact
        "gauge": "identity",
    }
    config.balance_weight = 1e-2  # of the load-balance loss, summed over layers; authors: 0
    config.z_weight = 0.0  # of the router's z-loss
    config.label_smoothing = 0.0

    # Plain text: a name of mpojax.data.load_texts, several joined by +.
    config.dataset = "wikitext2"
    config.train_split = "train"
    config.dev_dataset = ""  # "": `dataset`
    config.test_dataset = ""  # "": `dev_dataset`
    config.test_tokens = 0  # only the first so many of the test text; 0: all
    config.dev_split, config.test_split = "dev", "test"  # "": no such evaluation
    config.length = 1024  # tokens of a block
    config.bleu_prompts = 0  # continuations of the test text that are generated for BLEU; 0: none
    config.bleu_prompt_length, config.bleu_length = 64, 64  # tokens
    # Words of BLEU as sacrebleu cuts them: "13a", or "none" for texts that are cut already, as
    # WikiText is (13a would make three free words of every <unk>).
    config.bleu_tokenize = "13a"
    config.samples = 0  # texts that are generated for BLEU and Self-BLEU; 0: none
    config.sample_length = 64
    config.sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # fields of models.Sampling

    # Text to text.
    config.task = ""  # one task
    config.tasks = ()  # or several at once
    config.temperature = 10.0  # a task's share ~ (its examples)^(1/temperature); 1: by size
    config.max_length, config.target_length = 128, 16
    config.train_examples, config.dev_examples = 0, 0  # 0: all
    config.beams = 1

    config.eval_batch_size = 32
    config.optimizer = gradient_mask.default_config()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0.05
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "expert": 1}  # -1: all remaining devices
    config.router_every = 0  # steps between two looks at every expert's load; 0: at the end
    return config


def put(config: ml_collections.ConfigDict, architecture: str, variant: str) -> None:
    """Puts a variant of a published model into a config: weights, experts, gradient mask.

    Chains start in the authors' gauge, in which they are trained. The probability of the mask is
    ours, see `mpoe.mask_rate`; masked are whole steps, moments and decay included.

    Raises:
      ValueError: an unknown variant.
    """
    config.architecture, config.model = architecture, WEIGHTS[architecture]
    fields = mpoe.fields(variant)
    if fields is not None:
        config.experts.update(fields)
        if fields["form"] != "switch":
            config.experts.gauge = "symmetric"
    config.optimizer.central_mask.update(
        {"rate": mpoe.mask_rate(variant), "mode": "skip", "granularity": "step"}
    )
