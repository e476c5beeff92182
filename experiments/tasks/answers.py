"""Evaluation of an encoder-decoder: texts are generated, read as labels, and scored."""

import statistics
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mpojax import data, models, training
from mpojax.methods import multitask
from mpojax.training import evaluation, progress
from mpojax.training.scores import bleu, labelled
from mpojax.training.tasks import language_modeling

AVERAGE = multitask.TasksEvaluator.AVERAGE


class AnswersEvaluator:
    """Generates the answers of one or more tasks and scores them.

    Called with a state and {task: `data.EvalData`}: metrics by name; of several tasks by
    `task/name`, and `average` of their main ones. `invalid` is the fraction of answers that say no
    label.

    Args:
      tasks: by name.
      tokenizer: reads what was generated.
      target_lengths: tokens of the longest answer of each task, its end counted.
      beams: of beam search; 1 for greedy answers.
    """

    def __init__(
        self,
        tasks: Mapping[str, data.TextToTextTask],
        tokenizer: data.Tokenizer,
        target_lengths: Mapping[str, int],
        beams: int = 1,
    ):
        self.tasks, self.tokenizer, self.target_lengths = tasks, tokenizer, target_lengths
        self.sampling = models.Sampling(beams=beams)
        self.main = {name: task.metrics[0] for name, task in tasks.items()}
        # Decoding would rebuild every matrix at each token otherwise.
        self._merged = jax.jit(models.merged)
        self._nats = jax.jit(lambda model, batch: language_modeling.predict(model, batch)["loss"])

    @property
    def metric(self) -> str:
        """Name of the metric that counts."""
        return AVERAGE if len(self.tasks) > 1 else next(iter(self.main.values()))

    def __call__(self, state, splits: Mapping[str, data.EvalData], mesh=None) -> dict[str, float]:
        """Metrics on the splits; `mesh` is that of the state."""
        if jax.process_count() > 1:
            # Generation runs on each process by itself, on all parameters.
            state = training.sharding.replicated(state, mesh or training.make_mesh())
        model = self._merged(state.model() if hasattr(state, "model") else state)
        found = {name: self._scores(name, model, split) for name, split in splits.items()}
        if len(self.tasks) == 1:
            return next(iter(found.values()))
        metrics = {f"{task}/{n}": v for task, own in found.items() for n, v in own.items()}
        metrics[AVERAGE] = statistics.fmean(own[self.main[task]] for task, own in found.items())
        return metrics

    def _scores(self, name: str, model, split: data.EvalData) -> dict[str, float]:
        answers, arrays = self.answers(name, model, split)
        task = self.tasks[name]
        if task.kind == "generation":
            truths = [
                self.tokenizer.decode(ids[weights > 0])
                for ids, weights in zip(arrays["targets"], arrays["target_weights"], strict=True)
            ]
            return {"bleu": bleu.bleu(answers, truths, 4)}
        labels = arrays["labels"]
        predictions, failed = task.predictions(answers, labels)
        scored = {n: labelled.METRICS[n](predictions, labels) for n in task.metrics}
        return scored | {"invalid": failed / len(answers)}

    def answers(self, name: str, model, split: data.EvalData) -> tuple[list[str], dict]:
        """(the answers of a task, arrays of its examples), in the order of the batches."""
        answers, kept, advance = [], [], progress.lines(f"{name}: answering", at_end=False)
        for index in range(len(split)):
            batch = split.rows(index, slice(None))
            self._check_finite(name, model, split, index)
            made = models.generate(
                model,
                jnp.asarray(batch["input_ids"]),
                jnp.asarray(batch["attention_mask"]),
                max_new_tokens=self.target_lengths[name],
                sampling=self.sampling,
            )
            ids, lengths, real = (
                np.asarray(a) for a in (made.ids, made.lengths, batch["example_mask"])
            )
            rows = np.flatnonzero(real)
            answers += [self.tokenizer.decode(ids[row, : lengths[row]]) for row in rows]
            kept.append({key: np.asarray(array)[rows] for key, array in batch.items()})
            advance(index + 1, len(split), "")
        logging.info("%s: %d answers, such as %r", name, len(answers), answers[0])
        return answers, {key: np.concatenate([part[key] for part in kept]) for key in kept[0]}

    def _check_finite(self, name: str, model, split: data.EvalData, index: int) -> None:
        """Of logits that are NaN any token is the best one; the loss of the true answer is NaN."""
        examples = split.order[index * split.batch_size :]
        evaluation.check_finite(
            {"nats": np.asarray(self._nats(model, split.rows(index, slice(None))))},
            np.pad(examples, (0, split.batch_size), mode="edge"),  # of copies that fill up
            (f"{name}/{self.main[name]}",),
            f"batch {index + 1} of {len(split)}",
        )
