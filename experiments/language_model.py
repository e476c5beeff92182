r"""Tunes a decoder on plain text, or trains a fresh one; maybe with experts.

    python -m experiments.language_model --config=configs/mpoe/base.py --config.model=FOLDER \
        --config.dataset=wikitext2 --config.data_dir=DATA --workdir=runs/mine
    python -m experiments.language_model --config=configs/mpoe/gpt2.py:mpoe8,wikitext2 \
        --config.data_dir=DATA --workdir=runs/gpt2-mpoe8

The fields of a config are explained in `configs/mpoe/base.py`. The workdir gets `result.json`,
metrics as JSONL and TensorBoard events, what the routers of experts did (`router.csv`,
`router.png`), and, where texts are generated, these (`continuations.txt`, `samples.txt`). Started
again on its workdir an interrupted run resumes exactly.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections
from absl import logging

from configs.mpoe import base
from experiments import generating, language_models, language_tuning, launch, tuning
from mpojax import data, models, training
from mpojax.training.tasks import language_modeling


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or texts.

    Raises:
      ValueError: a field that is wrong whatever they are.
    """
    language_models.check(config)
    if config.task or config.tasks:
        raise ValueError(
            "config.task and config.tasks are of experiments.text_to_text; plain text is named by "
            "config.dataset."
        )
    if not config.dev_split:
        raise ValueError("config.dev_split is empty: a run reports the loss of some split.")
    is_evaluated = config.train_split in (config.dev_split, config.test_split)
    if config.steps and is_evaluated and not config.dev_dataset:
        raise ValueError(
            f"config.train_split={config.train_split!r} is evaluated, too: choose other splits."
        )
    if config.dev_split == config.test_split and not config.test_dataset:
        raise ValueError(
            f"config.dev_split and config.test_split are both {config.dev_split!r}: no state may "
            "be chosen by the test text; leave test_split empty for one evaluation."
        )
    generating.check(config)


@dataclasses.dataclass(frozen=True)
class Job:
    """Setup of a config.

    Attributes:
      name: of the texts.
      model: with its experts.
      source: folder of its tokenizer.
      tokenizer: the tokenizer itself.
      train, dev, test: blocks of text; None for no test split, and for what trains nothing.
      evaluate: evaluator of the latter two.
    """

    name: str
    model: models.LanguageModel
    source: str
    tokenizer: data.Tokenizer
    train: data.LanguageModelData | None
    dev: data.LanguageModelEvalData
    test: data.LanguageModelEvalData | None
    evaluate: training.Evaluator
    metric: str = "perplexity"
    report: None = None
    heads: tuple = ()

    @property
    def dev_examples(self) -> int:
        """Tokens that the reported loss is of."""
        return self.dev.num_tokens


def prepare(config: ml_collections.ConfigDict) -> Job:
    """Loads model and texts.

    Raises:
      ValueError: model, texts or settings that do not fit.
    """
    words, _ = language_models.tokenizer(config)

    def stream(name: str, split: str, most: int = 0) -> data.TokenStream:
        texts = data.load_texts(name, config.data_dir or None)
        made = data.TokenStream.from_documents(texts[split], words, f"{name} ({split})")
        if not 0 < most < len(made):
            return made
        kept = made.tokens[:most]
        parts = language_models.documents(kept, words)
        number = sum(len(text.split()) for text in parts)
        return data.TokenStream(kept, number, len(parts), made.name)

    def evaluated(*which) -> data.LanguageModelEvalData:
        return data.LanguageModelEvalData(stream(*which), config.length, config.eval_batch_size)

    held_out, train = config.dev_dataset or config.dataset, None
    if config.steps:
        texts = stream(config.dataset, config.train_split)
        train = data.LanguageModelData(texts, config.length, config.batch_size, seed=config.seed)
        logging.info(
            "%s: %s tokens to train on, an epoch is %d steps",
            *(config.dataset, f"{train.num_tokens:,}", train.steps_per_epoch),
        )
    dev, test = evaluated(held_out, config.dev_split), None
    if config.test_split:
        where = config.test_dataset or held_out
        try:
            test = evaluated(where, config.test_split, config.test_tokens)
        except ValueError as error:
            raise ValueError(
                f"{error}. config.test_split='' leaves the evaluation on it out; texts of your own "
                "take one as file:...,test=FILE."
            ) from error
    model, words, folder = language_models.load(config)
    if not isinstance(model, models.LanguageModel):
        raise ValueError(
            f"config.model={config.model!r} is no decoder; encoder-decoders are tuned by "
            "experiments.text_to_text."
        )
    if config.length > model.config.max_positions:
        raise ValueError(
            f"config.length={config.length} is more than the {model.config.max_positions} "
            "positions of the model; shorten the blocks."
        )
    logging.info("%s: %s tokens held out", held_out, f"{dev.num_tokens:,}")
    evaluate = language_modeling.evaluator()
    job = Job(config.dataset, model, folder, words, train, dev, test, evaluate)
    generating.check_job(config, job)
    return job


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    return tuning.run(
        config, folder, prepare=prepare, train=_tune, describe=_describe, summary=summary
    )


def _tune(
    config: ml_collections.ConfigDict, job: Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    """The training, and the texts after it; None when it was interrupted."""
    outcome = language_tuning.tune(
        config, job, folder, looked_at=job.dev, higher_is_better=False, at_start=True
    )
    if outcome is None:
        return None
    written = generating.scores(config, job, outcome.state, folder)
    return dataclasses.replace(outcome, metrics=outcome.metrics | written)


def _describe(config, job: Job, outcome: tuning.Outcome) -> dict[str, Any]:
    speed = outcome.facts["fit"]["steps_per_second"]
    return {
        "tokens": outcome.facts["fit"]["step"] * config.batch_size * config.length,
        "tokens_per_second": speed and speed * config.batch_size * config.length,
        "test_tokens": 0 if job.test is None else job.test.num_tokens,
        "test_words": 0 if job.test is None else job.test.num_words,
        "bleu_signature": generating.bleu_signature(config),
        **language_models.facts(config, outcome),
    }


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    lines = [
        f"{result['task']}, {result['variant'] or result['form']}, seed {result['seed']}: "
        f"{result['total']:,} parameters, {result['experts']} expert(s)",
        f"  {metrics}",
        f"  after {result['steps']:,} steps, {result['tokens']:,} tokens",
    ]
    if result["tokens_per_second"]:
        lines.append(f"  {result['tokens_per_second']:,.0f} tokens/s")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, base.get_config())
