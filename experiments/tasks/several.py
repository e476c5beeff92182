"""Several tasks at once on one encoder: every batch mixes them, each has its own head.

An example counts through the columns of its own task. The result has the metrics of every task, and
the mean of their main ones.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.tasks import classification, heads, loading
from mpojax import data, training
from mpojax.methods import multitask, protocol
from mpojax.methods import options as options_lib

# Fields that say something of a single task only.
_SINGLE = ("dev_split", "held_out_examples", "calibration_examples")


class SeveralTasks(protocol.Task):
    """Tasks named by `config.tasks`."""

    def check(self, options: options_lib.Options) -> None:
        names = data.task_names(options.data.tasks)
        if not names:
            raise ValueError("config.tasks is empty: name the tasks, such as sst2,cola,mrpc,rte.")
        for name in names:
            data.check_task(name)
            if name == "squad":
                raise ValueError(
                    "config.tasks has 'squad', whose answers are spans: a shared head is for "
                    "classes and scores. Fine-tune on it alone, with config.task."
                )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"config.tasks names {twice} twice; name every task once.")
        options_lib.check_default(options, _SINGLE, " has no meaning with several tasks")

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        own, train, dev = options.data, {}, {}
        tasks = _load_tasks(own)
        main = {n: classification.main_metric(t, own.metrics.get(n, "")) for n, t in tasks.items()}
        tokenizer, folder = loading.tokenizer(options.model)
        for name, task in tasks.items():
            train[name], dev[name], _ = classification.splits(own, task)
            counts = len(train[name]), len(dev[name])
            logging.info("%s: %d examples to train on, %d to report", name, *counts)
        evaluators = {name: training.evaluator(task, dev[name]) for name, task in tasks.items()}
        made = multitask.make_heads(tasks, {name: split.labels for name, split in train.items()})
        model = classification.load_encoder(options, tokenizer, folder)
        has_heads = options.model.init_checkpoint or not options.training.steps
        tuned = heads.read(loading.source(options.model)) if has_heads else ()
        reused = heads.renamed(tuned, made)
        made = reused or made
        # One head with the columns of all tasks side by side.
        names = [name for head in made for name in head.outputs]
        model = loading.with_head(
            options, model, len(names), label_names=names, reuse_head=reused is not None
        )
        model, report = loading.compressed(options.compression, model)
        encoded = {name: split.encode(tokenizer, own.max_length) for name, split in train.items()}
        classification.check_token_types(model, list(encoded.values()), folder)
        return protocol.Setup(
            task=self,
            options=options,
            name="+".join(tasks),
            model=model,
            tokenizer_folder=folder,
            report=report,
            metric=multitask.TasksEvaluator.AVERAGE,
            loss=multitask.mixture_loss(made),
            train=data.Mixture(
                encoded,
                options.training.batch_size,
                seed=options.training.seed,
                exponent=own.exponent,
                lengths=own.lengths,
            ),
            dev={
                name: loading.eval_data(options, split.encode(tokenizer, own.max_length))
                for name, split in dev.items()
            },
            num_dev_examples=sum(map(len, dev.values())),
            evaluate=multitask.TasksEvaluator(made, evaluators, main),
            extra=made,
        )

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        tasks = {}
        for head in setup.extra:
            prefix = f"{head.task}/"
            own = {
                name.removeprefix(prefix): value
                for name, value in result.metrics.items()
                if name.startswith(prefix)
            }
            metric = setup.evaluate.main[head.task]
            tasks[head.task] = {
                "metric_name": metric,
                "metric": own[metric],
                "metrics": own,
                "share": setup.train.shares[head.task],
                "train_examples": setup.train.sizes[head.task],
                "dev_examples": setup.dev[head.task].num_examples,
                "columns": [head.start, head.stop],
                "label_names": head.label_names,
            }
        return {"tasks": tasks}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        lines = [
            f"{len(result['tasks'])} tasks, {result['variant'] or 'no variant name'}, seed "
            f"{result['seed']}, after {result['steps']} steps",
            "",
            f"  {'task':<12} {'metric':<12} {'value':>7} {'dev':>8} {'train':>9}  of a batch",
        ]
        for name, task in result["tasks"].items():
            sizes = f"{task['dev_examples']:>8,} {task['train_examples']:>9,}"
            for metric, value in task["metrics"].items():
                end = f"{sizes} {task['share']:>11.1%}" if metric == task["metric_name"] else ""
                lines.append(f"  {name:<12} {metric:<12} {value:>7.4f} {end}".rstrip())
        average = f"  {'average':<12} {'':<12} {result['metric']:>7.4f}"
        return [*lines, average, "", *classification.sizes_lines(result)]

    def save(self, setup: protocol.Setup, folder) -> None:
        heads.write(folder, setup.extra)


def _load_tasks(options: options_lib.Data) -> dict[str, data.TextTask]:
    tasks: dict[str, data.TextTask] = {}
    for entry in data.task_names(options.tasks):
        task = data.load_task(entry, options.folder)
        if task.name in tasks:
            raise ValueError(
                f"config.tasks has two tasks called {task.name!r}; give your own files names of "
                "their own, as in 'file:train=a.tsv,dev=b.tsv;name=mine'."
            )
        tasks[task.name] = task
    if unknown := sorted(set(options.metrics) - set(tasks)):
        raise ValueError(f"config.metrics is about {unknown}; the tasks are {[*tasks]}.")
    return tasks
