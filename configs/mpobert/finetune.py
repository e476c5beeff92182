r"""Fine-tuning on one task, the rows of the tables: `configs/mpobert/finetune.py:VARIANT,TASK`.

    python -m experiments.train --config=configs/mpobert/paper.py:mpobert12 \
        --config.corpus=CORPUS \
        --workdir=runs/pretrain/mpobert12
    python -m experiments.train --config=configs/mpobert/finetune.py:mpobert12,rte \
        --config.data_dir=DATA --workdir=runs/finetune/mpobert12-rte
    python -m experiments.table mpobert_table1 --list    # the command of every row and task
    python -m experiments.table mpobert_table1 --workdir=runs

Variants are the keys of `VARIANTS`; tasks: the eight of `configs/mpobert/recipes.py`, and squad.

The model. An MPOBERT comes from a pre-training run, by default from `runs/pretrain/NAME/model`;
`VARIANTS` says which run makes it. Another folder, with its tokenizer: --config.model=FOLDER.
ALBERT, BERT, DistilBERT and MobileBERT come from the hub, or from --config.model=FOLDER too.

Adapters. The variants `..._adapter<rank>` add fresh ones to a model that was pre-trained without
(the paper's section 3.2.2). To have them in pre-training already (its algorithm 2): pre-train with
--config.model.adapter_rank=8 --config.model.adapt_outside=True, then fine-tune that model with
--config.adapter_phase=pre_training.

Hyper-parameters. 12 and 24 layers: the authors' commands, of 12 layers. 48 layers: known are only
the ranges that population-based tuning drew from. Their middle is here; the search itself is
`configs/sweeps/mpobert48.py`. SQuAD: none are published, ours are the middle of the paper's grid.
Dense models: the commands of MPOP's authors for its dense ALBERT, whose printed scores this paper
repeats. Everywhere the best development state is reported, as in the paper.

Cost (estimated): 12 layers, RTE: 100 steps of 128 x 128 tokens, a minute on one GPU; MNLI: 9,204
steps, an hour or two. 48 layers: eight times that. Expected: the published values, one run each, of
models that went on from a released ALBERT for 10k steps of 4,096 texts.
"""

import dataclasses
import functools
import math

import ml_collections

from configs import common
from configs.mpobert import recipes
from configs.mpop import base, rows
from mpojax import models
from mpojax.methods import mpobert, mpop

