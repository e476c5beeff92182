"""Setup of a fine-tuning config: examples, and the model, maybe compressed."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging
from flax import nnx

from experiments import adapters, config_fields, fitting, sources
from mpojax import checks, compression, data, files, io, models, training
from mpojax.methods import mpop, multitask
from mpojax.training import objectives

HELD_OUT = "held_out"  # as `config.dev_split`
_HEADS_FILE = "tasks.json"  # next to the weights of a model of several tasks


# What tells models of one architecture apart, by its name in their configs.
SIZES = (
    *("vocab_size", "embedding_size", "hidden_size", "intermediate_size"),
    *("num_layers", "num_decoder_layers", "num_heads"),
)


def sizes(config: Any) -> dict[str, int]:
    """The `SIZES` that a model's config has."""
    found = {name: getattr(config, name, None) for name in SIZES}
    return {name: size for name, size in found.items() if size is not None}


@dataclasses.dataclass(frozen=True)
class Job:
    """Setup of a config: the model with its head, and batches of examples.

    Attributes:
      name: of the task as the config gives it, or of all tasks.
      model: compressed where the config says so.
      source: folder of its tokenizer.
      report: of the compression, or None.
      metric: name of the main metric.
      loss: what training minimises.
      train: batches to train on.
      dev: what is reported, as `evaluate` takes it.
      dev_examples: how many these are.
      evaluate: evaluator of `dev`.
      held_out: by which squeezing decides, through `decide`; None where `dev` decides.
      decide: evaluator of `held_out`, or of `dev`.
      heads: of a model of several tasks, the columns of each.
      has_tuned_head: whether the model's head is that of `config.init_checkpoint`, not a fresh one.
    """

    name: str
    model: models.Model
    source: str
    report: compression.CompressionReport | None
    metric: str
    loss: objectives.LossFunction
    train: data.TrainData
    dev: data.EvalData | Mapping[str, data.EvalData]
    dev_examples: int
    evaluate: training.Evaluator | multitask.TasksEvaluator
    held_out: data.EvalData | None = None
    decide: training.Evaluator | None = None
    heads: tuple[multitask.TaskHead, ...] = ()
    has_tuned_head: bool = False


def check(config: ml_collections.ConfigDict, *, can_only_evaluate: bool = False) -> None:
    """Checks what every fine-tuning config says, without weights or data.

    Args:
      can_only_evaluate: whether `config.steps` may be 0.

    Raises:
      ValueError: a field that is wrong whatever model and task are.
    """
    config_fields.check(config, can_only_evaluate=can_only_evaluate)
    mpop.check_trainable(config.trainable)
    check_compression(config)
    adapters.check(config)
    if config.architecture and config.architecture not in models.PRESETS:
        raise ValueError(
            f"config.architecture={config.architecture!r} must be one of {sorted(models.PRESETS)}."
        )
    if config.draw and not config.shots:
        raise ValueError(f"config.draw={config.draw} has nothing to draw: give config.shots.")
    if config.shots and config.train_examples:
        raise ValueError(
            f"config.shots={config.shots} and config.train_examples={config.train_examples} both "
            "say how many examples are trained on: give one."
        )


