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
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import checks, files
from mpojax.data import mixture, pipeline, tasks
from mpojax.data.sources import bible, file_tasks, glue, readers
from mpojax.data.sources.glue import splits as glue_splits
from mpojax.data.text import classification as text_classification
from mpojax.data.text import task as task_lib
from mpojax.data.tokenizers.tokenizer import Tokenizer

# Prediction for an answer that is no score, as in T5's own evaluation.
NO_SCORE = -1.0

PAIRS_PREFIX = "pairs:"
_OWN = (file_tasks.PREFIX, PAIRS_PREFIX)
_ANY_TEXT = ("labels", "prefix")  # options with values that may be names of tasks
_BIBLE = "bible"
_OPTIONS = ("source", "target", "prefix", "name", "quoting")


@dataclasses.dataclass(frozen=True)
class TextPairs(task_lib.Examples):
    """One split: N source texts, N target texts and, of a labelled task, N labels.

    `targets` is None where labels are not published.
    """

    sources: Sequence[str]
    targets: Sequence[str] | None
    labels: np.ndarray | None = None

    def __post_init__(self):
        task_lib.check_lengths(vars(self))

    def __len__(self) -> int:
        return len(self.sources)

    def select(self, chosen: np.ndarray) -> "TextPairs":
        columns = (self.sources, self.targets, self.labels)
        return TextPairs(*(task_lib.chosen_of(column, chosen) for column in columns))

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
          ValueError: no end-of-text token, or a length that holds no text.
        """
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer names no end-of-text token, which ends every source and target; set "
                "eos_token in its tokenizer_config.json"
            )
        lengths = {"max_length": max_length, "max_target_length": max_target_length}
        checks.check(lengths, dict.fromkeys(lengths, checks.integer(2).noted("text and its end")))
        ids, mask = _padded(self.sources, tokenizer, max_length, "sources")
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.targets is not None:
            ids, mask = _padded(self.targets, tokenizer, max_target_length, "targets")
            start = tokenizer.pad_id if decoder_start is None else decoder_start
            # Decoder inputs are the targets one step later: [start, t_0, ..., t_{T-2}].
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
class TextToTextTask(task_lib.Task):
    """A task in words, and how generated answers are judged.

    The sources of labelled tasks start with its name.

    Attributes:
      kind: "classification", "regression" or "generation" (any text is an answer).
      label_names: of the classes, in the order of their numbers; empty unless a classification.
      metrics: the main one first: those of the labelled task, or "bleu".
      dev_split: the split by which models are compared during development.
      score_range: of the labels of a regression.
    """

    kind: str = "generation"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("bleu",)
    dev_split: str = "dev"
    score_range: tuple[float, float] = (-math.inf, math.inf)

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


def load_text_to_text(
    name: str, data_dir: str | os.PathLike | None = None, *, paper_splits: bool = True
) -> TextToTextTask:
    """Loads a task as text to text.

    `name` is one of

    - a GLUE task, `vader_movie`, or your own labelled files as `file:...`: see `load_task`;
    - `bible`: King James to World English verses (see `bible`); fetches its own data;
    - your own pairs of texts in .tsv, .csv, .jsonl or .parquet files, one per split:
      `pairs:train=a.tsv,dev=b.tsv;source=old;target=new;prefix=translate`, where `source` and
      `target` are columns (by default named so), `prefix` comes before every source (default:
      nothing), `name` is that of the task in results and `quoting` is as for `file:...`. Relative
      paths start at `data_dir`.

    Args:
      data_dir: see `load_task`.
      paper_splits: GLUE tasks with labelled splits for selection and test: see
        `glue_splits`. Off: the splits as published.

    Raises:
      FileNotFoundError, ImportError, ConnectionError, ValueError: as `load_task`.
    """
    if name == _BIBLE:
        splits = {
            split: TextPairs([f"bible: {text}" for text in old], new)
            for split, (old, new) in bible.load().items()
        }
        return TextToTextTask(name, splits)
    if name.startswith(PAIRS_PREFIX):
        return _load_pairs(name, data_dir)
    tasks.check_task(name, also=(_BIBLE,))
    task = tasks.load_task(name, data_dir)
    if paper_splits and name in glue.TASKS:
        task = glue_splits.paper_splits(task)
    return from_task(task)


def task_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Several tasks from a comma list such as "cola,rte", from a sequence, or from both at once.

    Commas inside `file:...` and `pairs:...` stay with them: between splits (train=a,dev=b), and in
    the options that take several values or any text, `metric` up to the name of a task, `labels`
    and `prefix` up to another such entry. Behind those two, name the other tasks first, or give a
    sequence.

        >>> task_names("file:train=a.tsv,dev=b.tsv;name=mine,rte")
        ('file:train=a.tsv,dev=b.tsv;name=mine', 'rte')
    """
    lists = [value] if isinstance(value, str) else value
    return tuple(entry for text in lists for entry in _entries(text))


def _entries(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        if found and _belongs(part.strip(), found[-1]):
            found[-1] += f",{part}"
        elif part.strip():
            found.append(part)
    return [entry.strip() for entry in found]


def _belongs(part: str, entry: str) -> bool:
    """True if a part of a comma list belongs to the entry before it."""
    entry = entry.strip()
    if not part or not entry.startswith(_OWN) or part.startswith(_OWN):
        return False
    _, semicolon, option = entry.rpartition(";")
    if not semicolon:
        return "=" in part
    name = option.partition("=")[0].strip()
    return name in _ANY_TEXT or (name == "metric" and part not in (*tasks.TASKS, _BIBLE))


def _load_pairs(line: str, data_dir: str | os.PathLike | None) -> TextToTextTask:
    splits, *rest = line.removeprefix(PAIRS_PREFIX).split(";")
    example = "'pairs:train=a.tsv,dev=b.tsv;source=COLUMN;target=COLUMN'"
    named = file_tasks.pairs(splits.split(","), line, example)
    options = file_tasks.pairs([part for part in rest if part.strip()], line, example)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"{line!r}: unknown options {unknown}; allowed are {list(_OPTIONS)}")
    source, target = options.get("source", "source"), options.get("target", "target")
    prefix = f"{options['prefix']} " if "prefix" in options else ""
    loaded = {}
    for split, path in named.items():
        file = files.join(data_dir or ".", path)
        table = readers.read(file, {source, target}, quoting=options.get("quoting", "auto"))
        if not len(table):
            raise ValueError(f"{table.path} holds no examples")
        sources = [prefix + text for text in table.texts(source)]
        loaded[split] = TextPairs(sources, table.texts(target))
    return TextToTextTask(options.get("name", "pairs"), loaded)


def multi_task(
    arrays: Mapping[str, pipeline.Arrays],
    batch_size: int,
    *,
    seed: int,
    temperature: float = 10.0,
    lengths: Sequence[int] = (),
) -> mixture.Mixture:
    """Training batches of several tasks, sampled with a temperature.

    A task of N examples gets a share proportional to N ** (1 / temperature): 1 = by size, 10 =
    nearly equal (the paper's), infinity = equal.

    Args:
      arrays: {task: arrays of its training split, as `TextPairs.encode` gives them}, all of one
        shape, with labels.

    Raises:
      ValueError: a temperature below 1; further as `Mixture`.
    """
    if temperature != math.inf:
        checks.check_value("temperature", temperature, checks.number(1).noted("1: by size"))
    return mixture.Mixture(
        arrays, batch_size, seed=seed, exponent=1.0 / temperature, lengths=lengths
    )
