"""BERT-of-Theseus: layers of a student replace those of their teacher at random.

Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing" (EMNLP 2020). In
every step each layer of the student stands, with probability p, for the run of the teacher's layers
that it will replace; p grows linearly to one. The loss is that of the task alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mpojax import checks, models, nn
from mpojax.methods.opdf import distillation
from mpojax.training import objectives

_RATE = "replacement_rate"


@checks.settings()
class ReplacementSettings:
    """The probability min(1, start + growth * step) that a layer is the student's.

    Attributes:
      start: probability at step 0 that a layer is the student's.
      growth: what every step adds to it.
    """

    start: float = checks.field(checks.number(0, 1), 0.3)
    growth: float = checks.field(checks.number(0), 1e-4)

    def rate(self, step: int) -> float:
        """The probability at a step, counted from 0."""
        return min(1.0, self.start + self.growth * step)


class Rated:
    """Batches of training data with the probability of their step for each row."""

    def __init__(self, data: Any, settings: ReplacementSettings):
        self.data, self.settings = data, settings
        self.batch_size = data.batch_size

    def rows(self, step: int, rows: slice) -> Mapping[str, np.ndarray]:
        """The named rows of batch `step`, counted from 0."""
        batch = self.data.rows(step, rows)
        number = len(next(iter(batch.values())))
        return {**batch, _RATE: np.full((number,), self.settings.rate(step), np.float32)}


def of_successors(path: tuple, variable: Any) -> bool:
    """NNX filter of the layers of the student in a `distillation.Pair`: what is trained."""
    starts = tuple(path[:3]) == ("student", "encoder", "stacks")
    return starts and isinstance(variable, nnx.Param)


def runs_of_layers(layer_map: Sequence[int], teacher_layers: int) -> list[range]:
    """The teacher's layers that each layer of the student replaces, up to the mapped one.

    Raises:
      ValueError: a map that does not grow, or does not end with the teacher's last layer.
    """
    # Layer i of the student replaces the teacher's from the one after ends[i] to ends[i + 1].
    ends = [-1, *layer_map]
    if any(b <= a for a, b in itertools.pairwise(ends)) or ends[-1] != teacher_layers - 1:
        raise ValueError(
            f"layer_map={tuple(layer_map)} must grow and end with {teacher_layers - 1}, the "
            "teacher's last layer: each layer of the student replaces those up to its own."
        )
    return [range(a + 1, b + 1) for a, b in itertools.pairwise(ends)]


def mixed_logits(
    pair: distillation.Pair,
    batch: Mapping[str, jax.Array],
    layer_map: Sequence[int],
    rate: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Logits (batch, classes) of the teacher with layers of the student in it.

    Embeddings, pooler and head are the student's; the teacher's layers run without dropout.

    Args:
      layer_map: for each layer of the student the last of the teacher's that it replaces.
      rate: () probability that a layer is the student's; one draw for each layer and step.
      key: of the draws and of dropout.
    """
    student, teacher = pair.student, pair.teacher.encoder
    runs = runs_of_layers(layer_map, pair.teacher.config.num_layers)
    choice_key, dropout_key = jax.random.split(key)
    embed_key, layers_key, head_key = nn.split_or_none(dropout_key, 3)
    # r_i ~ Bernoulli(p), one for each module of the student (Xu et al., 2020).
    chosen = jax.random.bernoulli(choice_key, rate, (len(runs),))
    mask = batch.get("attention_mask")
    context = models.Context(mask=models.self_attention_mask(mask))
    x = student.encoder.embeddings(
        batch["input_ids"], token_types=batch.get("token_type_ids"), dropout_key=embed_key
    )
    for place, run in enumerate(runs):
        layer_key = jax.random.fold_in(layers_key, place)

        def successor(x, place=place, layer_key=layer_key):
            return student.encoder.layer(place)(x, context, layer_key)[0]

        def predecessors(x, run=run):
            for layer in run:
                x = teacher.layer(layer)(x, context)[0]
            return x

        # One branch runs, unlike with a weighted sum of both: a step costs one of the two.
        x = jax.lax.cond(chosen[place], successor, predecessors, x)
    return student.apply_head(x, mask, head_key)


def replacement_loss(layer_map: Sequence[int], extra=None) -> objectives.LossFunction:
    """The loss of a `distillation.Pair` on `Rated` data: that of the task, of the mixed model.

    Args:
      layer_map: see `mixed_logits`.
      extra: pair -> another term, such as the alignment of cores: the metric `alignment`.
    """

    def loss(pair: distillation.Pair, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        # The same in every row.
        rate = batch[_RATE][0]
        logits = mixed_logits(pair, batch, layer_map, rate, key)
        total, metrics = distillation.task_objective(pair)(lambda *_: logits, batch, key)
        metrics = metrics | {"task_loss": total, _RATE: rate}
        if extra is not None:
            metrics["alignment"] = extra(pair)
            total = total + metrics["alignment"]
        return total, metrics

    return loss
