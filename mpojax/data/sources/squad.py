"""SQuAD v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250): the answer is a part of a paragraph."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mpojax import checks, files
from mpojax.data.text import classification
from mpojax.data.text import task as task_lib
from mpojax.data.tokenizers import tokenizer as tokenizer_lib

FILES = {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}
# Some answers may not stand where their file says; more of them mean another file.
_MISPLACED_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class SpanSplit(classification.Split):
    """Questions (`texts`) about contexts (`pairs`).

    Attributes:
      labels: (N, 2) int32, first and last-plus-one character of the first answer in its context;
        (-1, -1) where it does not stand there.
      answers: all answers that count as right, for each question.
      answer_starts: the character of the context at which each of them begins.
      ids: of the questions.
    """

    answers: Sequence[tuple[str, ...]] = ()
    answer_starts: Sequence[tuple[int, ...]] = ()
    ids: Sequence[str] = ()

    def select(self, chosen: np.ndarray) -> "SpanSplit":
        """The examples of the given indices, in that order."""
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        return SpanSplit(*(task_lib.chosen_of(column, chosen) for column in columns))

    def encode(
        self,
        tokenizer: tokenizer_lib.Tokenizer,
        max_length: int = 384,
        overlap: int | None = None,
        max_question_length: int = 64,
    ) -> dict[str, np.ndarray]:
        """Arrays of F >= N overlapping windows: see `Tokenizer.encode_windows`.

        `labels` (F, 2) int32 are the positions of the first and last token of the first answer;
        (0, 0) in windows that do not hold all of it.
        """
        arrays = tokenizer.encode_windows(
            self.texts, self.pairs, max_length, overlap, max_question_length
        )
        characters = self.labels[arrays["example_index"]]
        arrays["labels"] = token_spans(arrays["offsets"], arrays["context_mask"], characters)
        return arrays

    def text_hash(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(F,) uint64, for each window of `encode`: digest of its context and all right answers.

        Beside the arrays it tells data apart: evaluation reads these texts, no other array does.
        """
        texts = zip(self.pairs, self.answers, strict=True)
        hashes = np.array([_text_hash(*each) for each in texts], np.uint64)
        return hashes[arrays["example_index"]]


def _text_hash(context: str, answers: tuple[str, ...]) -> int:
    text = json.dumps([context, *answers]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def token_spans(offsets: np.ndarray, context: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Positions of the first and last token (F, 2) int32 of a span of characters.

    Args:
      offsets: (F, S, 2) first and last-plus-one character of each token.
      context: (F, S) 1 where a token may belong to a span.
      characters: (F, 2) first and last-plus-one character of the span.

    Returns:
      (0, 0) for windows that do not hold the whole span.
    """
    first, last = characters[:, :1], characters[:, 1:]
    # (F, S): half-open intervals [a, b) and [c, d) meet where a < d and b > c.
    touched = (context != 0) & (offsets[..., 0] < last) & (offsets[..., 1] > first)
    # First and last True; (0, 0) of rows without one, which `whole` masks.
    start, end = touched.argmax(1), touched.shape[1] - 1 - touched[:, ::-1].argmax(1)
    rows = np.arange(len(offsets))
    whole = touched.any(1)
    # A window may hold a part of the span alone: its tokens must reach over both ends.
    whole &= (offsets[rows, start, 0] <= first[:, 0]) & (offsets[rows, end, 1] >= last[:, 0])
    return np.where(whole[:, None], np.stack([start, end], 1), 0).astype(np.int32)


def is_in(folder: pathlib.Path) -> bool:
    """True if a folder holds one of the files, by their names."""
    return any((folder / name).is_file() for name in FILES.values())


def load(folder: str | os.PathLike) -> classification.TextTask:
    """The task `squad` from train-v1.1.json and dev-v1.1.json.

    Raises:
      FileNotFoundError: the folder lacks one of the files.
      ValueError: a file is no SQuAD v1.1 file; names it and the question.
    """
    folder = files.at(folder)
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        there = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} needs {' and '.join(missing)}; found {there}")
    return make_task({split: read(folder / name) for split, name in FILES.items()})


def make_task(splits: dict[str, SpanSplit]) -> classification.TextTask:
    """The task of the given splits."""
    return classification.TextTask("squad", splits, (), "span", ("f1", "exact_match"))


def read(path: pathlib.Path) -> SpanSplit:
    """One file in SQuAD's own JSON layout."""
    try:
        articles = checks.parse_json(path.read_text(encoding="utf-8"), f"{path} is")["data"]
        rows = [
            (
                question["question"],
                paragraph["context"],
                [answer["text"] for answer in question["answers"]],
                [answer["answer_start"] for answer in question["answers"]],
                question["id"],
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has not the layout of SQuAD v1.1 (data, paragraphs, qas, answers): {error!r}"
        ) from error
    return make_split(path, rows)


def make_split(
    source: str | os.PathLike, rows: Sequence[tuple[str, str, Sequence[str], Sequence[int], str]]
) -> SpanSplit:
    """A split of (question, context, answers, their first characters, id) rows.

    Raises:
      ValueError: no rows, a question without answers, or many answers that do not stand in their
        context where they should; names `source` and the question.
    """
    if not rows:
        raise ValueError(f"{source} holds no examples")
    labels, misplaced = np.full((len(rows), 2), -1, np.int32), []
    for number, (_, context, answers, starts, name) in enumerate(rows):
        if not len(answers):
            raise ValueError(
                f"{source}, question {name!r}: no answers; SQuAD v1.1 has one for each question "
                "(v2.0 is another task)"
            )
        text, start = answers[0], int(starts[0])
        if not text.strip() or context[start : start + len(text)] != text:
            misplaced.append(name)
            continue
        # White space around an answer is no part of its span: no token begins or ends in it.
        begin = start + len(text) - len(text.lstrip())
        labels[number] = begin, begin + len(text.strip())
    if len(misplaced) > _MISPLACED_SHARE * len(rows):
        raise ValueError(
            f"{source}: the answers of {len(misplaced)} questions, e.g. {misplaced[0]!r}, do not "
            "stand in the context at their answer_start"
        )
    if misplaced:
        logging.warning("%s: answers not at their answer_start: %s", source, misplaced)
    questions, contexts, answers, starts, ids = map(list, zip(*rows, strict=True))
    return SpanSplit(
        [question.strip() for question in questions],
        labels,
        contexts,
        [tuple(texts) for texts in answers],
        [tuple(int(start) for start in places) for places in starts],
        ids,
    )
