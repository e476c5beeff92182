"""Next words of decoders and encoder-decoders: loss, losses of experts' routers, perplexity.

Batches of language modelling hold input_ids (B, S), targets (B, S), target_weights (B, S) float and
maybe attention_mask (B, S). Batches of sequence to sequence hold input_ids, attention_mask (B, S);
decoder_input_ids, targets, target_weights (B, T) and maybe decoder_attention_mask (B, T).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mpojax import checks
from mpojax.data import pipeline
from mpojax.training import evaluation
from mpojax.training import state as state_lib
from mpojax.training import step as step_lib

_NEEDED = ("input_ids", "targets", "target_weights")


def language_model_loss(
    balance_weight: float = 1e-2, z_weight: float = 0.0, label_smoothing: float = 0.0
) -> step_lib.LossFunction:
    """Cross-entropy of the targets, plus the losses of the experts' routers, with dropout.

    The loss is a mean over targets by their weights; the routers' losses, see
    `nn.RouterStatistics`, are summed over layers. Of a micro-batch, the batch also holds
    `target_weights_total`, see `TrainStep`; the routers' losses are then means over micro-batches.

    Args:
      balance_weight: of the load balance of experts (Fedus et al., JMLR 2022, equation 4).
      z_weight: of the squared logarithm of the routers' partition sums (Zoph et al., 2022).
      label_smoothing: probability that is spread evenly over all words.

    Returns:
      (model, batch, key) -> (loss, metrics). The model has a `forward`, as `models.LanguageModel`
      and `models.EncoderDecoder` do. Metrics: `task_loss`, cross-entropy without smoothing, in
      nats; `accuracy`; with experts, as means over layers, `router/balance`, `router/z_loss`,
      `router/entropy`, `router/dropped` and `router/max_load`, the load of the busiest expert over
      that of an even one.

    Raises:
      ValueError: a weight below 0, or label_smoothing outside of [0, 1).
    """
    checks.check_value("balance_weight", balance_weight, checks.number(0))
    checks.check_value("z_weight", z_weight, checks.number(0))
    checks.check_value("label_smoothing", label_smoothing, checks.number(0, below=1))

    def loss_fn(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        output = forward(model, batch, key)
        losses, hits = _by_target(output.logits, batch["targets"])
        weights = batch["target_weights"]
        total = batch.get("target_weights_total", jnp.sum(weights))
        total = jnp.maximum(total, 1e-6)  # without any target the loss is 0
        task = jnp.sum(losses * weights) / total
        metrics = {"task_loss": task, "accuracy": jnp.sum(hits * weights) / total}
        loss = task
        if label_smoothing:
            # (1 - s) CE + s mean_v(-log p_v) = CE + s (mean_v(-log p_v) + log p_target)
            excess = _smoothing_excess(output.logits, batch["targets"]) * weights
            loss = loss + label_smoothing * jnp.sum(excess) / total
        if output.routing:
            balance, z_loss = (_over_layers(output.routing, n) for n in ("balance", "z_loss"))
            loss = loss + balance_weight * jnp.sum(balance) + z_weight * jnp.sum(z_loss)
            metrics |= router_metrics(output.routing)
        return loss, metrics

    return loss_fn


def forward(model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> Any:
    """The model's output for a batch of either kind; `key` turns dropout on.

    Raises:
      ValueError: a batch that lacks arrays, or a model without `forward`.
    """
    missing = [name for name in _NEEDED if name not in batch]
    if missing:
        raise ValueError(f"the batch lacks {missing}; it has {sorted(batch)}")
    if not hasattr(model, "forward"):
        raise ValueError(
            f"a {type(model).__name__} has no forward; this loss is for language models and "
            "encoder-decoders"
        )
    masks = batch.get("attention_mask"), batch.get("decoder_attention_mask")
    if "decoder_input_ids" not in batch:
        return model.forward(batch["input_ids"], masks[0], dropout_key=key)
    return model.forward(
        batch["input_ids"], masks[0], batch["decoder_input_ids"], masks[1], dropout_key=key
    )


def router_metrics(routing: Sequence[Any]) -> dict[str, jax.Array]:
    """Means over all layers with experts; see `language_model_loss`.

    Args:
      routing: `nn.RouterStatistics` of stacked layers, leading axis = layer.
    """
    names = ("balance", "z_loss", "entropy", "dropped")
    made = {f"router/{name}": jnp.mean(_over_layers(routing, name)) for name in names}
    largest = [jnp.max(s.load, axis=-1) * s.load.shape[-1] for s in routing]
    return made | {"router/max_load": jnp.mean(jnp.concatenate(largest))}


def predict(model: Any, batch: dict) -> dict[str, jax.Array]:
    """Sums over the targets of every row (B,), for `evaluation.Evaluator`."""
    losses, hits = _by_target(forward(model, batch).logits, batch["targets"])
    weights = batch["target_weights"]
    values = {"loss": losses * weights, "accuracy": hits * weights, "weight": weights}
    return {name: jnp.sum(value, axis=-1) for name, value in values.items()}


def metrics(columns: evaluation.Columns, num_words: int | None = None) -> dict[str, float]:
    """Over all targets: `loss` (nats), `accuracy`, `perplexity`, and with the number of words of
    the text `word_perplexity`, the exponential of the same nats divided by them.

    Raises:
      ValueError: no target counts.
    """
    totals = {
        name: float(np.sum(columns[name], dtype=np.float64))
        for name in ("loss", "accuracy", "weight")
    }
    if not totals["weight"] > 0:
        raise ValueError("no target counts: all target_weights of the evaluation data are 0")
    loss, accuracy = (totals[name] / totals["weight"] for name in ("loss", "accuracy"))
    made = {"loss": loss, "accuracy": accuracy, "perplexity": _exp(loss)}
    if num_words:
        made["word_perplexity"] = _exp(totals["loss"] / num_words)
    return made


class LanguageModelEvaluator(evaluation.Evaluator):
    """See `evaluator`."""

    def __init__(self):
        super().__init__(predict, metrics, ("loss", "accuracy", "perplexity"))

    def __call__(
        self,
        model: nnx.Module | state_lib.TrainState,
        data: pipeline.EvalBatches,
        mesh: Mesh | None = None,
    ) -> dict[str, float]:
        return metrics(self.columns(model, data, mesh), getattr(data, "num_words", None))


def evaluator() -> LanguageModelEvaluator:
    """The evaluator of batches of either kind, without dropout; see `metrics`.

    The perplexity per word is given where the data has `num_words`, the words of its text.
    """
    return LanguageModelEvaluator()


def _by_target(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and, as 0 or 1, whether the best word is right; of each target."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    hits = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return losses, hits


def _smoothing_excess(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """By how much the cross-entropy of evenly likely words is above that of the target."""
    # -log p_v = logsumexp(z) - z_v: the sum cancels, z_target - mean_v z_v is left
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return right - jnp.mean(logits, axis=-1)


def _over_layers(routing: Sequence[Any], name: str) -> jax.Array:
    return jnp.concatenate([getattr(statistics, name) for statistics in routing])


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700.0 else math.inf
