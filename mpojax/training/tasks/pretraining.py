"""Masked words and the order of sentences: loss, evaluation, and filled masks to read.

Batches are those of `mpojax.data.PretrainData`. Devlin et al. (NAACL 2019), section 3.1; Lan et al.
(ICLR 2020), section 3.1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from mpojax import checks, files
from mpojax.training import evaluation, hooks, sharding

TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")


def pretraining_loss(model: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Cross-entropy of the masked words plus that of the sentence order, with dropout.

    Args:
      model: a `models.PretrainingModel`.
      batch: token arrays and `segments` (B, S); `mlm_positions`, `mlm_labels`, `mlm_weights`
        (B, P); `sop_positions`, `sop_labels`, `sop_weights` (B, K), which may be absent. Of a
        micro-batch also `mlm_weights_total` and `sop_weights_total`, see `TrainStep`.
      key: random key of the step.

    Returns:
      The sum of both, each a mean over the positions of weight 1; and {metric: scalar}.
    """
    sums = _sums(model, batch, key)
    totals = {name: jnp.sum(value) for name, value in sums.items()}
    for name in ("mlm", "sop"):
        # Sums of a micro-batch over the weight of an average one: the mean of the losses of all
        # micro-batches is then that of the whole batch, however its masked words are spread.
        if f"{name}_weights_total" in batch:
            totals[f"{name}_weight"] = batch[f"{name}_weights_total"]
    metrics = _means(totals, jnp.maximum)
    loss = metrics["mlm_loss"] + metrics.get("sop_loss", jnp.float32(0.0))
    return loss, metrics


def predict(model: Any, batch: dict) -> dict[str, jax.Array]:
    """Sums over the positions of every row (B,), for `evaluation.Evaluator`."""
    return _sums(model, batch, None)


def metrics(columns: evaluation.Columns) -> dict[str, float]:
    """Means over all positions: mlm_loss (nats), mlm_accuracy, the same of the sentence order."""
    totals = {name: float(np.sum(value, dtype=np.float64)) for name, value in columns.items()}
    return _means(totals, max)


def evaluator() -> evaluation.Evaluator:
    """The evaluator of a `data.PretrainEvalData`."""
    return evaluation.Evaluator(predict, metrics, ("mlm_loss", "mlm_accuracy"))


def _sums(model, batch: Mapping, key) -> dict[str, jax.Array]:
    """Per row: loss, hits and weight, of both objectives."""
    mlm_logits, sop_logits = model(
        *(batch.get(name) for name in TOKEN_ARRAYS),
        key,
        segments=batch.get("segments"),
        mlm_positions=batch["mlm_positions"],
        sop_positions=batch.get("sop_positions"),
    )
    found = _row_sums("mlm", mlm_logits, batch["mlm_labels"], batch["mlm_weights"])
    if "sop_labels" in batch:
        if sop_logits is None:
            raise ValueError(
                "the batch has sentence orders, but the model has no head for them; give it "
                "num_labels=2, or make batches without them (sop=False)."
            )
        found |= _row_sums("sop", sop_logits, batch["sop_labels"], batch["sop_weights"])
    return found


def _row_sums(name: str, logits, labels, weights) -> dict[str, jax.Array]:
    # (B, P), or (B, K) of the sentence order; summed over the positions of a row.
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32) * weights
    values = {"loss": losses, "accuracy": hits, "weight": weights}
    return {f"{name}_{what}": jnp.sum(value, axis=-1) for what, value in values.items()}


def _means(totals: Mapping, maximum) -> dict:
    means = {}
    for name in ("mlm", "sop"):
        if f"{name}_weight" in totals:
            weight = maximum(totals[f"{name}_weight"], 1e-6)  # without any position the loss is 0
            for what in ("loss", "accuracy"):
                means[f"{name}_{what}"] = totals[f"{name}_{what}"] / weight
    return means


class FilledMasks(hooks.Hook):
    """Now and then logs what the model puts into the masks of a few texts.

    Also appended to `samples.txt` in the run's folder. A mask filled rightly reads `[word]`, one
    filled wrongly `[guess / word]`.

    Args:
      batch: one batch of evaluation data, rows (B, S), on the host.
      tokenizer: for the text.
      every: steps between two looks.
      rows: how many texts.
      tokens: of each text.
    """

    name, order = "filled_masks", 20

    def __init__(
        self,
        batch: Mapping[str, np.ndarray],
        tokenizer: Any,
        every: int,
        rows: int = 2,
        tokens: int = 48,
    ):
        checks.check({"every": every}, {"every": checks.integer(1)}, "FilledMasks")
        self.batch = {name: np.asarray(array) for name, array in batch.items()}
        self._tokens = {number: token for token, number in tokenizer.vocabulary().items()}
        self.every, self.rows, self.tokens = every, rows, tokens
        self._guess: Callable | None = None

    def after_step(self, loop: Any) -> None:
        if loop.step % self.every and loop.step != loop.steps:
            return
        with loop.untimed():
            # All processes compute, for the state is spread over all of them; one writes.
            everywhere = NamedSharding(loop.mesh, PartitionSpec())
            placed = sharding.device_put(self.batch, dict.fromkeys(self.batch, everywhere))
            if self._guess is None:
                self._guess = jax.jit(_guesses, static_argnums=0, out_shardings=everywhere)
            state = loop.state
            guesses = self._guess(state.definition, state.trainable, state.frozen, placed)
            if jax.process_index() == 0:
                self._write(loop, np.asarray(guesses))

    def _write(self, loop, guesses: np.ndarray) -> None:
        lines = []
        for row in range(min(self.rows, len(guesses))):
            lines.append(self._text(row, guesses[row]))
            logging.info("step %d, filled masks: %s", loop.step, lines[-1])
        if loop.folder is not None:
            path = loop.folder / "samples.txt"
            before = path.read_text(encoding="utf-8") if path.is_file() else ""
            content = "".join(f"step {loop.step}: {line}\n" for line in lines)
            files.write_atomic(path, before + content)

    def _text(self, row: int, guesses: Sequence[int]) -> str:
        batch = {name: array[row] for name, array in self.batch.items()}
        tokens = [self._tokens[int(i)] for i in batch["input_ids"]]
        for place, label, weight, guess in zip(
            batch["mlm_positions"], batch["mlm_labels"], batch["mlm_weights"], guesses, strict=True
        ):
            if weight:
                right, chosen = (self._tokens.get(int(i), "?") for i in (label, guess))
                text = right if right == chosen else f"{chosen} / {right}"
                tokens[int(place)] = f"[{text}]"
        length = int(np.sum(batch["attention_mask"]))
        return " ".join(tokens[: min(length, self.tokens)])


def _guesses(definition, trainable, frozen, batch: dict) -> jax.Array:
    model = definition.merge(trainable, frozen)
    logits, _ = model(
        *(batch.get(name) for name in TOKEN_ARRAYS),
        segments=batch.get("segments"),
        mlm_positions=batch["mlm_positions"],
    )
    return jnp.argmax(logits, axis=-1)
