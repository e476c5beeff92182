r"""Tunes an encoder-decoder (T5) on one task or several, as text to text; maybe with experts.

    python -m experiments.text_to_text --config=configs/mpoe/t5.py:mpoe8,rte \
        --config.data_dir=DATA --workdir=runs/t5-mpoe8-rte
    python -m experiments.text_to_text --config=configs/mpoe/base.py --config.model=FOLDER \
        --config.tasks=cola,rte --config.data_dir=DATA --workdir=runs/two

Answers are generated and read as labels; the best state is chosen by the split dev, never by test.
The fields of a config are explained in `configs/mpoe/base.py`. The workdir gets `result.json`,
metrics as JSONL and TensorBoard events, and what the routers of experts did (`router.csv`,
`router.png`). Started again on its workdir an interrupted run resumes exactly.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from configs.mpoe import base
from experiments import answers, jobs, language_models, language_tuning, launch, tuning
from mpojax import data, models
from mpojax.training.scores import bleu


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever they are.
    """
    language_models.check(config)
    if bool(config.task) == bool(config.tasks):
        raise ValueError("give config.task, one task, or config.tasks, several: just one of them.")
    names = data.task_names(config.tasks)
    if len(set(names)) < len(names):
        raise ValueError(f"config.tasks={config.tasks} names a task twice.")


@dataclasses.dataclass(frozen=True)
class Job:
    """Setup of a config.

    Attributes:
      name: of the task, or of all joined by +.
      model: with its experts.
      source: folder of its tokenizer.
      train: batches to train on.
      dev, test: examples of each task; tasks without a test split are left out of `test`.
      evaluate: evaluator of the latter two.
      metric: the one that counts.
      dev_examples: how many dev has.
    """

    name: str
    model: models.EncoderDecoder
    source: str
    train: data.TrainData
    dev: Mapping[str, data.EvalData]
    test: Mapping[str, data.EvalData]
    evaluate: answers.AnswersEvaluator
    metric: str
    dev_examples: int
    report: None = None
    heads: tuple = ()


def prepare(config: ml_collections.ConfigDict) -> Job:
    """Loads model and tasks.

    Raises:
      ValueError: model, tasks or settings that do not fit.
    """
    names = [config.task] if config.task else data.task_names(config.tasks)
    loaded = [data.load_text_to_text(name, config.data_dir or None) for name in names]
    tasks = {task.name: task for task in loaded}
    if len(tasks) < len(loaded):
        raise ValueError(
            f"config.tasks has two tasks of one name among {[task.name for task in loaded]}; give "
            "them names, as in file:...;name=mine."
        )
    for task in loaded:
        task["train"], task[task.dev_split]
        if task.kind == "generation":
            bleu.signature(4)  # says early that sacrebleu is missing
            if len(loaded) > 1:
                raise ValueError(f"{task.name!r} has no labels: several tasks at once need them.")
    model, words, folder = language_models.load(config)
    if not isinstance(model, models.EncoderDecoder):
        raise ValueError(
            f"config.model={config.model!r} is no encoder-decoder; decoders are tuned by "
            "experiments.language_model."
        )
    lengths = {n: task.target_length(words, config.target_length) for n, task in tasks.items()}

    def encoded(task: data.TextToTextTask, split: str, most: int = 0) -> dict:
        pairs = task[split].take(most) if most else task[split]
        logging.info("%s %s: %d examples", task.name, split, len(pairs))
        start = model.config.decoder_start_id
        return pairs.encode(words, config.max_length, max(lengths.values()), start)

    for task in loaded:
        if task.kind == "generation":
            _check_targets(task, words, config.target_length)
    train = {n: encoded(task, "train", config.train_examples) for n, task in tasks.items()}
    if len(train) > 1:
        batches = data.multi_task(
            train, config.batch_size, seed=config.seed, temperature=config.temperature
        )
    else:
        only = next(iter(train.values()))
        batches = data.TrainData(only, config.batch_size, seed=config.seed)

    def evaluated(*which) -> data.EvalData:
        return data.EvalData(encoded(*which), config.eval_batch_size)

    dev = {n: evaluated(task, task.dev_split, config.dev_examples) for n, task in tasks.items()}
    test = {n: evaluated(task, "test") for n, task in tasks.items() if _has_test(task)}
    evaluate = answers.AnswersEvaluator(tasks, words, lengths, config.beams)
    return Job(
        name="+".join(tasks),
        model=model,
        source=folder,
        train=batches,
        dev=dev,
        test=test,
        evaluate=evaluate,
        metric=evaluate.metric,
        dev_examples=sum(split.num_examples for split in dev.values()),
    )


def _check_targets(task: data.TextToTextTask, words: data.Tokenizer, most: int) -> None:
    """Raises ValueError for references that would be cut: a short answer would look right."""
    splits = [task.dev_split, *(["test"] if _has_test(task) else [])]
    texts = [text for split in splits for text in task[split].targets or ()]
    longest = 1 + max(map(len, words.encode_plain(texts)))
    if longest > most:
        raise ValueError(
            f"{task.name}: the longest answer to be scored has {longest} tokens with its end, more "
            f"than config.target_length={most}; set it to that."
        )


def _has_test(task: data.TextToTextTask) -> bool:
    """True if there is a test split other than that of the development, with its answers."""
    return "test" in task.splits and task.dev_split != "test" and task["test"].targets is not None


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    config = jobs.with_task_names(config)
    return tuning.run(
        config, folder, prepare=prepare, train=_tune, describe=_describe, summary=summary
    )


def _tune(
    config: ml_collections.ConfigDict, job: Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    """The training; None when it was interrupted."""
    looked_at = next(iter(job.dev.values()))
    return language_tuning.tune(config, job, folder, looked_at=looked_at, higher_is_better=True)


def _describe(config, job: Job, outcome: tuning.Outcome) -> dict[str, Any]:
    sizes = {name: split.num_examples for name, split in job.test.items()}
    # Of several tasks each has a size of its own.
    tested = {"test_examples": sum(sizes.values())} if len(job.dev) == 1 else {}
    named = {"label_names": {name: task.label_names for name, task in job.evaluate.tasks.items()}}
    return {**tested, "test_sizes": sizes, **named, **language_models.facts(config, outcome)}


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    lines = [
        f"{result['task']}, {result['variant'] or result['form']}, seed {result['seed']}: "
        f"{result['total']:,} parameters, {result['experts']} expert(s), {result['steps']:,} steps"
    ]
    lines += [f"  {name:<24} {value:.4f}" for name, value in result["metrics"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, base.get_config())
