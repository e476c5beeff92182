r"""BERT-base into six layers by BERT-of-Theseus, plain and over-parameterised: rows of table 1.

    python -m experiments.train --config=configs/mpop/bert.py:dense,rte --config.model=FOLDER \
        --config.data_dir=DATA --config.save_model=True --workdir=runs/bert/dense-rte
    python -m experiments.train --config=configs/opdf/bert.py:theseus_opdf,rte \
        --config.model=FOLDER --config.data_dir=DATA --config.teacher=runs/bert/dense-rte/model \
        --workdir=runs/opdf/theseus_opdf-rte
    python -m experiments.table opdf_table1 --list    # the command of every row

`VARIANT,TASK`. Variants: theseus (dense), theseus_svd (L = 0), theseus_mpo (L of the task, cores
left alone), theseus_opdf (the same, aligned with the teacher's). Tasks: rte mrpc stsb cola sst2
qnli qqp mnli. The student starts as the teacher's first six layers; embeddings, pooler and head are
frozen. Rates, epochs, growth and L: the authors' code and logs, the first value where these have
several; batch 32, length 128, AdamW without decay, linear to zero without warm-up, seed 42. The
authors align nothing (their loss has no gradient); rates of cores are not divided here, as theirs.
theseus_opdf pulls layer l towards the last layer that it replaces, 2l + 1, by the authors' map,
not towards the layer l with which it starts.
"""

import dataclasses
import functools
import math
import statistics

import ml_collections

from configs import common
from configs.opdf import base
from mpojax import models
from mpojax.data.sources.glue import hub as glue_hub
from mpojax.methods import mpop, opdf


@dataclasses.dataclass(frozen=True)
class Task:
    """Published settings of one task.

    Attributes:
      learning_rate, epochs: of a run.
      growth: of the probability of replacement, for each step.
      num_inner_cores: L.
      start: the probability at the first step.
    """

    learning_rate: float
    epochs: int
    growth: float
    num_inner_cores: int
    start: float = 0.3


TASKS = {
    "rte": Task(1e-6, 20, 1e-4, 3),
    "mrpc": Task(1e-6, 20, 1e-4, 3),
    "stsb": Task(2e-5, 15, 1e-4, 3),
    "cola": Task(1e-4, 20, 1e-4, 1),
    "sst2": Task(1e-6, 20, 3e-4, 5),
    "qnli": Task(5e-6, 3, 1e-4, 8),
    "qqp": Task(5e-6, 3, 1e-4, 3),
    "mnli": Task(5e-6, 3, 1e-4, 1, start=0.5),
}
VARIANTS = ("theseus", "theseus_svd", "theseus_mpo", "theseus_opdf")


def get_config(argument: str = "theseus_opdf,rte") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, name = common.chosen("configs/opdf/bert.py", argument, VARIANTS, TASKS)
    task, config = TASKS[name], base.get_config()
    config.architecture, config.model = "bert-base-uncased", "google-bert/bert-base-uncased"
    config.variant, config.task, config.seed = variant, name, 42
    config.distillation = "theseus"
    config.replacement.start, config.replacement.growth = task.start, task.growth
    config.student_layers = tuple(range(6))
    config.opdf.enabled = variant != "theseus"
    config.opdf.num_inner_cores = 0 if variant == "theseus_svd" else task.num_inner_cores
    config.opdf.alignment = "procrustes_core" if variant == "theseus_opdf" else "none"
    config.rate_exponent = 0.0
    config.batch_size = 32
    config.steps = task.epochs * math.ceil(glue_hub.SIZES[name]["train"] / config.batch_size)
    config.optimizer.learning_rate = task.learning_rate
    return config


def counts(variant: str) -> dict[str, float]:
    """{"trainable": while training, mean over tasks; "total": after merging} of a variant."""
    dense = parameters(6, None)
    if variant == "theseus":
        return {"trainable": dense, "total": dense}
    is_svd = variant == "theseus_svd"
    numbers = [0 if is_svd else task.num_inner_cores for task in TASKS.values()]
    trained = statistics.fmean(parameters(6, number) for number in numbers)
    return {"trainable": trained, "total": dense}


@functools.cache
def parameters(layers: int, num_inner_cores: int | None) -> int:
    """Of a BERT of some layers with a head of two classes; `num_inner_cores` None: dense."""
    config = models.EncoderConfig(
        # Vocabulary, width, layers, heads, inner width of BERT-base.
        *(30_522, 768, layers, 12, 3072),
        max_positions=512,
        pooling="pooler",
        num_labels=2,
    )
    shapes = {}
    if num_inner_cores is not None:
        shapes = opdf.planned_shapes(config, opdf.OPDFSettings(num_inner_cores=num_inner_cores))
    return sum(models.count_parameters(mpop.abstract(config, shapes)).values())
