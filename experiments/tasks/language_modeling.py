"""Plain text: a decoder, loaded or fresh, maybe with experts, that learns the next word."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.tasks import generating, language, loading
from mpojax import checks, data, models
from mpojax.methods import options as options_lib
from mpojax.methods import protocol
from mpojax.training.tasks import language_modeling


class LanguageModeling(language.LanguageTask):
    """Texts named by `config.dataset`."""

    def __init__(self, generation: options_lib.Generation):
        self.generation = generation

    def check(self, options: options_lib.Options) -> None:
        super().check(options)
        own = options.data
        is_evaluated = own.train_split in (own.dev_split, own.test_split)
        checks.check_clashes(
            {
                "config.dev_split is empty: a run reports the loss of some split": (
                    not own.dev_split
                ),
                f"config.train_split={own.train_split!r} is evaluated, too: choose other splits": (
                    options.training.steps and is_evaluated and not own.dev_dataset
                ),
                f"config.dev_split and config.test_split are both {own.dev_split!r}: no state may "
                "be chosen by the test text; leave test_split empty for one evaluation": (
                    own.dev_split == own.test_split and not own.test_dataset
                ),
            }
        )
        generating.check(self.generation, own.test_split)

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        own = options.data
        tokenizer, folder = loading.tokenizer(options.model)
        held_out, train = own.dev_dataset or own.dataset, None
        if options.training.steps or options.compression.calibration_examples:
            text = stream(own, tokenizer, own.dataset, own.train_split)
            size, seed = options.training.batch_size, options.training.seed
            train = data.LanguageModelData(text, own.length, size, seed=seed)
            logging.info(
                "%s: %s tokens to train on, an epoch is %d steps",
                *(own.dataset, f"{train.num_tokens:,}", train.steps_per_epoch),
            )

        def evaluated(*which) -> data.LanguageModelEvalData:
            text = stream(own, tokenizer, *which)
            size = options.training.eval_batch_size
            return data.LanguageModelEvalData(text, own.length, size)

        dev, test = evaluated(held_out, own.dev_split), None
        if own.test_split:
            where = own.test_dataset or held_out
            try:
                test = evaluated(where, own.test_split, own.test_tokens)
            except ValueError as error:
                raise ValueError(
                    f"{error}. config.test_split='' leaves the evaluation on it out; texts of your "
                    "own take one as file:...,test=FILE."
                ) from error
        model = self.load(options, tokenizer, folder, models.LanguageModel)
        if own.length > model.config.max_positions:
            raise ValueError(
                f"config.length={own.length} is more than the {model.config.max_positions} "
                "positions of the model; shorten the blocks."
            )
        model, report = self.compressed(options, model, train)
        logging.info("%s: %s tokens held out", held_out, f"{dev.num_tokens:,}")
        writer = generating.Writer(self.generation, tokenizer, dev, test, options.training.seed)
        writer.check(model)
        return protocol.Setup(
            task=self,
            options=options,
            name=own.dataset,
            model=model,
            tokenizer_folder=folder,
            report=report,
            loss=self.loss(options),
            train=train if options.training.steps else None,
            dev=dev,
            num_dev_examples=dev.num_tokens,
            test=test,
            evaluate=language_modeling.evaluator(),
            metric="perplexity",
            sign=-1,
            evaluates_first=True,
            extra=writer,
        )

    def finish(self, setup: protocol.Setup, result: protocol.Result, folder) -> protocol.Result:
        result = super().finish(setup, result, folder)
        written = setup.extra.scores(result.state, setup.mesh, folder)
        return dataclasses.replace(result, metrics=result.metrics | written)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        own, fit, test = setup.options, result.extra.get("fit") or {}, setup.test
        per_step = own.training.batch_size * own.data.length
        speed = fit.get("steps_per_second")
        return super().report(setup, result) | {
            "tokens": fit.get("step", int(result.state.step)) * per_step,
            "tokens_per_second": speed and speed * per_step,
            "test_tokens": 0 if test is None else test.num_tokens,
            "test_words": 0 if test is None else test.num_words,
            "bleu_signature": generating.bleu_signature(self.generation),
        }

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        lines = [
            loading.headline(result),
            f"  {loading.metrics_line(result['metrics'])}",
            f"  after {result['steps']:,} steps, {result['tokens']:,} tokens",
        ]
        if result["tokens_per_second"]:
            lines.append(f"  {result['tokens_per_second']:,.0f} tokens/s")
        return lines


def stream(
    options: options_lib.Data, tokenizer: data.Tokenizer, name: str, split: str, most: int = 0
) -> data.TokenStream:
    """The tokens of a text, or the first `most` of them."""
    texts = data.load_texts(name, options.folder)
    made = data.TokenStream.from_documents(texts[split], tokenizer, f"{name} ({split})")
    if not 0 < most < len(made):
        return made
    kept = made.tokens[:most]
    parts = generating.documents(kept, tokenizer)
    # Words of the part that is kept: the perplexity per word divides by them.
    number = sum(len(text.split()) for text in parts)
    return data.TokenStream(kept, number, len(parts), made.name)
