"""Text to text: an encoder-decoder (T5) that writes the answers of one task or several.

Answers are generated and read as labels; the best state is chosen by the split dev, never by test.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.tasks import answers, language, loading
from mpojax import data, models
from mpojax.methods import options as options_lib
from mpojax.methods import protocol
from mpojax.training.scores import bleu


class TextToText(language.LanguageTask):
    """Tasks named by `config.task` or `config.tasks`."""

    def __init__(self, generation: options_lib.Generation):
        self.generation = generation

    def check(self, options: options_lib.Options) -> None:
        super().check(options)
        own = options.data
        if own.task and own.tasks:
            raise ValueError(
                "give config.task, one task, or config.tasks, several: just one of them."
            )
        names = data.task_names(own.tasks)
        if len(set(names)) < len(names):
            raise ValueError(f"config.tasks={own.tasks} names a task twice.")

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        own, seed = options.data, options.training.seed
        tasks = _load_tasks(own)
        tokenizer, folder = loading.tokenizer(options.model)
        model = self.load(options, tokenizer, folder, models.EncoderDecoder)
        lengths = {n: t.target_length(tokenizer, own.target_length) for n, t in tasks.items()}

        def encoded(task: data.TextToTextTask, split: str, most: int = 0) -> dict:
            pairs = task[split].take(most) if most else task[split]
            logging.info("%s %s: %d examples", task.name, split, len(pairs))
            start = model.config.decoder_start_id
            # The same width for all tasks, so that one compiled step serves their batches.
            return pairs.encode(tokenizer, own.max_length, max(lengths.values()), start)

        for task in tasks.values():
            if task.kind == "generation":
                _check_targets(task, tokenizer, own.target_length)
        train = {n: encoded(task, own.train_split, own.train_examples) for n, task in tasks.items()}
        size = options.training.batch_size
        if len(train) > 1:
            batches = data.multi_task(train, size, seed=seed, temperature=own.temperature)
        else:
            batches = data.TrainData(next(iter(train.values())), size, seed=seed)
        model, report = self.compressed(options, model, batches)

        def evaluated(*which) -> data.EvalData:
            return data.EvalData(encoded(*which), options.training.eval_batch_size)

        dev = {n: evaluated(task, task.dev_split, own.dev_examples) for n, task in tasks.items()}
        evaluate = answers.AnswersEvaluator(tasks, tokenizer, lengths, self.generation.beams)
        return protocol.Setup(
            task=self,
            options=options,
            name="+".join(tasks),
            model=model,
            tokenizer_folder=folder,
            report=report,
            loss=self.loss(options),
            train=batches,
            dev=dev,
            test={n: evaluated(task, "test") for n, task in tasks.items() if _has_test(task)},
            evaluate=evaluate,
            metric=evaluate.metric,
            num_dev_examples=sum(split.num_examples for split in dev.values()),
        )

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        sizes = {name: split.num_examples for name, split in setup.test.items()}
        # Of several tasks each has a size of its own.
        tested = {"test_examples": sum(sizes.values())} if len(setup.dev) == 1 else {}
        names = {name: task.label_names for name, task in setup.evaluate.tasks.items()}
        common = super().report(setup, result)
        return {**tested, "test_sizes": sizes, "label_names": names, **common}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        lines = [f"{loading.headline(result)}, {result['steps']:,} steps"]
        return lines + [f"  {name:<24} {value:.4f}" for name, value in result["metrics"].items()]


def _load_tasks(options: options_lib.Data) -> dict[str, data.TextToTextTask]:
    names = [options.task] if options.task else data.task_names(options.tasks)
    loaded = [data.load_text_to_text(name, options.folder) for name in names]
    tasks = {task.name: task for task in loaded}
    if len(tasks) < len(loaded):
        raise ValueError(
            f"config.tasks has two tasks of one name among {[task.name for task in loaded]}; give "
            "them names, as in file:...;name=mine."
        )
    for task in loaded:
        # Looked up for the error of a split that is not there.
        task[options.train_split], task[task.dev_split]
        if task.kind == "generation":
            bleu.signature(4)  # says early that sacrebleu is missing
            if len(loaded) > 1:
                raise ValueError(f"{task.name!r} has no labels: several tasks at once need them.")
    return tasks


def _check_targets(task: data.TextToTextTask, tokenizer: data.Tokenizer, most: int) -> None:
    """Raises ValueError for references that would be cut: a short answer would look right."""
    splits = [task.dev_split, *(["test"] if _has_test(task) else [])]
    texts = [text for split in splits for text in task[split].targets or ()]
    longest = 1 + max(map(len, tokenizer.encode_plain(texts)))
    if longest > most:
        raise ValueError(
            f"{task.name}: the longest answer to be scored has {longest} tokens with its end, more "
            f"than config.target_length={most}; set it to that."
        )


def _has_test(task: data.TextToTextTask) -> bool:
    """True if there is a test split other than that of the development, with its answers."""
    return "test" in task.splits and task.dev_split != "test" and task["test"].targets is not None
