"""Texts that a language model writes after its training, and how they score."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from experiments import language_models
from mpojax import data, files, models, training
from mpojax.training.scores import bleu

_BATCH = 32


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for fields about generated texts that cannot be."""
    if config.bleu_prompts and not config.test_split:
        raise ValueError("config.bleu_prompts continues the test text: give config.test_split.")
    if config.samples == 1:
        raise ValueError(
            "config.samples=1: Self-BLEU compares each sample with the others; draw at least 2."
        )
    sampling(config)
    bleu_signature(config)  # says early that sacrebleu is missing, or does not know the words


def bleu_signature(config: ml_collections.ConfigDict) -> str | None:
    """With what the BLEU of a run is computed; None where none is."""
    if not (config.bleu_prompts or config.samples):
        return None
    return bleu.signature(2, tokenize=config.bleu_tokenize)


def check_job(config: ml_collections.ConfigDict, job) -> None:
    """Raises ValueError, before the training, for texts that model or tokenizer cannot write."""
    lengths = {}
    if config.bleu_prompts:
        lengths["bleu_prompt_length + bleu_length"] = config.bleu_prompt_length + config.bleu_length
        _prompts(config, job)
    if config.samples:
        lengths["sample_length + 1"] = config.sample_length + 1
        _start(job)
    for name, length in lengths.items():
        if length > job.model.config.max_positions:
            raise ValueError(
                f"config: {name} = {length} is more than the {job.model.config.max_positions} "
                "positions of the model; generate shorter texts."
            )


def sampling(config: ml_collections.ConfigDict) -> models.Sampling:
    """Sampling settings of a config.

    Raises:
      ValueError: values out of range.
    """
    chosen = config.sampling
    return models.Sampling(
        temperature=chosen.temperature,
        top_k=chosen.top_k or None,
        top_p=None if chosen.top_p >= 1.0 else chosen.top_p,
    )


def scores(config: ml_collections.ConfigDict, job, state, folder: pathlib.Path) -> dict[str, float]:
    """BLEU of continuations of the test text, BLEU and Self-BLEU of free samples, as asked for.

    Matrices are rebuilt from their cores once, not at every token.
    """
    if not (config.bleu_prompts or config.samples):
        return {}
    if jax.process_count() > 1:
        state = training.sharding.replicated(state, training.make_mesh(config.mesh.to_dict()))
    model = jax.jit(models.merged)(state.model())
    found = {}
    if config.bleu_prompts:
        found |= _continuations(config, job, model, folder)
    if config.samples:
        found |= _samples(config, job, model, folder)
    return found


def _continuations(config, job, model, folder: pathlib.Path) -> dict[str, float]:
    prompts, rests = _prompts(config, job)
    written = _generate(model, prompts, config.bleu_length, models.Sampling(temperature=0.0), None)
    texts, truths = ([job.tokenizer.decode(ids) for ids in rows] for rows in (written, rests))
    starts, cut = [job.tokenizer.decode(ids) for ids in prompts], config.bleu_tokenize
    _write(folder / "continuations.txt", zip(starts, texts, truths, strict=True))
    return {f"bleu{n}": bleu.bleu(texts, truths, n, tokenize=cut) for n in (2, 4)}


def _prompts(config, job) -> tuple[np.ndarray, np.ndarray]:
    return data.continuations(
        job.test.stream, config.bleu_prompt_length, config.bleu_length, config.bleu_prompts
    )


def _start(job) -> int:
    """The token that begins samples: the end of the text before, as in training."""
    words = job.tokenizer
    start = words.eos_id if words.eos_id is not None else words.bos_id
    if start is None:
        raise ValueError("config.samples needs a tokenizer with a token that begins or ends texts.")
    return start


def _samples(config, job, model, folder: pathlib.Path) -> dict[str, float]:
    prompts = np.full((config.samples, 1), _start(job), np.int32)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    written = _generate(model, prompts, config.sample_length, sampling(config), key)
    texts = [job.tokenizer.decode(ids) for ids in written]
    _write(folder / "samples.txt", ((text,) for text in texts))
    truth = language_models.documents((job.test or job.dev).stream.tokens, job.tokenizer)
    cut = config.bleu_tokenize
    references = [line.strip() for text in truth for line in text.split("\n") if line.strip()]
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
        draw = None if key is None else jax.random.fold_in(key, start)
        made = models.generate(
            model, jnp.asarray(rows), max_new_tokens=length, sampling=how, key=draw
        )
        ids, lengths = np.asarray(made.ids), np.asarray(made.lengths)
        written += [ids[row, : lengths[row]] for row in range(len(part))]
        logging.info("%d of %d texts written", len(written), len(prompts))
    return written


def _write(path: pathlib.Path, rows) -> None:
    if jax.process_index() == 0:
        blocks = ("\n".join(f"> {' '.join(text.split())}" for text in row) for row in rows)
        files.write_atomic(path, "\n\n".join(blocks) + "\n")
