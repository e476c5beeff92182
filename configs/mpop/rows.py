"""What the rows of the MPOP paper have in common: hyper-parameters, variants, caps, as data.

Hyper-parameters: the run scripts of the authors' release, for ALBERT-base-v2 (the paper's appendix
contradicts them; the scripts agree with its results). For the other models none are published; they
take those of ALBERT. Everywhere: length 128, AdamW, clipping at 1, linear decay after the warm-up,
no weight decay, seed 42, best development state.
"""

import dataclasses
import math
from collections.abc import Mapping

import ml_collections

from configs.mpop import base
from mpojax import models
from mpojax.data.sources.glue import hub as glue_hub
from mpojax.methods import mpop

EMBEDDING, FEED_FORWARD, ATTENTION, OUTPUT, POOLER = (
    "embeddings/word",
    "layers/.*/feed_forward/(up|down)",
    "layers/.*/attention/(query|key|value)",
    "layers/.*/attention/out",
    "pooler",
)
GROUPS = (EMBEDDING, FEED_FORWARD, ATTENTION, OUTPUT, POOLER)
VARIANTS = {
    "dense": "everything dense, everything trained",
    "full": "every matrix an MPO at full bonds, everything trained",
    "full_lfa": "the same, central cores frozen",
    "mpop": "from full_lfa, squeezed to the budget",
    "dir": "cut once, then tuned with frozen central cores",
    "svd": "plain low rank within the budget, first factors frozen",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Hyper-parameters of one task.

    Attributes:
      learning_rate: of everything but auxiliary cores.
      auxiliary_rate: of auxiliary cores; None where the scripts leave it at the base rate.
      warmup: steps.
      batch_size: examples of a step.
      steps: of a run; None where the scripts count `epochs`.
      changes: {variant: fields that its runs had otherwise}.
    """

    learning_rate: float
    auxiliary_rate: float | None
    warmup: int
    batch_size: int
    steps: int | None = None
    epochs: int | None = None
    changes: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)


TASKS = {
    "sst2": Task(2.7e-5, 2.8e-6, 500, 32, epochs=3),
    "mnli": Task(3e-5, 2e-6, 1000, 32, epochs=3),
    "qnli": Task(1e-5, 2.8e-6, 1986, 32, epochs=3),
    "cola": Task(
        1e-5,
        1e-5,
        320,
        16,
        steps=5336,
        changes={
            "full": {"learning_rate": 4.08e-5, "auxiliary_rate": 1.0955e-5, "weight_decay": 0.0976}
        },
    ),
    "stsb": Task(2e-5, 2e-5, 214, 16, steps=7000, changes={"dense": {"steps": 3598}}),
    "qqp": Task(
        5e-5,
        5e-5,
        1000,
        32,
        steps=14_000,
        changes={
            "full": {"learning_rate": 5e-6, "auxiliary_rate": 5e-6},
            "dir": {"learning_rate": 5e-6, "auxiliary_rate": 5e-6},
        },
    ),
    "mrpc": Task(2e-5, 2e-5, 200, 32, steps=800),
    "rte": Task(3e-5, 3e-5, 200, 32, steps=800),
    "wnli": Task(2e-5, None, 200, 8, steps=800),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of the tables.

    Attributes:
      file: the config's file, for messages.
      architecture: a name in `mpojax.models.PRESETS`.
      weights: hub id of the checkpoint.
      groups: patterns of its matrices, none matched twice.
      budget: parameters that "mpop", "svd" (and "dir", where no caps are published) keep.
      variants: what the argument of the config may name.
    """

    file: str
    architecture: str
    weights: str
    groups: tuple[str, ...]
    budget: float
    variants: tuple[str, ...] = tuple(VARIANTS)


def read_argument(model: Model, argument: str) -> tuple[str, str]:
    """(variant, task) of a config's argument "VARIANT,TASK".

    Raises:
      ValueError: an unknown variant or task; names all.
    """
    variant, _, task = argument.partition(",")
    if variant not in model.variants or task not in TASKS:
        raise ValueError(
            f"{model.file}:{argument}: the argument must be VARIANT,TASK; variants: "
            f"{', '.join(model.variants)}; tasks: {', '.join(TASKS)}."
        )
    return variant, task


def make(model: Model, variant: str, task: str) -> ml_collections.ConfigDict:
    """The config of one row and task, but for what is special to one model."""
    config = base.get_config()
    config.architecture, config.model = model.architecture, model.weights
    config.variant, config.task = variant, task
    config.seed = 42
    config.keep_best = variant != "mpop"  # squeezing decides itself what is kept
    _set_hyper_parameters(config, variant, task)
    if variant == "dense":
        return config
    settings = {"form": "low_rank"} if variant == "svd" else {}
    config.rules = tuple((pattern, dict(settings)) for pattern in model.groups)
    config.trainable = "all" if variant == "full" else "lightweight"
    if variant in ("svd", "dir"):
        config.budget = float(model.budget)
    if variant == "mpop":
        config.method, config.squeeze = "squeezing", squeeze(model.budget)
    return config


def squeeze(budget: float) -> dict:
    """How the variant "mpop" is squeezed; the paper gives neither step, nor drop, nor length."""
    return {
        "budget": float(budget),
        "max_metric_drop": 0.01,  # one point of the development metric
        "steps": 200,
        "max_phases": 40,
        "multiple": 16,
        "cuts_per_phase": 2,
    }


def capped(caps: tuple[int, int, int], **settings) -> tuple[tuple[str, dict], ...]:
    """Rules for caps of embedding, feed-forward and attention (query, key, value).

    The attention output and the pooler stay uncut, as in the released code.
    """
    bonds = {EMBEDDING: caps[0], FEED_FORWARD: caps[1], ATTENTION: caps[2]}
    rules = []
    for pattern in GROUPS:
        entry = dict(settings) if pattern in (ATTENTION, OUTPUT, POOLER) else {}
        rules.append((pattern, entry | ({"bond": bonds[pattern]} if pattern in bonds else {})))
    return tuple(rules)


_COUNTS: dict[str, dict[str, int]] = {}  # a model is built, in shapes, for each


def counts(config: ml_collections.ConfigDict, bond: int | None = None) -> dict[str, int]:
    """`mpop.counts` of a config, for two labels as in the paper.

    Args:
      bond: cap for matrices whose rules fix none; default: that of the config.
    """
    rules = [(pattern, dict(settings)) for pattern, settings in config.rules]
    bond = config.bond if bond is None else bond
    what = (config.architecture, rules, config.trainable, bond)
    if repr(what) not in _COUNTS:
        architecture = models.PRESETS[config.architecture]
        _COUNTS[repr(what)] = mpop.counts(
            architecture, rules, config.trainable, num_labels=2, bond=bond
        )
    return dict(_COUNTS[repr(what)])


def _set_hyper_parameters(config, variant: str, name: str) -> None:
    changes = dict(TASKS[name].changes.get(variant, {}))
    config.optimizer.weight_decay = changes.pop("weight_decay", 0.0)
    task = dataclasses.replace(TASKS[name], **changes)
    config.batch_size = task.batch_size
    epoch = math.ceil(glue_hub.SIZES[name]["train"] / task.batch_size)
    config.steps = task.epochs * epoch if task.steps is None else task.steps
    config.optimizer.learning_rate = task.learning_rate
    # As a fraction, so that a shorter run has a shorter warm-up. The schedule of a squeezed run
    # counts the steps of all its phases; it warms up in the first.
    steps = config.steps
    if variant == "mpop":
        phases = squeeze(1.0)
        steps += phases["max_phases"] * phases["steps"]
    config.optimizer.warmup_steps = task.warmup / steps
    if variant != "dense" and task.auxiliary_rate is not None:
        config.optimizer.role_learning_rates = {"auxiliary": task.auxiliary_rate}
    config.eval_every = 500 if config.steps > 5000 else 100
