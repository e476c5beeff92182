"""Tasks as text to text, for encoder-decoder models: a source text in, a target text out.

Labelled tasks follow T5 (Raffel et al. 2020, arXiv:1910.10683, appendix D) in the manner of the
code of "Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (Gao
et al. 2022): the name of the task, then every text behind the name of its field, and the number of
the class as target.

    mrpc sentence1: He said so. sentence2: So he said.      ->  1
    stsb sentence1: A man plays. sentence2: A man sings.    ->  2.4
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax.data.sources import glue
from mpojax.data.text import classification as text_classification
from mpojax.data.tokenizers.tokenizer import Tokenizer

# Prediction for an answer that is no score, as in T5's own evaluation.
NO_SCORE = -1.0


@dataclasses.dataclass(frozen=True)
class TextPairs:
    """One split: N source texts, N target texts and, of a labelled task, N labels.

    `targets` is None where labels are not published.
    """

    sources: Sequence[str]
    targets: Sequence[str] | None
    labels: np.ndarray | None = None

    def __post_init__(self):
        sizes = {name: len(v) for name, v in vars(self).items() if v is not None}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"sources, targets and labels must have equal lengths; got {sizes}")

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, count: int, seed: int = 0) -> "TextPairs":
        """A fixed random sample of `count` examples; all of them if there are fewer, or for -1."""
        chosen = text_classification.sample(len(self), count, seed)
        return TextPairs(
            [self.sources[i] for i in chosen],
            None if self.targets is None else [self.targets[i] for i in chosen],
            None if self.labels is None else self.labels[chosen],
        )

    def encode(
        self,
        tokenizer: Tokenizer,
        max_length: int = 128,
        max_target_length: int = 128,
        decoder_start: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Arrays of a sequence-to-sequence model, for `TrainData`, `EvalData` and `Mixture`.

        Both texts end with the tokenizer's end of text; what is longer loses tokens before it.

        Args:
          max_length: S, tokens of a source with its end.
          max_target_length: T, tokens of a target with its end; small for class numbers.
          decoder_start: the token that the decoder starts with; None: the padding token, as in T5.

        Returns:
          input_ids, attention_mask (N, S) int32; decoder_input_ids (N, T) int32, the targets behind
          the start token; targets (N, T) int32; target_weights (N, T) float32, 1 for tokens of the
          target and its end; labels (N,) where the split has them. Without targets, only the first
          two.

        Raises:
          ValueError: no end-of-text token, or a length without room for text.
        """
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer names no end-of-text token, which ends every source and target; set "
                "eos_token in its tokenizer_config.json"
            )
        lengths = {"max_length": max_length, "max_target_length": max_target_length}
        for name, length in lengths.items():
            if length < 2:
                raise ValueError(f"{name}={length} must be at least 2: text and its end")
        ids, mask = _padded(self.sources, tokenizer, max_length, "sources")
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.targets is not None:
            ids, mask = _padded(self.targets, tokenizer, max_target_length, "targets")
            start = tokenizer.pad_id if decoder_start is None else decoder_start
            shifted = np.where(mask == 1, ids, start)[:, :-1]
            arrays["decoder_input_ids"] = np.pad(shifted, ((0, 0), (1, 0)), constant_values=start)
            arrays["decoder_attention_mask"] = mask  # else experts would see padding
            arrays["targets"] = ids
            arrays["target_weights"] = mask.astype(np.float32)
        if self.labels is not None:
            arrays["labels"] = self.labels
        return arrays


def _padded(texts: Sequence[str], tokenizer: Tokenizer, length: int, what: str):
    """Token ids and mask (N, length) of texts with their ends."""
    ids = np.full((len(texts), length), tokenizer.pad_id, np.int32)
    mask = np.zeros_like(ids)
    cut = 0
    for row, tokens in enumerate(tokenizer.encode_plain(texts)):
        cut += len(tokens) >= length
        tokens = [*tokens[: length - 1], tokenizer.eos_id]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    if cut:
        logging.info("%d of %d %s are longer than %d tokens and cut", cut, len(texts), what, length)
    return ids, mask