ATTENTION = r"layers/\d+/.*/(query|key|value|out)"
OUTSIDE = "pooler|embeddings/projection"
TASKS = (*recipes.RECIPES, "squad")
# The paper's metric of a task, where it is not the task's first.
METRICS = {"mrpc": "f1"}
# Ours, where nothing is published: the middle of the paper's grid, two epochs of 87,599 questions.
SQUAD = {"length": 384, "learning_rate": 2e-5, "batch_size": 32, "steps": 5476}
# Tasks without a range of their own take that of a task of their kind.
LIKE_48 = {"mrpc": "rte", "squad": "mnli"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model of the tables.

    Attributes:
      encoder: a name in `mpobert.VARIANTS` or `models.PRESETS`, or the settings themselves.
      weights: where it comes from, if the command line does not say.
      adapters: rules of the adapters that fine-tuning adds.
      pretraining: of an MPOBERT, the config (and flags) of the run that makes it.
    """

    encoder: str | models.EncoderConfig
    weights: str
    adapters: tuple[tuple[str, dict], ...] = ()
    pretraining: str = ""

    @property
    def preset(self) -> str:
        """Its name in `models.PRESETS`, or ""."""
        return self.encoder if self.encoder in models.PRESETS else ""


def _pretrained(name: str, adapters=()) -> Variant:
    made = f"runs/pretrain/{name}"
    command = f"--config=configs/mpobert/paper.py:{name} --workdir={made}"
    return Variant(name, f"{made}/model", adapters, command)


def _with_rank(rank: int, *patterns: str) -> tuple[tuple[str, dict], ...]:
    return tuple((pattern, {"rank": rank}) for pattern in patterns)


VARIANTS = {
    "mpobert12": _pretrained("mpobert12"),
    # Placed so that all four printed counts of tables 4 and 5 follow.
    **{
        f"mpobert12_adapter{rank}": _pretrained("mpobert12", _with_rank(rank, ATTENTION, OUTSIDE))
        for rank in (4, 8, 64)
    },
    # "Without parameter sharing": printed with the size of a model that shares everything.
    "all_shared12": _pretrained("all_shared12"),
    **{name: _pretrained(name) for name in ("mpobert24", "mpobert48", "mpobert48plus")},
    # The only one whose size is the printed 102 M.
    "mpobert48plus_adapter8": _pretrained("mpobert48plus", _with_rank(8, ATTENTION)),
    "albert12": Variant("albert-base-v2", "albert/albert-base-v2"),
    "albert24": Variant("albert-large-v2", "albert/albert-large-v2"),
    "albert_xxlarge12": Variant(
        dataclasses.replace(
            models.PRESETS["albert-base-v2"],
            hidden_size=4096,
            num_heads=64,
            intermediate_size=16384,
        ),
        "albert/albert-xxlarge-v2",
    ),
    "bert12": Variant("bert-base-uncased", "google-bert/bert-base-uncased"),
    "bert24": Variant("bert-large-uncased", "google-bert/bert-large-uncased"),
    "mobilebert24": Variant("mobilebert-uncased", "google/mobilebert-uncased"),
    "distilbert6": Variant("distilbert-base-uncased", "distilbert/distilbert-base-uncased"),
}


def get_config(argument: str = "mpobert12,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    name, task = common.chosen("configs/mpobert/finetune.py", argument, VARIANTS, TASKS)
    variant = VARIANTS[name]
    if task == "squad":
        config = base.get_config()
        _apply_squad(config)
    elif variant.pretraining:
        config = base.get_config()
        recipes.apply(config, task)
    else:
        config = rows.make(rows.Model("", variant.preset, variant.weights, (), 0.0), "dense", task)
    if name.startswith("mpobert48"):
        _apply_ranges(config, task)
    config.task, config.variant, config.metric = task, name, METRICS.get(task, "")
    config.model, config.architecture = variant.weights, variant.preset
    config.adapters = variant.adapters
    return config


def ranges(task: str) -> recipes.Ranges:
    """What the 48-layer models draw from on a task."""
    return recipes.RANGES_48[LIKE_48.get(task, task)]


@functools.cache
def counts(name: str) -> dict[str, int]:
    """`mpop.parameter_counts` of a variant with a head for two labels, from shapes alone."""
    return mpop.parameter_counts(mpop.abstract(*encoder(name)))


def encoder(name: str):
    """(settings, shapes) of a variant as it is fine-tuned, for two labels."""
    variant = VARIANTS[name]
    if variant.encoder in mpobert.VARIANTS:
        config, shapes = mpobert.variant(variant.encoder, masked_lm=False)
    else:
        dense = variant.encoder
        config = models.PRESETS[dense] if variant.preset else dense
        config, shapes = dataclasses.replace(config, num_labels=2), {}
    adapters = tuple((pattern, settings["rank"]) for pattern, settings in variant.adapters)
    return dataclasses.replace(config, adapters=adapters), shapes


def _apply_squad(config: ml_collections.ConfigDict) -> None:
    config.max_length, config.lengths = SQUAD["length"], (128, 256, SQUAD["length"])
    config.batch_size, config.steps = SQUAD["batch_size"], SQUAD["steps"]
    config.optimizer = recipes.optimizer(SQUAD["learning_rate"])
    config.keep_best, config.eval_every = True, SQUAD["steps"] // 10


def _apply_ranges(config: ml_collections.ConfigDict, task: str) -> None:
    """The middle of what the tuning of the 48-layer models drew from; as long as with 12 layers."""
    recipe = ranges(task)
    # The geometric mean of both ends, in two digits.
    middle = float(f"{math.sqrt(math.prod(recipe.rates)):.2g}")
    config.optimizer = recipes.optimizer(middle, middle)
    # From 0 to the largest.
    config.optimizer.weight_decay = recipe.weight_decay / 2
    # As many examples as with 12 layers, in batches of another size.
    examples = config.steps * config.batch_size
    config.grad_accum_steps = recipe.grad_accum_steps[0]
    config.batch_size = recipe.batch_sizes[0] * config.grad_accum_steps
    config.steps = examples // config.batch_size
    config.eval_every = max(1, config.steps // 10)
    warmup = recipes.WARMUPS_48[len(recipes.WARMUPS_48) // 2]
    # A fraction, at most a tenth of the run.
    config.optimizer.warmup_steps = min(0.1, float(f"{warmup / config.steps:.2g}"))
