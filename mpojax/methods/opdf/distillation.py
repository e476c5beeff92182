"""Losses of a distilled text classifier or regression: outputs, hidden states, aligned cores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, models, mpo
from mpojax.methods.opdf import student
from mpojax.training import objectives
from mpojax.training import state as state_lib


class Pair(nnx.Module):
    """A student with its teacher as one model, which computes what the student does.

    The teacher, and its constants, are in the state of a run without being trained: they have
    neither gradients nor optimizer state, and a checkpoint holds them.

    Attributes:
      student, teacher: text classifiers, or decoders, of equal outputs.
      targets: {name: constant arrays}, or empty.
      chains: the student before its matrices were rebuilt for a step, else None.
    """

    def __init__(
        self, student: nnx.Module, teacher: nnx.Module, targets: Mapping[str, Sequence] = ()
    ):
        self.student, self.teacher = student, teacher
        self.chains = nnx.data(None)
        self.target_names = tuple(targets)
        constants = [[nnx.Variable(jnp.asarray(a)) for a in targets[name]] for name in targets]
        self.constants = nnx.List([nnx.List(arrays) for arrays in constants])

    @property
    def targets(self) -> dict[str, list[jax.Array]]:
        return {
            name: [variable[...] for variable in arrays]
            for name, arrays in zip(self.target_names, self.constants, strict=True)
        }

    @property
    def cores(self) -> nnx.Module:
        """The student with its matrices as they are trained."""
        return self.student if self.chains is None else self.chains

    @property
    def config(self):
        return self.student.config

    @property
    def shapes(self):
        return self.student.shapes

    def __call__(self, *args, **more) -> jax.Array:
        return self.student(*args, **more)

    def forward(self, *args, **more) -> Any:
        return self.student.forward(*args, **more)


def of_student(path: tuple, variable: Any) -> bool:
    """NNX filter of the student's parameters in a `Pair`."""
    return path[0] == "student" and isinstance(variable, nnx.Param)


_WEIGHT = checks.number(0)


@checks.settings()
class Weights:
    """Weights of the terms of a student's loss.

    Attributes:
      logits: of the distance to the teacher's probabilities; of a regression, to its outputs.
      task: of the loss with the labels.
      hidden: of the distance of the last hidden states.
      layers: of the mean distance of the hidden states of mapped layers.
      attention: of the mean divergence of the attention of mapped layers.
      temperature: that both sides' logits are divided by. No factor of its square.
    """

    logits: float = checks.field(_WEIGHT, 1.0)
    task: float = checks.field(_WEIGHT, 0.0)
    hidden: float = checks.field(_WEIGHT, 0.0)
    layers: float = checks.field(_WEIGHT, 0.0)
    attention: float = checks.field(_WEIGHT, 0.0)
    temperature: float = checks.field(checks.number(above=0), 1.0)

    def __post_init__(self):
        if not any((self.logits, self.task, self.hidden, self.layers, self.attention)):
            raise ValueError("all weights are zero: nothing would be learned.")


def distillation_loss(
    weights: Weights,
    extra: Callable[[Pair], jax.Array] | None = None,
    layer_map: Sequence[int] = (),
) -> objectives.LossFunction:
    """The loss of a `Pair` as the training loop takes it.

    The batch mean of sum_c p_c (log p_c - log q_c), p and q the teacher's and the student's
    probabilities at the temperature, plus the other terms by their weights. The teacher has no
    dropout and no gradient.

    Args:
      weights: of the terms.
      extra: another term, such as the alignment of cores; its value is the metric `alignment`.
      layer_map: for each layer of the student the teacher's that it is compared with.

    Raises:
      ValueError: layers are compared, but there is no map.
    """
    if (weights.layers or weights.attention) and not layer_map:
        raise ValueError("the weights layers and attention need a layer_map.")

    def loss(pair: Pair, batch: dict, key: jax.Array | None) -> tuple[jax.Array, dict]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = [batch.get(name) for name in names]
        logits, states, attention = _outputs(pair.student, inputs, key, weights)
        teacher_logits, teacher_states, teacher_attention = jax.lax.stop_gradient(
            _outputs(pair.teacher, inputs, None, weights)
        )
        mask = batch.get("attention_mask")
        terms = {
            "distillation": _output_distance(pair, logits, teacher_logits, weights.temperature)
        }
        total = weights.logits * terms["distillation"]
        # The student has run already: the objective calls what only hands its logits out.
        task_loss, metrics = task_objective(pair)(lambda *_: logits, batch, key)
        if weights.task:
            terms["task_loss"] = task_loss
            total = total + weights.task * terms["task_loss"]
        if weights.hidden:
            terms["hidden"] = hidden_distance(states[-1], teacher_states[-1], mask)
            total = total + weights.hidden * terms["hidden"]
        mapped = np.array(layer_map, np.int32)
        if weights.layers:
            pairs = zip(states, teacher_states[mapped], strict=True)
            parts = [hidden_distance(one, other, mask) for one, other in pairs]
            terms["layers"] = sum(parts) / len(parts)
            total = total + weights.layers * terms["layers"]
        if weights.attention:
            terms["attention"] = attention_distance(attention, teacher_attention[mapped], mask)
            total = total + weights.attention * terms["attention"]
        if extra is not None:
            terms["alignment"] = extra(pair)
            total = total + terms["alignment"]
        return total, {**terms, **metrics}

    return loss


def task_objective(pair: Pair) -> objectives.LossFunction:
    """The loss of the task alone: with one output it is a regression."""
    kind = "regression" if pair.config.num_labels == 1 else "classification"
    return objectives.objective(kind)


