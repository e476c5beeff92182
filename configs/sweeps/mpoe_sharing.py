r"""What experts should share, how often the shared core should move, and how many to have.

    python -m tools.texts.fetch --out=TEXTS
    python -m tools.train_tokenizer --text=brown+wikipedia+austen+wordnet --data_dir=TEXTS \\
        --vocab_size=2048 --out=WORDS
    SWEEP="python -m experiments.sweep --config.cell.tokenizer=WORDS --config.cell.data_dir=TEXTS \\
        --config=configs/sweeps/mpoe_sharing.py"
    $SWEEP:base --workdir=runs/mpoe/base
    $SWEEP:main,DATA --config.cell.model=runs/mpoe/base/cells/seed=0/model --workdir=runs/mpoe/main
    $SWEEP:masks,DATA --config.cell.model=... --workdir=runs/mpoe/masks
    $SWEEP:experts,DATA --config.cell.model=... --workdir=runs/mpoe/experts
    python -m experiments.render mpoe_sharing --runs=runs/mpoe

A decoder of GPT-2's kind (4 layers, width 128, 2,048 tokens of vocabulary), sized for two cores, is
trained on Brown, Austen and WordNet (`base`), then tuned on Wikipedia articles and the validation
text of WikiText-2 (in DATA), as it is or after its feed-forward blocks have become experts; tested
on the test text of WikiText-2. All runs see equally many tokens, in an order that the seed decides,
which draws the routers and the masks, too.
`main`: dense, Switch, MPOE, MPOE without sharing, MPOE without mask; eight experts, three seeds.
`masks`: MPOE by the probability of masking. `experts`: MPOE with 4 and 16; both one seed. `smoke`:
every kind of run for two steps, on texts of any folder. DATA is an absolute path.
"""

import ml_collections

from configs.mpoe import base

SIZES = ("base", "main", "masks", "experts", "smoke")
NUMBER = 8


def get_config(argument: str = "main") -> ml_collections.ConfigDict:
    """`argument` is a name in `SIZES`; of the runs that tune followed by a comma and DATA."""
    size, _, folder = argument.partition(",")
    if size not in SIZES:
        raise ValueError(f"configs/sweeps/mpoe_sharing.py:{size}: one of {', '.join(SIZES)}.")
    config = ml_collections.ConfigDict()
    config.cell = cell = _base_cell() if size in ("base", "smoke") else _cell(folder)
    config.seeds, config.plots = (0, 1, 2), ()
    if size == "base":
        config.seeds, config.axes = (0,), (("seed", "seeds"),)
    elif size == "main":
        config.axes = (("seed", "seeds"), ("kind", kinds(NUMBER)))
    elif size == "masks":
        config.seeds = (0,)
        config.axes = (("seed", "seeds"), ("mask", {f"p_b {p:g}": _mpoe(8, p) for p in (0.5, 1.0)}))
    elif size == "experts":
        config.seeds = (0,)
        config.axes = (("seed", "seeds"), ("number", {f"n {n}": _mpoe(n) for n in (4, 16)}))
    else:
        cell.steps, cell.eval_every, cell.save_model = 2, 2, False
        config.axes = (("kind", kinds(NUMBER)),)
    return config


def kinds(number: int) -> dict[str, dict]:
    """{row: fields of its run}."""
    return {
        "dense": _row("dense", "dense", 1, None),
        "Switch": _row("Switch", "switch", number, None),
        "MPOE": _row("MPOE", "mpoe", number, 1 - 1 / number),
        "without sharing": _row("without sharing", "unshared", number, None),
        "without mask": _row("without mask", "mpoe", number, None),
    }


def _mpoe(number: int, mask: float | None = None) -> dict:
    rate = 1 - 1 / number if mask is None else mask
    return _row(f"MPOE, n {number}, p_b {rate:g}", "mpoe", number, rate)


def _row(variant: str, form: str, number: int, mask: float | None) -> dict:
    return {
        "variant": variant,
        "experts.form": form,
        "experts.number": number,
        "optimizer.central_mask.rate": mask,
    }


def _base_cell() -> ml_collections.ConfigDict:
    config = _common()
    config.variant = "base"
    config.dataset = "brown+austen+wordnet"
    config.model_config = {
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 512,
        "max_positions": 128,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    config.dev_dataset, config.test_split = "wikipedia", ""
    config.steps, config.optimizer.learning_rate = 2000, 2e-3
    config.eval_every, config.log_every, config.save_model = 500, 20, True
    return config


def _cell(folder: str) -> ml_collections.ConfigDict:
    config = _common()
    config.dataset = f"wikipedia+file:train={folder}/wikitext-2/valid.txt"
    config.dev_dataset, config.test_dataset = "wikipedia", f"file:test={folder}/wikitext-2/test.txt"
    config.test_tokens = 2**17
    config.steps, config.optimizer.learning_rate = 200, 1e-3
    config.eval_every, config.router_every = 100, 100
    return config


def _common() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.length, config.batch_size, config.eval_batch_size = 128, 16, 64
    config.optimizer.weight_decay, config.optimizer.warmup_steps = 0.01, 0.05
    config.log_every, config.checkpoint_every = 10, 100
    return config
