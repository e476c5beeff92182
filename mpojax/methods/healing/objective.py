"""What a healed model learns: the trained parameters, the original as its teacher, the loss."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mpojax import checks, models, training
from mpojax.methods import mpop
from mpojax.methods.opdf.distillation import Pair
from mpojax.models import evaluation
from mpojax.training import objectives
from mpojax.training.tasks import language_modeling

# The original's name in a `Pair`, and so in a state: no checkpoint holds it.
TEACHER = "teacher"
WEIGHT, DISTILL_WEIGHT = checks.number(0, 1), 0.5


@dataclasses.dataclass(frozen=True)
class Learning:
    """Model, filter of what is trained, and loss, as the training loop takes them.

    Attributes:
      model: the student, or where it is distilled a `Pair` with the original.
      trainable: filter of trained parameters in `model`.
      student_trainable: the same in the student.
      loss: what training minimises.
    """

    model: nnx.Module
    trainable: Any
    student_trainable: Any
    loss: objectives.LossFunction

    @staticmethod
    def student_of(model: nnx.Module) -> models.LanguageModel:
        """The student in a trained `model`."""
        return model.student if isinstance(model, Pair) else model


def learning(
    student: models.LanguageModel,
    teacher: models.LanguageModel | None,
    *,
    trainable: str,
    distill_weight: float,
) -> Learning:
    """How a compressed decoder learns.

    Args:
      student: the compressed model.
      teacher: the original; may be None where `distill_weight` is 0.
      trainable: a name in `mpop.FILTERS`, "adapters", or last_1, last_2, ...
      distill_weight: a of the loss, see `healing_loss`.

    Raises:
      ValueError: no decoder, no teacher to learn from, or one with other tokens; a set of
        parameters that the student does not have.
    """
    checks.check_value("distill_weight", distill_weight, WEIGHT)
    evaluation.check_decoder(student, "healing needs")
    student, inner = mpop.with_trainable(student, trainable)
    if not distill_weight:
        return Learning(student, inner, inner, training.language_model_loss())
    _check_teacher(student, teacher, distill_weight)
    accept = nnx.filterlib.to_predicate(inner)

    def of_student(path: tuple, variable: Any) -> bool:
        return path[0] == "student" and accept(path[1:], variable)

    return Learning(Pair(student, teacher), of_student, inner, healing_loss(distill_weight))


def healing_loss(distill_weight: float) -> objectives.LossFunction:
    """a KL(p || q) + (1 - a) (-log q(next token)), the mean over targets by their weights.

    p are the original's probabilities over the whole vocabulary, without dropout or gradient, q
    the student's. Routers of experts add their losses as in `training.language_model_loss`.

    Args:
      distill_weight: a, 0 to 1.

    Returns:
      (pair, batch, key) -> (loss, metrics): `distillation`, KL(p || q) in nats, and those of
      `training.language_model_loss`.
    """
    by_labels = training.language_model_loss()

    def loss_fn(pair: Pair, batch: dict, key: jax.Array | None) -> tuple[jax.Array, dict]:
        output = language_modeling.forward(pair.student, batch, key)
        teacher = jax.lax.stop_gradient(language_modeling.forward(pair.teacher, batch).logits)
        # The loss by labels reads the logits that are there: one forward pass for both terms.
        known = types.SimpleNamespace(forward=lambda *_, **__: output)
        labels, metrics = by_labels(known, batch, key)
        weights = batch["target_weights"]
        # Of the whole batch where this is a micro-batch, so that parts add up to the same mean.
        total = batch.get("target_weights_total", jnp.sum(weights))
        divergence = jnp.sum(_divergences(output.logits, teacher) * weights)
        divergence = divergence / jnp.maximum(total, 1e-6)
        loss = distill_weight * divergence + (1.0 - distill_weight) * labels
        return loss, metrics | {"distillation": divergence}

    return loss_fn


def _divergences(logits_BxSxV: jax.Array, teacher_BxSxV: jax.Array) -> jax.Array:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), nats, (B, S)."""
    log_q, log_p = (jax.nn.log_softmax(x, axis=-1) for x in (logits_BxSxV, teacher_BxSxV))
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def _check_teacher(student, teacher, distill_weight: float) -> None:
    if teacher is None:
        raise ValueError(
            f"distill_weight={distill_weight} learns from the original model: pass it as teacher, "
            "or learn by labels alone with distill_weight=0."
        )
    evaluation.check_decoder(teacher, "distillation needs as a teacher")
    sizes = [model.config.vocab_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the student has {sizes[0]:,} tokens and its teacher {sizes[1]:,}: their "
            "probabilities cannot be compared. The teacher is the model that was compressed."
        )
