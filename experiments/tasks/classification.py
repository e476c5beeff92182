"""Classification, regression and spans: one task on an encoder with a head."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from experiments.tasks import heads, loading
from mpojax import checks, data, models, training
from mpojax.methods import multitask, protocol
from mpojax.methods import options as options_lib


class Classification(protocol.Task):
    """One task, named by `config.task`."""

    def check(self, options: options_lib.Options) -> None:
        data.check_task(options.data.task)

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        own = options.data
        task = data.load_task(own.task, own.folder)
        metric = main_metric(task, own.metric)
        tokenizer, folder = loading.tokenizer(options.model)
        train, dev, held_out = splits(own, task)
        head = "span" if task.kind == "span" else "classifier"
        model = load_encoder(options, tokenizer, folder)
        model, reuse_head = tuned_head(options, model, task, head)
        names = task.label_names
        model = loading.with_head(
            options, model, task.num_labels, head, label_names=names, reuse_head=reuse_head
        )
        encoded = [s and _encoded(s, tokenizer, own.max_length) for s in (train, dev, held_out)]
        check_token_types(model, encoded[:2], folder)
        evaluate, loss = training.evaluator(task, dev), training.objective(task.kind)
        calibration = None
        if few := options.compression.calibration_examples:
            examples = train.take(few).encode(tokenizer, own.max_length)
            _warn_of_gradients(options)
            batches = loading.eval_data(options, examples)
            calibration = loading.calibrated(options, model, batches, loss)
        model, report = loading.compressed(options.compression, model, calibration)
        logging.info("%s: %d examples to train on, %d to report", task.name, len(train), len(dev))
        return protocol.Setup(
            task=self,
            options=options,
            name=own.task,
            model=model,
            tokenizer_folder=folder,
            report=report,
            metric=metric,
            loss=loss,
            train=loading.train_data(options, encoded[0], options.training.seed),
            dev=loading.eval_data(options, encoded[1]),
            num_dev_examples=len(encoded[1]["input_ids"]),
            evaluate=evaluate,
            held_out=held_out and loading.eval_data(options, encoded[2]),
            decide=training.evaluator(task, held_out) if held_out else None,
            has_tuned_head=reuse_head,
        )

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        own = setup.options.data
        return {"fit": None, "squeeze": None, "shots": own.shots, "draw": own.draw}

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        shots = f", {result['shots']} shots, draw {result['draw']}" if result["shots"] else ""
        lines = [
            f"{result['task']}, {result['variant'] or 'no variant name'}{shots}, seed "
            f"{result['seed']}",
            f"  {loading.metrics_line(result['metrics'])} on {result['dev_examples']:,} examples, "
            f"after {result['steps']} steps",
        ]
        return lines + sizes_lines(result)


def sizes_lines(result: Mapping[str, Any]) -> list[str]:
    """Lines about what was trained, and what a compression cost before that."""
    lines = [f"  {result['trained']:,} of {result['total']:,} parameters trained"]
    if result["relative_error"]:
        lines.append(f"  relative weight error {result['relative_error']:.4f} before training")
    return lines


def load_encoder(
    options: options_lib.Options, tokenizer: data.Tokenizer, folder: str
) -> models.Model:
    """The model of a config.

    Raises:
      ValueError: it is no encoder, or too small for the tokenizer's tokens or for max_length.
    """
    own, length = options.model, options.data.max_length
    model = loading.load(own, options.training.seed, tokenizer, folder)
    if not isinstance(model.config, models.EncoderConfig):
        raise ValueError(
            f"{loading.source(own)} is no encoder: configs/mpoe/base.py tunes decoders "
            "(config.dataset), and encoder-decoders (config.task)."
        )
    if length > model.config.max_positions:
        raise ValueError(
            f"config.max_length={length} is more than the {model.config.max_positions} positions "
            f"of {loading.source(own)}."
        )
    return model


def _encoded(split: data.Split, tokenizer: data.Tokenizer, max_length: int) -> dict[str, Any]:
    """Arrays of a split, with a digest of the texts that its evaluation reads besides."""
    arrays = split.encode(tokenizer, max_length)
    if isinstance(split, data.SpanSplit):
        arrays["text_hash"] = split.text_hash(arrays)
    return arrays


def main_metric(task: data.TextTask, name: str = "") -> str:
    """The metric of a task that decides: its first one, or the one that the config names.

    Raises:
      ValueError: the task has no such metric.
    """
    if name and name not in task.metrics:
        raise ValueError(f"task {task.name!r} has no metric {name!r}; has {list(task.metrics)}.")
    return name or task.metrics[0]


def splits(options: options_lib.Data, task: data.TextTask):
    """(what is trained on, what is reported, what is held out or None) of a task.

    Raises:
      ValueError: no such split or one without labels, or too few examples for the config.
    """
    train, held_out = task[options.train_split], None
    if train.labels is None:
        raise ValueError(
            f"config.train_split={options.train_split!r} of {task.name} has no labels."
        )
    if options.held_out_examples:
        train, held_out = train.split_off(options.held_out_examples)
    dev = _reported(options, task, held_out)
    if options.shots:
        train = data.few_shot(task, train, options.shots, options.draw)
    train = train.take(options.train_examples) if options.train_examples else train
    dev = dev.take(options.dev_examples) if options.dev_examples else dev
    return train, dev, held_out


def _reported(options: options_lib.Data, task: data.TextTask, held_out):
    if options.dev_split != options_lib.HELD_OUT:
        return task[options.dev_split or task.dev_split]
    if held_out is None:
        raise ValueError(
            f"config.dev_split={options.dev_split!r} reports what is held out from the training "
            "split: set config.held_out_examples to how many examples that are."
        )
    return held_out


def check_token_types(model: models.Model, encoded: Sequence[Mapping], source: str) -> None:
    """Raises ValueError for token types that the model has no embedding of."""
    known = getattr(model.config, "token_types", 0)
    largest = max(int(arrays["token_type_ids"].max(initial=0)) for arrays in encoded)
    if known and largest >= known:
        raise ValueError(
            f"pairs of texts have token types 0 to {largest}, the model has embeddings of {known} "
            f"(type_vocab_size={known}). If it was trained with zeros, as transformers users pass, "
            f"say so in {source}/tokenizer_config.json: "
            '"model_input_names": ["input_ids", "attention_mask"].'
        )


def tuned_head(
    options: options_lib.Options, model: models.Model, task: data.TextTask, head: str
) -> tuple[models.Model, bool]:
    """The model, and whether its head was tuned on the task (or one like it) and is reused.

    A run without steps, which only evaluates, keeps the head of `config.model`, too.

    Of a model of several tasks the head of this one is cut out. A head of other classes, or of
    these in another order, is not reused.
    """
    own, steps = options.model, options.training.steps
    has_head = model.config.num_labels is not None and not model.config.masked_lm
    if steps and not own.init_checkpoint:
        if has_head:
            logging.info("the head of %s is made anew; config.init_checkpoint keeps it", own.model)
        return model, False
    known_heads = heads.read(loading.source(own))
    of_task = [known for known in known_heads if known.task == task.name]
    model = multitask.single_task(model, of_task[0]) if of_task else model
    tuned = bool(of_task) if known_heads else has_head
    known, wanted = model.config.label_names, task.label_names
    same = (model.config.num_labels, model.config.head) == (task.num_labels, head)
    same = tuned and same and heads.same_classes(known, wanted)
    name = own.init_checkpoint or own.model
    if same and wanted and not known:
        logging.warning("the classes of %s have no names: taken for %s", name, list(wanted))
    elif not same:
        logging.warning(
            "%s has no head for %s, whose classes are %s%s: it is made anew%s",
            *(name, task.name, checks.listed(wanted) or "numbers"),
            f" (but one for {checks.listed(known)})" if known else "",
            "" if steps else ", and what is measured without training is chance",
        )
    return model, same


def _warn_of_gradients(options: options_lib.Options) -> None:
    first_order = options.compression.allocation == "first_order"
    if first_order and not options.model.init_checkpoint:
        logging.warning(
            "allocation='first_order': gradients go through a head that is not trained yet; "
            "config.init_checkpoint with a model tuned on the task says more about it"
        )