def _output_distance(pair: Pair, logits, teacher_logits, temperature: float) -> jax.Array:
    if pair.config.num_labels == 1:
        return jnp.mean(jnp.square(logits - teacher_logits))
    return logit_distance(logits, teacher_logits, temperature)


def _outputs(model, inputs, key, weights: Weights):
    """(logits, hidden states of all layers, or of the last alone, their attention or None)."""
    if weights.layers or weights.attention:
        return model.states(*inputs, key, attention=weights.attention > 0)
    logits, hidden = model.forward(*inputs, key)
    return logits, hidden[None], None


def logit_distance(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Mean over rows of the Kullback-Leibler divergence of the teacher's probabilities, nats.

    Args:
      student, teacher: logits (batch, classes).
    """
    one, other = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (student, teacher))
    # KL(p || q) = sum_c p_c (log p_c - log q_c)
    return jnp.mean(jnp.sum(jnp.exp(other) * (other - one), axis=-1))


def hidden_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean squared difference at real tokens, over the teacher's mean square there.

    Args:
      student, teacher: (batch, length, hidden) of equal width.
      mask: (batch, length), nonzero at real tokens; None: all real.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"hidden states of shapes {student.shape} and {teacher.shape} cannot be compared: the "
            "student must be as wide as its teacher."
        )
    one, other = (x.astype(jnp.float32) for x in (student, teacher))
    real = jnp.ones(one.shape[:2], jnp.float32) if mask is None else (mask != 0).astype(jnp.float32)
    # (batch, length, 1)
    real = real[..., None]
    return jnp.sum(real * jnp.square(one - other)) / jnp.sum(real * jnp.square(other))


def attention_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean Kullback-Leibler divergence of the teacher's attention at real positions, nats.

    Args:
      student, teacher: probabilities (layers, batch, heads, attending, attended) of equal shapes.
      mask: (batch, length), nonzero at real tokens; None: all real.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"attention of shapes {student.shape} and {teacher.shape} cannot be compared: the "
            "student must have as many heads as its teacher."
        )
    # The student's is zero where the teacher's is, at padding: there the product is to be zero.
    least = jnp.finfo(teacher.dtype).tiny
    logs = jnp.log(jnp.maximum(teacher, least)) - jnp.log(jnp.maximum(student, least))
    # Means over layers and heads; positions are weighed by the mask below.
    divergence = jnp.mean(jnp.sum(teacher * logs, axis=-1), axis=(0, 2))
    real = jnp.ones_like(divergence) if mask is None else (mask != 0).astype(divergence.dtype)
    return jnp.sum(real * divergence) / jnp.sum(real)


def alignment_loss(
    student: models.Model, targets: Mapping[str, Sequence], alignment: str, relative: bool = True
) -> jax.Array:
    """Mean over matrices of the relative distance between student and teacher; a scalar.

    The teacher's cores are constants. Works under jit, with gradients to the student's cores; the
    central core has none but with "weight".

    Args:
      student: from `over_parameterise`.
      targets: from `over_parameterise`.
      alignment, relative: see `OPDFSettings`.
    """
    if alignment == "none" or not targets:
        return jnp.zeros((), jnp.float32)
    flat = state_lib.flatten_variables(student)
    arrays = models.logical_arrays(student, flat)
    parts = []
    for path, goal in targets.items():
        cores = [arrays[f"{path}/cores/{k}"] for k in range(len(goal))]
        goal = [jax.lax.stop_gradient(jnp.asarray(core)) for core in goal]
        parts.append(_distance(cores, goal, alignment, relative))
    return sum(parts) / len(parts)


def _distance(cores, goal, alignment: str, relative: bool) -> jax.Array:
    if alignment == "projector":
        return mpo.projector_distance(cores, goal)
    if alignment != "weight":
        return mpo.core_distance(cores, goal, relative)
    # ||W - W_t||^2 / ||W_t||^2: independent of gauges, reaches the central core.
    one, other = (mpo.to_matrix(tuple(c)) for c in (cores, goal))
    scale = jnp.mean(jnp.square(other)) if relative else 1.0
    return jnp.mean(jnp.square(one - other)) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)


def rebuilt_once(pair: Pair) -> Pair:
    """The pair with the student's matrices rebuilt from their cores: once for all micro-batches."""
    ready = Pair(models.merged(pair.student), pair.teacher)
    ready.target_names, ready.constants = pair.target_names, pair.constants
    ready.chains = pair.student
    return ready


def optimizer_fields(setup: Any, model: models.Model, chains: student.OPDFSettings) -> dict:
    """Fields of the optimizer of a model of exact chains: cores have a rate of their own.

    It is n^-a times the config's, n the most cores of a chain and a its `rate_exponent` (a core's
    step on the matrix grows with n, so that the best rate falls), unless the config gives rates of
    roles itself; cores decay towards their start.

    Args:
      setup: a `protocol.Setup`.
      model: what is trained.
      chains: by which `model`, or its student, gets chains.
    """
    planned = student.planned_shapes(model.config, chains)
    cores = max(shape.num_cores for shape in planned.values())
    own = setup.options.training
    # A step of e on each of n cores moves the matrix by about n e.
    rate = cores**-own.rate_exponent * own.optimizer["learning_rate"]
    fields = setup.optimizer_fields(model, central=rate, auxiliary=rate)
    if fields["weight_decay"]:
        # Zero would pull a product of cores away from the matrix it starts as.
        fields["decay_to_start"] = (r".*/cores/\d+",)
    return fields
