r"""GPT-2 on plain text, tables 1, 3 and 4: `configs/mpoe/gpt2.py:VARIANT,TEXTS`.

    python -m experiments.train --config=configs/mpoe/gpt2.py:mpoe8,wikitext2 \
        --config.data_dir=DATA --workdir=runs/gpt2/mpoe8-wikitext2
    python -m experiments.table mpoe_table3 --list       # the command of every row
    python -m experiments.table mpoe_table3 --workdir=runs

Variants: those of `mpojax.methods.mpoe`. Table 1 has dense, moe8, switch8, mpoe8 and mpoe16 ("++"),
table 3 unshared8 ("w/o PS") and mpoe8_nomask ("w/o GM"), table 4 mpoe8_m3, _m7 and _m9.

Texts, below DATA: `wikitext2` is `wikitext-2/{train,valid,test}.txt`; `news` (EMNLP2017 WMT News)
and `imdb` are folders of those names with .txt or .jsonl files, one sentence or review in each line
of a .jsonl file; a twentieth of them each is held out for development and test, since the paper
does not say how it splits them. Weights come from the hub, or from --config.model=FOLDER.

Published: the base model, 8 experts, "MPOE++" 16, everything trained, metrics, mean of three runs
(--config.seed=0, 1, 2). Biases are not mentioned; here each expert has its own, --config.experts.
share_bias=True gives all experts of a map one.

Ours, all of it: AdamW with rate 5e-5, linear decay, a warm-up of a twentieth, clipping at 1,
batches of 8 blocks of 1,024 tokens, three epochs of WikiText-2 (876 steps), 3,000 steps elsewhere,
GPT-2's own dropout, no label smoothing; the best state on development text; the probability of the
mask, 1 - 1/n, and the weight of the balance loss. Generation: BLEU of 500 greedy continuations of
64 tokens behind 64 of the test text, against the true ones; BLEU of 1,000 samples of 64 tokens at
temperature 1 against the whole test text, and of each against the others (Self-BLEU).

Cost (estimated): WikiText-2, 7.2 M tokens: ten minutes on one GPU, with 8 experts half as much
again. Expected: perplexity near 21 for all variants; the paper's range is 20.7 to 21.9, with 24.0
for three cores.
"""

import functools

import ml_collections

from configs.mpoe import base
from mpojax.methods import mpoe

# 3 epochs of 292 batches; of the larger texts a part.
STEPS = {"wikitext2": 876, "news": 3000, "imdb": 3000}


def get_config(argument: str = "mpoe8,wikitext2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TEXTS."""
    variant, _, texts = argument.partition(",")
    if texts not in STEPS:
        raise ValueError(
            f"configs/mpoe/gpt2.py:{argument}: the argument is VARIANT,TEXTS with texts of "
            f"{', '.join(STEPS)} and a variant such as {', '.join(mpoe.VARIANTS)}."
        )
    config = base.get_config()
    config.dataset, config.variant = texts, variant
    base.put(config, "gpt2", variant)
    config.length, config.batch_size, config.eval_batch_size = 1024, 8, 8
    config.steps = STEPS[texts]
    config.keep_best, config.eval_every = True, config.steps // 10
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-5, 0.05
    config.optimizer.schedule = "linear"
    config.optimizer.clip_norm, config.optimizer.weight_decay = 1.0, 0.0
    if texts == "wikitext2":
        config.bleu_prompts, config.bleu_prompt_length, config.bleu_length = 500, 64, 64
        config.bleu_tokenize = "none"
    else:
        config.samples, config.sample_length = 1000, 64
        config.sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return config


@functools.cache
def counts(variant: str) -> dict[str, int]:
    """`mpoe.counts` of a variant, from shapes alone."""
    return mpoe.counts("gpt2", variant)