@dataclasses.dataclass(frozen=True)
class TextToTextTask:
    """A task in words, and how generated answers are judged.

    Attributes:
      name: of the task; the sources of labelled tasks start with it.
      splits: {name: pairs of texts}.
      kind: "classification", "regression" or "generation" (any text is an answer).
      label_names: of the classes, in the order of their numbers; empty unless a classification.
      metrics: the main one first: those of the labelled task, or "bleu".
      dev_split: the split by which models are compared during development.
      score_range: of the labels of a regression.
    """

    name: str
    splits: Mapping[str, TextPairs]
    kind: str = "generation"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("bleu",)
    dev_split: str = "dev"
    score_range: tuple[float, float] = (-math.inf, math.inf)

    def __getitem__(self, split: str) -> TextPairs:
        if split not in self.splits:
            raise ValueError(
                f"task {self.name!r} has no split {split!r}; has {sorted(self.splits)}"
            )
        return self.splits[split]

    @property
    def num_labels(self) -> int:
        """Classes; 0 unless a classification."""
        return len(self.label_names)

    def target_length(self, tokenizer: Tokenizer, limit: int = 128) -> int:
        """Tokens of the longest possible target with its end; of free texts, `limit`."""
        if self.kind == "generation":
            return limit
        texts = {text for pairs in self.splits.values() for text in pairs.targets or ()}
        texts |= {str(number) for number in range(self.num_labels)}
        return 1 + max(len(ids) for ids in tokenizer.encode_plain(sorted(texts)))

    def parse(self, answer: str) -> int | float | None:
        """The class or score that a generated answer says; None: it says none."""
        answer = answer.strip()
        if self.kind == "classification":
            allowed = {str(number): number for number in range(self.num_labels)}
            return allowed.get(answer)
        if self.kind == "regression":
            try:
                score = float(answer)
            except ValueError:
                return None
            low, high = self.score_range
            return score if math.isfinite(score) and low <= score <= high else None
        raise ValueError(f"answers of {self.name!r} are any text: they stand for no label")

    def predictions(
        self, answers: Sequence[str], labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """Classes (N,) int32 or scores (N,) float32 of answers, and how many said none.

        An answer that says no class is a wrong one: it counts as the class after that of the label,
        whatever the metric (without labels: as class 0). One that says no score counts as
        `NO_SCORE`.
        """
        parsed = [self.parse(answer) for answer in answers]
        failed = np.array([value is None for value in parsed], bool)
        if self.kind == "regression":
            values = [NO_SCORE if value is None else value for value in parsed]
            return np.array(values, np.float32), int(failed.sum())
        values = np.array([value or 0 for value in parsed], np.int32)
        if labels is not None:
            wrong = (np.asarray(labels).astype(np.int32) + 1) % self.num_labels
            values = np.where(failed, wrong, values)
        return values, int(failed.sum())


def from_task(task: text_classification.TextTask) -> TextToTextTask:
    """A classification or regression as text to text; see the module.

    Classes become their numbers, scores are rounded to steps of .2 (as T5 does for STS-B).

    Raises:
      ValueError: a task of spans.
    """
    if task.kind not in ("classification", "regression"):
        raise ValueError(
            f"task {task.name!r} is a {task.kind}; only classifications and regressions can be "
            "written as text to text"
        )
    known = glue.TASKS.get(task.name)
    return TextToTextTask(
        task.name,
        {name: _pairs_of(task, split) for name, split in task.splits.items()},
        task.kind,
        task.label_names,
        task.metrics,
        task.dev_split,
        (known and known.score_range) or (-math.inf, math.inf),
    )


def _pairs_of(task: text_classification.TextTask, split: text_classification.Split) -> TextPairs:
    columns = [split.texts] if split.pairs is None else [split.texts, split.pairs]
    known = glue.TASKS.get(task.name)
    fields = (known.features or known.columns) if known else ()
    if len(fields) != len(columns):  # the user's own
        fields = ("sentence",) if len(columns) == 1 else ("sentence1", "sentence2")
    sources = [
        " ".join([task.name, *(f"{f}: {text}" for f, text in zip(fields, texts, strict=True))])
        for texts in zip(*columns, strict=True)
    ]
    targets = None
    if split.labels is not None:
        targets = [target_text(label, task.kind) for label in split.labels]
    return TextPairs(sources, targets, split.labels)


def target_text(label: int | float, kind: str) -> str:
    """A class as its number, a score in steps of .2: 2.57 is "2.6"."""
    return str(int(label)) if kind == "classification" else f"{round(float(label) * 5) / 5:.1f}"
