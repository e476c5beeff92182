"""Adapter to EleutherAI's lm_eval (the extra `lm_eval`): its tasks run on any decoder here.

    import lm_eval
    from mpojax.harness import HarnessModel

    model = HarnessModel.from_pretrained("folder, hub id, package:NAME/PATH or GGUF file")
    results = lm_eval.simple_evaluate(model=model, tasks=["lambada_openai", "hellaswag"])

Texts are encoded as lm_eval does for its own Hugging Face models, so that scores compare.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mpojax import data, io, models
from mpojax.data.tokenizers import chat
from mpojax.models import evaluation
from mpojax.training import progress

try:
    from lm_eval.api.model import LM
except ImportError:  # said by the constructor
    LM = None

# Programs are compiled for rows of these lengths, and of the longest.
_LENGTHS = tuple(2**k for k in range(5, 20))
_MAX_NEW_TOKENS = 256  # lm_eval's own default
_NAMES_OF_LENGTH = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessModel(LM or object):
    """A decoder as lm_eval calls it.

    Attributes:
      model, tokenizer: what is evaluated.
      max_length: tokens that the model reads at once.
    """

    def __init__(
        self,
        model: models.LanguageModel,
        tokenizer: data.Tokenizer,
        *,
        tokenizer_folder: str | os.PathLike | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ):
        """Wraps a model.

        Args:
          model: a decoder; dense or in MPO form.
          tokenizer: its own.
          tokenizer_folder: with the chat template, where one is to be applied.
          max_length: None = all positions of the model.
          batch_size: rows at a time.
          seed: of sampled texts, where a task asks for them.

        Raises:
          ImportError: lm_eval is not installed.
          ValueError: no decoder, or a tokenizer without an end of text.
        """
        if LM is None:
            raise ImportError("this needs lm_eval: pip install -e '.[lm_eval]'")
        super().__init__()
        evaluation.check_decoder(model, "lm_eval needs")
        if tokenizer.bos_id is None and tokenizer.eos_id is None:
            raise ValueError(
                "lm_eval begins texts with the tokenizer's begin or end of text; it names neither: "
                "set eos_token in its tokenizer_config.json."
            )
        self.model, self.tokenizer, self.tokenizer_folder = model, tokenizer, tokenizer_folder
        self.max_length = max_length or model.config.max_positions
        self.batch_size, self._key = batch_size, jax.random.key(seed)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> "HarnessModel":
        """A model with its own tokenizer; see `io.load_pretrained` for what there may be.

        Args:
          source: of the model.
          options: as in the constructor.
        """
        folder = io.locate(source)
        if folder.is_dir():
            tokenizer = data.Tokenizer.from_folder(folder)
            return cls(io.load_pretrained(folder), tokenizer, tokenizer_folder=folder, **options)
        made = tempfile.mkdtemp(prefix="mpojax-tokenizer-")
        io.write_gguf_tokenizer(folder, made)
        tokenizer = data.Tokenizer.from_folder(made)
        adapter = cls(io.load_pretrained(folder), tokenizer, tokenizer_folder=made, **options)
        weakref.finalize(adapter, shutil.rmtree, made, ignore_errors=True)
        return adapter

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether it is the greedy one) of each request.

        Args:
          requests: `args` of each is (context, continuation).

        Raises:
          ValueError: a continuation longer than `max_length`.
        """
        rows = []
        for request in requests:
            context, continuation = self._encode_pair(*request.args)
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens is longer than max_length="
                    f"{self.max_length}."
                )
            rows.append(([*context, *continuation], len(continuation)))
        found = self._score(rows)
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, score)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of each whole text: every token predicted once, windows of `max_length` tokens.

        Args:
          requests: `args` of each is (text,).
        """
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(ids)) for ids in self.tokenizer.encode_plain(texts)]
        scores = iter(self._score([row for rows in windows for row in rows]))
        found = [sum(next(scores)[0] for _ in rows) for rows in windows]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each request, cut at the first of its stop strings.

        Args:
          requests: `args` of each is (context, settings): `until`, `max_gen_toks`, `do_sample`,
            `temperature`, `top_k`, `top_p`.
        """
        prompts = [self.tokenizer.encode_prompt(request.args[0]) for request in requests]
        settings = [_generation(request.args[1]) for request in requests]
        found: list[str] = [""] * len(requests)
        for same in dict.fromkeys(settings):
            chosen = [i for i, each in enumerate(settings) if each == same]
            texts = self._continue([prompts[i] for i in chosen], *same)
            for index, text in zip(chosen, texts, strict=True):
                found[index] = _cut(text, requests[index].args[1].get("until"))
                self.cache_hook.add_partial("generate_until", requests[index].args, found[index])
        return found

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; see `data.chat_prompt`.

        Raises:
          ValueError: the tokenizer has no chat template.
        """
        folder, text = self.tokenizer_folder, None
        if folder is not None:
            text = data.chat_prompt(folder, chat_history, answer=add_generation_prompt)
        if text is None:
            raise ValueError(f"no chat template in tokenizer_folder={folder}.")
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the log of lm_eval."""
        return chat.read_template(self.tokenizer_folder) if self.tokenizer_folder else None

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm_eval's cache of requests."""
        return str(self.tokenizer_folder or "tokenizer").replace("/", "__")

    @property
    def _prefix(self) -> int:
        """The token that stands before a text without a context."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return eos if bos is None else bos

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; blanks at the end of the context belong to the continuation."""
        if not context.strip():
            ids = self.tokenizer.encode_plain([context + continuation])[0]
            return ([self._prefix], ids) if ids[:1] != [self._prefix] else (ids[:1], ids[1:])
        begin = self.tokenizer.encode_prompt(context.rstrip())
        whole = self.tokenizer.encode_prompt(context + continuation)
        # Encoded together, so that a merge across the border is as in the whole text.
        return begin, whole[len(begin) :]

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """(row of up to max_length + 1 tokens, how many of its last are predicted)."""
        ids = [self._prefix, *ids]
        for first in range(1, len(ids), self.max_length):
            end = min(first + self.max_length, len(ids))
            # A short last window reaches back, for as much context as the model reads.
            yield ids[max(0, end - self.max_length - 1) : end], end - first

    def _score(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """(log p, greedy or not) of the last `count` tokens of each row (tokens, count)."""

        def run(rows) -> list[tuple[float, bool]]:
            # Padding stands behind the tokens, which do not see it.
            kept = [ids[-self.max_length - 1 :] for ids, _ in rows]
            batch = _padded(kept, self.max_length + 1, left=False)[0]
            found = models.token_scores(self.model, self._filled(batch))
            nats, is_greedy = np.asarray(found.nats, np.float64), np.asarray(found.is_greedy)
            scores = []
            for number, (_, count) in enumerate(rows):
                # nats[i] is of token i + 1: n tokens have n - 1 predictions.
                end = len(kept[number]) - 1
                own = nats[number, end - count : end]
                evaluation.check_finite(own, "scores of a text")
                scores.append((-float(own.sum()), bool(is_greedy[number, end - count : end].all())))
            return scores

        return self._in_batches("scoring", rows, lambda row: len(row[0]), run)

    def _continue(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: models.Sampling
    ) -> list[str]:
        """The text after each prompt, whose beginning is cut where both together are too long."""
        # The last new token is not read by the model.
        longest = self.max_length - max_new_tokens + 1
        if longest < 1:
            raise ValueError(
                f"max_gen_toks={max_new_tokens} leaves nothing for a prompt in max_length="
                f"{self.max_length}."
            )

        def run(prompts) -> list[str]:
            ids, mask = _padded([prompt[-longest:] for prompt in prompts], longest, left=True)
            self._key, key = jax.random.split(self._key)
            made = models.generate(
                self.model,
                self._filled(ids),
                self._filled(mask),
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                key=key,
            )
            rows = zip(np.asarray(made.ids), np.asarray(made.lengths), strict=True)
            return [self.tokenizer.decode(row[:n]) for row, n in rows][: len(prompts)]

        return self._in_batches("generating", prompts, len, run)

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """The rows, copies of the first up to a whole batch: one program for all batches."""
        return np.concatenate([rows, rows[:1].repeat(self.batch_size - len(rows), 0)])

    def _in_batches(self, what: str, items: Sequence, length: Callable, run: Callable) -> list:
        """Results of `run` on batches of items of like length, in the items' order."""
        # Longest first, as in lm_eval: a batch that does not fit into memory fails at once.
        order = sorted(range(len(items)), key=lambda i: -length(items[i]))
        found: list = [None] * len(items)
        with progress.progress(what) as advance:
            for first in range(0, len(order), self.batch_size):
                chosen = order[first : first + self.batch_size]
                for index, result in zip(chosen, run([items[i] for i in chosen]), strict=True):
                    found[index] = result
                advance(first + len(chosen), len(order), "")
        return found


def _padded(rows: Sequence[list[int]], longest: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array of a length out of few, and the mask of what is no padding."""
    most = max(map(len, rows))
    length = next((n for n in _LENGTHS if most <= n <= longest), longest)
    ids, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[number, where], mask[number, where] = row, True
    return ids, mask


def _generation(given: Mapping[str, Any]) -> tuple[int, models.Sampling]:
    """(max_new_tokens, sampling) of a task's settings."""
    lengths = [given[name] for name in _NAMES_OF_LENGTH if given.get(name) is not None]
    most = int(lengths[0]) if lengths else _MAX_NEW_TOKENS
    temperature = float(given.get("temperature") or 0.0)
    if not given.get("do_sample", temperature > 0.0) or temperature == 0.0:
        return most, models.Sampling()
    filters = {name: given.get(name) for name in ("top_k", "top_p")}
    return most, models.Sampling(temperature=temperature, **filters)


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to the first of the stop strings."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.partition(stop)[0] if stop else text
    return text
