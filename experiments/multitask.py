r"""Trains one model on several tasks at once: a shared encoder, one head for each task.

    python -m experiments.multitask --config=configs/mpobert/multitask.py:mpobert12 \
        --config.model=FOLDER --config.data_dir=DATA --workdir=runs/multitask
    python -m experiments.multitask --config=configs/mpobert/multitask.py:minilm \
        --config.tasks=sst2,cola,mrpc,rte --config.data_dir=DATA --workdir=runs/four

Every batch mixes the tasks, by default in proportion to their sizes; an example counts through the
columns of its own task. The workdir gets `result.json` (metrics of every task, and the mean of
their main ones), `summary.txt`, metrics as JSONL and TensorBoard events. Started again on its
workdir an interrupted run resumes exactly.

With `--config.save_model=True` the shared model is kept: `experiments.finetune` with
`--config.init_checkpoint=WORKDIR/model` reuses the head of its one task.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import logging

from configs.mpobert import multitask as defaults
from experiments import fitting, jobs, launch, tuning
from mpojax import data, training
from mpojax.methods import multitask

# Fields of a fine-tuning config that say something of a single task only.
_SINGLE = ("dev_split", "held_out_examples", "calibration_examples")


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    jobs.check(config, can_only_evaluate=True)
    names = data.task_names(config.tasks)
    if not names:
        raise ValueError("config.tasks is empty: name the tasks, such as sst2,cola,mrpc,rte.")
    for name in names:
        data.check_task(name)
        if name == "squad":
            raise ValueError(
                "config.tasks has 'squad', whose answers are spans: a shared head is for classes "
                "and scores. Fine-tune on it alone, with experiments.finetune."
            )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"config.tasks names {twice} twice; name every task once.")
    for name in _SINGLE:
        if config[name]:
            raise ValueError(f"config.{name}={config[name]!r} has no meaning with several tasks.")


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    config = jobs.with_task_names(config)
    return tuning.run(
        config, folder, prepare=prepare, train=tuning.tune, describe=_describe, summary=summary
    )


def prepare(config: ml_collections.ConfigDict) -> jobs.Job:
    """Loads and encodes all tasks, and the model with a head for each.

    Raises:
      ValueError: tasks, splits, model or rules that do not fit.
    """
    tasks = _load_tasks(config)
    main_metrics = {
        name: jobs.main_metric(task, config.metrics.get(name, "")) for name, task in tasks.items()
    }
    source, words = jobs.tokenizer(config)
    train, dev = {}, {}
    for name, task in tasks.items():
        train[name], dev[name], _ = jobs.splits(config, task)
        sizes = len(train[name]), len(dev[name])
        logging.info("%s: %d examples to train on, %d to report", name, *sizes)
    evaluators = {name: training.evaluator(task, dev[name]) for name, task in tasks.items()}
    heads = multitask.make_heads(tasks, {name: split.labels for name, split in train.items()})
    model = jobs.load_model(config, source, words)
    has_heads = config.init_checkpoint or not config.steps
    tuned = jobs.read_heads(jobs.model_of(config)) if has_heads else ()
    goes_on = _same_heads(tuned, heads)
    heads = _renamed(tuned, heads) if goes_on else heads
    names = [name for head in heads for name in head.outputs]
    model = jobs.with_head(config, model, len(names), label_names=names, goes_on=goes_on)
    model, report = jobs.compressed(config, model)
    encoded = {name: split.encode(words, config.max_length) for name, split in train.items()}
    jobs.check_token_types(model, list(encoded.values()), source)
    mixture = data.Mixture(
        encoded,
        config.batch_size,
        seed=config.seed,
        exponent=config.exponent,
        lengths=config.lengths,
    )
    return jobs.Job(
        name="+".join(tasks),
        model=model,
        source=source,
        report=report,
        metric=multitask.TasksEvaluator.AVERAGE,
        loss=multitask.mixture_loss(heads),
        train=mixture,
        dev={
            name: fitting.eval_data(config, split.encode(words, config.max_length))
            for name, split in dev.items()
        },
        dev_examples=sum(map(len, dev.values())),
        evaluate=multitask.TasksEvaluator(heads, evaluators, main_metrics),
        heads=heads,
    )


def _load_tasks(config: ml_collections.ConfigDict) -> dict[str, data.TextTask]:
    tasks: dict[str, data.TextTask] = {}
    for entry in data.task_names(config.tasks):
        task = data.load_task(entry, config.data_dir or None)
        if task.name in tasks:
            raise ValueError(
                f"config.tasks has two tasks called {task.name!r}; give your own files names of "
                "their own, as in 'file:train=a.tsv,dev=b.tsv;name=mine'."
            )
        tasks[task.name] = task
    if unknown := sorted(set(config.metrics) - set(tasks)):
        raise ValueError(f"config.metrics is about {unknown}; the tasks are {[*tasks]}.")
    return tasks


def _same_heads(tuned: Sequence[multitask.TaskHead], heads: Sequence[multitask.TaskHead]) -> bool:
    """True if the columns of a saved model are those of the tasks, class by class."""
    same = [_block(head) for head in tuned] == [_block(head) for head in heads]
    return same and all(
        jobs.same_classes(known.label_names, head.label_names)
        for known, head in zip(tuned, heads, strict=True)
    )


def _block(head: multitask.TaskHead) -> tuple:
    return head.task, head.kind, head.start, head.stop


def _renamed(
    tuned: Sequence[multitask.TaskHead], heads: Sequence[multitask.TaskHead]
) -> tuple[multitask.TaskHead, ...]:
    """The saved heads under the names that the tasks have for their classes."""
    return tuple(
        dataclasses.replace(known, label_names=head.label_names)
        for known, head in zip(tuned, heads, strict=True)
    )


def _describe(
    config: ml_collections.ConfigDict, job: jobs.Job, outcome: tuning.Outcome
) -> dict[str, Any]:
    tasks = {}
    for head in job.heads:
        prefix = f"{head.task}/"
        own = {
            name.removeprefix(prefix): value
            for name, value in outcome.metrics.items()
            if name.startswith(prefix)
        }
        metric = job.evaluate.main[head.task]
        tasks[head.task] = {
            "metric_name": metric,
            "metric": own[metric],
            "metrics": own,
            "share": job.train.shares[head.task],
            "train_examples": job.train.sizes[head.task],
            "dev_examples": job.dev[head.task].num_examples,
            "columns": [head.start, head.stop],
            "label_names": head.label_names,
        }
    return {"tasks": tasks} | outcome.facts


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    lines = [
        f"{len(result['tasks'])} tasks, {result['variant'] or 'no variant name'}, seed "
        f"{result['seed']}, after {result['steps']} steps",
        "",
        f"  {'task':<12} {'metric':<12} {'value':>7} {'dev':>8} {'train':>9} {'of a batch':>11}",
    ]
    for name, task in result["tasks"].items():
        sizes = f"{task['dev_examples']:>8,} {task['train_examples']:>9,}"
        for metric, value in task["metrics"].items():
            end = f"{sizes} {task['share']:>11.1%}" if metric == task["metric_name"] else ""
            lines.append(f"  {name:<12} {metric:<12} {value:>7.4f} {end}".rstrip())
    lines += [
        f"  {'average':<12} {'':<12} {result['metric']:>7.4f}",
        "",
        f"  {result['trained']:,} of {result['total']:,} parameters trained",
    ]
    if result["relative_error"]:
        lines.append(f"  relative weight error {result['relative_error']:.4f} before training")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, defaults.get_config())
