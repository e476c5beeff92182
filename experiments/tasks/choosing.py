"""Choices of texts: a decoder or an encoder-decoder that ranks the answers of a labelled task."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.tasks import classification, language, loading
from mpojax import data, models
from mpojax.methods import options as options_lib
from mpojax.methods import protocol, t_few


class Choosing(language.LanguageTask):
    """One task, named by `config.task`, as a choice that `config.choices` describes."""

    def __init__(self, settings: t_few.ChoiceSettings):
        self.settings = settings

    def check(self, options: options_lib.Options) -> None:
        super().check(options)
        data.check_task(options.data.task)
        options_lib.check_default(
            options, ("experts",), ": routers of experts have no loss among those of choices"
        )

    def loss(self, options: options_lib.Options) -> Any:
        return t_few.choice_loss(self.settings)

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        own, size = options.data, options.training.batch_size
        task = data.load_task(own.task, own.folder)
        names = self.settings.texts_of(task)
        train, dev, _ = classification.splits(own, task)
        tokenizer, folder = loading.tokenizer(options.model)
        model = self.load(options, tokenizer, folder, language.GENERATING)
        with_source = models.predicts_next(model)

        def encoded(split: data.Split) -> dict[str, Any]:
            sources, choices = self.settings.sources(split), [names] * len(split)
            where = {"max_length": own.max_length, "with_source": with_source}
            return t_few.encode(sources, choices, split.labels, tokenizer, **where)

        batches = data.TrainData(encoded(train), size, seed=options.training.seed)
        model, report = self.compressed(options, model, batches)
        logging.info("%s: %d examples to train on, %d to report", task.name, len(train), len(dev))
        return protocol.Setup(
            task=self,
            options=options,
            name=own.task,
            model=model,
            tokenizer_folder=folder,
            report=report,
            metric=classification.main_metric(task, own.metric),
            loss=self.loss(options),
            train=batches,
            dev=data.EvalData(encoded(dev), options.training.eval_batch_size),
            num_dev_examples=len(dev),
            evaluate=t_few.evaluator(task.metrics, self.settings.length_norm),
            evaluates_first=True,
        )

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        own = setup.options.data
        return {**super().report(setup, result), "shots": own.shots, "draw": own.draw}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        shots = f", {result['shots']} shots, draw {result['draw']}" if result["shots"] else ""
        found = loading.metrics_line(result["metrics"])
        return [
            f"{loading.headline(result)}{shots}",
            f"  {found} on {result['dev_examples']:,} examples, after {result['steps']} steps",
        ]
