"""Texts that a language model writes after its training, and how they score."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mpojax import checks, data, files, models, training
from mpojax.methods import options as options_lib
from mpojax.training.scores import bleu

_BATCH = 32


def check(options: options_lib.Generation, test_split: str) -> None:
    """Raises ValueError for fields about generated texts that cannot be."""
    checks.check_clashes(
        {
            "config.bleu_prompts continues the test text: give config.test_split": (
                options.bleu_prompts and not test_split
            ),
            "config.samples=1: Self-BLEU compares each sample with the others; draw at least 2": (
                options.samples == 1
            ),
        }
    )
    sampling(options)
    bleu_signature(options)  # says early that sacrebleu is missing, or does not know the words


def bleu_signature(options: options_lib.Generation) -> str | None:
    """With what the BLEU of a run is computed; None where none is."""
    if not (options.bleu_prompts or options.samples):
        return None
    return bleu.signature(2, tokenize=options.bleu_tokenize)


def sampling(options: options_lib.Generation) -> models.Sampling:
    """Sampling settings of a config.

    Raises:
      ValueError: values out of range.
    """
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | dict(options.sampling)
    return models.Sampling(
        temperature=chosen["temperature"],
        top_k=chosen["top_k"] or None,
        top_p=None if chosen["top_p"] >= 1.0 else chosen["top_p"],
    )


def documents(tokens: np.ndarray, tokenizer: data.Tokenizer) -> list[str]:
    """The texts of tokens, which ends of text part."""
    if tokenizer.eos_id is None:
        return [tokenizer.decode(tokens)]
    # Parts but the first begin with the end of the text before, which is dropped below.
    parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_id))
    return [tokenizer.decode(part[part != tokenizer.eos_id]) for part in parts]


class Writer:
    """Writes and scores the texts that a config asks for.

    Args:
      options: how many, how long, how they are sampled.
      dev, test: texts whose continuations are written, and that samples are compared with.
    """

    def __init__(
        self,
        options: options_lib.Generation,
        tokenizer: data.Tokenizer,
        dev: data.LanguageModelEvalData,
        test: data.LanguageModelEvalData | None,
        seed: int,
    ):
        self.options, self.tokenizer, self.seed = options, tokenizer, seed
        self.dev, self.test = dev, test

    def check(self, model: models.LanguageModel) -> None:
        """Raises ValueError for texts that model or tokenizer cannot write."""
        own, lengths = self.options, {}
        if own.bleu_prompts:
            lengths["bleu_prompt_length + bleu_length"] = own.bleu_prompt_length + own.bleu_length
            self._prompts()
        if own.samples:
            lengths["sample_length + 1"] = own.sample_length + 1
            self._start()
        for name, length in lengths.items():
            if length > model.config.max_positions:
                raise ValueError(
                    f"config: {name} = {length} is more than the {model.config.max_positions} "
                    "positions of the model; generate shorter texts."
                )

    def scores(self, state: Any, mesh: jax.sharding.Mesh, folder: pathlib.Path) -> dict[str, float]:
        """BLEU of continuations of the test text, BLEU and Self-BLEU of free samples.

        Matrices are rebuilt from their cores once, not at every token.
        """
        if not (self.options.bleu_prompts or self.options.samples):
            return {}
        if jax.process_count() > 1:
            state = training.sharding.replicated(state, mesh)
        model = jax.jit(models.merged)(state.model())
        found = {}
        if self.options.bleu_prompts:
            found |= self._continuations(model, folder)
        if self.options.samples:
            found |= self._samples(model, folder)
        return found

    def _continuations(self, model, folder: pathlib.Path) -> dict[str, float]:
        own, (prompts, rests) = self.options, self._prompts()
        greedy = models.Sampling(temperature=0.0)
        written = _generate(model, prompts, own.bleu_length, greedy, None)
        texts, truths = ([self.tokenizer.decode(ids) for ids in rows] for rows in (written, rests))
        starts = [self.tokenizer.decode(ids) for ids in prompts]
        _write(folder / "continuations.txt", zip(starts, texts, truths, strict=True))
        cut = own.bleu_tokenize
        return {f"bleu{n}": bleu.bleu(texts, truths, n, tokenize=cut) for n in (2, 4)}

    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        own = self.options
        return data.continuations(
            self.test.stream, own.bleu_prompt_length, own.bleu_length, own.bleu_prompts
        )

    def _start(self) -> int:
        """The token that begins samples: the end of the text before, as in training."""
        tokenizer = self.tokenizer
        start = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.bos_id
        if start is None:
            raise ValueError(
                "config.samples needs a tokenizer with a token that begins or ends texts."
            )
        return start

    def _samples(self, model, folder: pathlib.Path) -> dict[str, float]:
        own = self.options
        prompts = np.full((own.samples, 1), self._start(), np.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), 2)
        written = _generate(model, prompts, own.sample_length, sampling(own), key)
        texts = [self.tokenizer.decode(ids) for ids in written]
        _write(folder / "samples.txt", ((text,) for text in texts))
        truth = documents((self.test or self.dev).stream.tokens, self.tokenizer)
        references = [line.strip() for text in truth for line in text.split("\n") if line.strip()]
        cut = own.bleu_tokenize
        return {
            "sample_bleu2": bleu.corpus_bleu(texts, references, 2, tokenize=cut),
            "self_bleu2": bleu.self_bleu(texts, 2, tokenize=cut),
        }


def _generate(model, prompts: np.ndarray, length: int, how: models.Sampling, key) -> list:
    """Tokens that follow each prompt, up to an end of text."""
    written = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        # Filled up, so that one compiled program serves every batch.
        rows = np.concatenate([part, np.repeat(part[-1:], _BATCH - len(part), axis=0)])
        # The same key would give every batch the same draws.
        step_key = None if key is None else jax.random.fold_in(key, start)
        made = models.generate(
            model, jnp.asarray(rows), max_new_tokens=length, sampling=how, key=step_key
        )
        ids, lengths = np.asarray(made.ids), np.asarray(made.lengths)
        written += [ids[row, : lengths[row]] for row in range(len(part))]
        logging.info("%d of %d texts written", len(written), len(prompts))
    return written


def _write(path: pathlib.Path, rows) -> None:
    if jax.process_index() == 0:
        blocks = ("\n".join(f"> {' '.join(text.split())}" for text in row) for row in rows)
        files.write_atomic(path, "\n\n".join(blocks) + "\n")