def with_task_names(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with each of `config.tasks` by itself, however it is written.

    A command line gives several as one text; a run is the same either way.
    """
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.tasks = data.task_names(config.tasks)
    return config


def check_compression(config: ml_collections.ConfigDict) -> None:
    """Checks the fields about compression without weights or data.

    Raises:
      ValueError: rules that are malformed, or fields that clash or have nothing to work on.
    """
    rules = read_rules(config)
    settings = [compression.parse_rule(rule)[1] for rule in rules]
    if not rules:
        for name in ("budget", "bond", "calibration_examples", "settings"):
            if config[name]:
                raise ValueError(
                    f"config.{name}={config[name]!r} has no matrices to work on: name them in "
                    "config.matrices or config.rules."
                )
    if config.rules and (config.matrices or config.settings):
        raise ValueError("config.rules takes the place of config.matrices and settings: give one.")
    if config.budget is not None and config.bond is not None:
        raise ValueError("config.budget and config.bond exclude each other; give one.")
    if config.allocation not in ("error", "first_order"):
        raise ValueError(f"config.allocation={config.allocation!r} must be error or first_order.")
    needs_texts = any(each.data_aware for each in settings) or config.allocation == "first_order"
    if needs_texts and not config.calibration_examples:
        raise ValueError(
            "data_aware settings and allocation='first_order' look at activations: give "
            "config.calibration_examples, such as 1024."
        )


def read_rules(config: ml_collections.ConfigDict) -> list[tuple[str, dict]]:
    """Compression rules as `compression.compress` takes them; none for a dense model."""
    if config.rules:
        return [(pattern, dict(settings)) for pattern, settings in config.rules]
    return [(pattern, config.settings.to_dict()) for pattern in config.matrices]


def prepare(config: ml_collections.ConfigDict) -> Job:
    """Loads and encodes data, loads the model, gives it a head, compresses it.

    Raises:
      ValueError: task, split, model or rules that do not fit.
    """
    task = data.load_task(config.task, config.data_dir or None)
    metric = main_metric(task, config.metric)
    source, words = tokenizer(config)
    train, dev, held_out = splits(config, task)
    head = "span" if task.kind == "span" else "classifier"
    model, goes_on = tuned_head(config, load_model(config, source, words), task, head)
    names = task.label_names
    model = with_head(config, model, task.num_labels, head, label_names=names, goes_on=goes_on)
    encoded = [s and _encoded(s, words, config.max_length) for s in (train, dev, held_out)]
    check_token_types(model, encoded[:2], source)
    evaluate, loss = training.evaluator(task, dev), training.objective(task.kind)
    calibration = None
    if config.calibration_examples:
        few = train.take(config.calibration_examples).encode(words, config.max_length)
        calibration = _calibrated(config, model, few, loss)
    model, report = compressed(config, model, calibration)
    logging.info("%s: %d examples to train on, %d to report", task.name, len(train), len(dev))
    return Job(
        name=config.task,
        model=model,
        source=source,
        report=report,
        metric=metric,
        loss=loss,
        train=fitting.train_data(config, encoded[0], config.seed),
        dev=fitting.eval_data(config, encoded[1]),
        dev_examples=len(encoded[1]["input_ids"]),
        evaluate=evaluate,
        held_out=held_out and fitting.eval_data(config, encoded[2]),
        decide=training.evaluator(task, held_out) if held_out else evaluate,
        has_tuned_head=goes_on,
    )


def _encoded(split: data.Split, words: data.Tokenizer, max_length: int) -> dict[str, Any]:
    """Arrays of a split, with a digest of the texts that its evaluation reads besides."""
    arrays = split.encode(words, max_length)
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


def splits(config: ml_collections.ConfigDict, task: data.TextTask):
    """(what is trained on, what is reported, what is held out or None) of a task.

    Raises:
      ValueError: no such split or one without labels, or too few examples for the config.
    """
    train, held_out = task[config.train_split], None
    if train.labels is None:
        raise ValueError(f"config.train_split={config.train_split!r} of {task.name} has no labels.")
    if config.held_out_examples:
        train, held_out = train.split_off(config.held_out_examples)
    dev = _reported(config, task, held_out)
    if config.shots:
        train = data.few_shot(task, train, config.shots, config.draw)
    train = train.take(config.train_examples) if config.train_examples else train
    dev = dev.take(config.dev_examples) if config.dev_examples else dev
    return train, dev, held_out


def _reported(config: ml_collections.ConfigDict, task: data.TextTask, held_out):
    if config.dev_split != HELD_OUT:
        return task[config.dev_split or task.dev_split]
    if held_out is None:
        raise ValueError(
            f"config.dev_split={HELD_OUT!r} reports what is held out from the training split: set "
            "config.held_out_examples to how many examples that are."
        )
    return held_out


def tokenizer(config: ml_collections.ConfigDict) -> tuple[str, data.Tokenizer]:
    """The folder of `config.model`, and the tokenizer in it.

    Raises:
      FileNotFoundError: there is none.
    """
    source = sources.locate(config.model)
    try:
        words, folder = sources.load_tokenizer(source)
        return folder, words
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"config.model={config.model!r}: {error}. Copy the tokenizer of the model there; or "
            "give the folder that has it as config.model, and this one as config.init_checkpoint."
        ) from error


def load_model(
    config: ml_collections.ConfigDict, source: str, words: data.Tokenizer
) -> models.Model:
    """The model of `config.init_checkpoint`, or of `config.model`; `source` is its tokenizer's.

    Raises:
      ValueError: it is no encoder, or too small for the tokenizer's tokens or for max_length.
    """
    folder = model_of(config)
    model = io.load_pretrained(folder)
    if not isinstance(model.config, models.EncoderConfig):
        raise ValueError(
            f"{folder} is no encoder: experiments.language_model tunes decoders, and "
            "experiments.text_to_text encoder-decoders."
        )
    if config.max_length > model.config.max_positions:
        raise ValueError(
            f"config.max_length={config.max_length} is more than the "
            f"{model.config.max_positions} positions of {folder}."
        )
    if words.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {source} has {words.vocab_size} tokens, the token embedding of "
            f"{folder} {model.config.vocab_size} rows: they do not belong together."
        )
    return models.reconfigure(model, dtype=config.dtype, remat=config.remat)


def check_token_types(model: models.Model, encoded: list[dict], source: str) -> None:
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


def model_of(config: ml_collections.ConfigDict) -> str:
    """Source of the weights: of `config.init_checkpoint`, or else of `config.model`."""
    if config.init_checkpoint:
        return sources.locate(config.init_checkpoint, "config.init_checkpoint")
    return sources.locate(config.model)


def tuned_head(
    config: ml_collections.ConfigDict, model: models.Model, task: data.TextTask, head: str
) -> tuple[models.Model, bool]:
    """The model, and whether its head was tuned on the task (or one like it) and is reused.

    A run without steps, which only evaluates, keeps the head of `config.model`, too.

    Of a model of several tasks the head of this one is cut out. A head of other classes, or of
    these in another order, is not reused.
    """
    has_head = model.config.num_labels is not None and not model.config.masked_lm
    if config.steps and not config.init_checkpoint:
        if has_head:
            logging.info(
                "the head of %s is made anew; config.init_checkpoint keeps it", config.model
            )
        return model, False
    source = config.init_checkpoint or config.model
    heads = read_heads(model_of(config))
    own = [known for known in heads if known.task == task.name]
    model = multitask.single_task(model, own[0]) if own else model
    tuned = bool(own) if heads else has_head
    known, wanted = model.config.label_names, task.label_names
    same = (model.config.num_labels, model.config.head) == (task.num_labels, head)
    same = tuned and same and same_classes(known, wanted)
    if same and wanted and not known:
        logging.warning("the classes of %s have no names: taken for %s", source, list(wanted))
    elif not same:
        logging.warning(
            "%s has no head for %s, whose classes are %s%s: it is made anew%s",
            *(source, task.name, checks.listed(wanted) or "numbers"),
            f" (but one for {checks.listed(known)})" if known else "",
            "" if config.steps else ", and what is measured without training is chance",
        )
    return model, same


def same_classes(known: Sequence[str], wanted: Sequence[str]) -> bool:
    """True if classes may be the same, in the same order; numbers are no names."""
    if not known or all(map(str.isdigit, known)) or all(map(str.isdigit, wanted)):
        return True
    return [name.lower() for name in known] == [name.lower() for name in wanted]


def with_head(
    config: ml_collections.ConfigDict,
    model: models.Model,
    outputs: int,
    head: str = "classifier",
    *,
    label_names: Sequence[str] = (),
    goes_on: bool = False,
) -> models.Model:
    """The model with a fresh head, or its own where `goes_on`; adapters, dropout by the config.

    Its outputs are named by `label_names`.
    """
    if goes_on:
        if config.pooling not in ("", model.config.pooling):
            raise ValueError(
                f"config.pooling={config.pooling!r}, but the model's own head was tuned "
                f"with {model.config.pooling!r}; leave it empty."
            )
        source = model.config.with_label_names(label_names).source_config
        model = models.reconfigure(model, source_config=source)
    else:
        known = model.config.pooling if model.config.pooling != "none" else "pooler"
        pooling, rngs = config.pooling or known, nnx.Rngs(config.seed)
        of_head = {"pooling": pooling, "head": head, "label_names": label_names}
        model = models.with_head(model, outputs, **of_head, rngs=rngs)
    model = adapters.adapted(config, model)
    if config.dropout >= 0:
        rates = dict.fromkeys(("dropout", "attention_dropout"), float(config.dropout))
        model = models.reconfigure(model, **rates, classifier_dropout=None)
    return model


def read_heads(folder: str | os.PathLike) -> tuple[multitask.TaskHead, ...]:
    """The columns of the tasks of a saved model; none for a model of one task."""
    path = pathlib.Path(folder) / _HEADS_FILE
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(multitask.TaskHead(**entry) for entry in entries)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of tasks as this library writes it: {error}"
        ) from error


def write_heads(folder: pathlib.Path, heads: Sequence[multitask.TaskHead]) -> None:
    """Writes the columns of the tasks next to the weights of a saved model."""
    entries = [dataclasses.asdict(head) for head in heads]
    files.write_atomic(folder / _HEADS_FILE, json.dumps(entries, indent=1) + "\n")


def compressed(
    config: ml_collections.ConfigDict,
    model: models.Model,
    calibration: compression.Calibration | None = None,
) -> tuple[models.Model, compression.CompressionReport | None]:
    """The model by the config's rules, and the report; the model as it is without rules."""
    rules = read_rules(config)
    if not rules:
        return model, None
    return compression.compress(
        model,
        rules,
        budget=config.budget,
        bond=config.bond,
        calibration=calibration,
        allocation=config.allocation,
        keep_dense=config.keep_dense,
    )


def _calibrated(
    config: ml_collections.ConfigDict,
    model: models.Model,
    examples: Mapping,
    loss: objectives.LossFunction,
) -> compression.Calibration:
    first_order = config.allocation == "first_order"
    if first_order and not config.init_checkpoint:
        logging.warning(
            "allocation='first_order': gradients go through a head that is not trained yet; "
            "config.init_checkpoint with a model tuned on the task says more about it"
        )
    batches = fitting.eval_data(config, examples)
    return compression.calibrate(
        model, (batches[i] for i in range(len(batches))), loss=loss if first_order else None
    )
