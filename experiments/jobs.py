"""What a fine-tuning config asks for, loaded: examples, and the model, maybe compressed."""

import dataclasses

import ml_collections
from absl import logging
from flax import nnx

from experiments import fitting, sources
from mpojax import data, interop, models, training


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config asks for, loaded: the model with its head, and encoded examples.

    Attributes:
      model: compressed where the config says so.
      report: of the compression, or None.
      train, dev: encoded examples; `dev` is what is reported.
      held_out: encoded examples by which squeezing decides, or None where `dev` decides.
      evaluate: evaluator of `dev`; `decide`: that of `held_out`, or of `dev`.
      metric: name of the task's main metric.
    """

    model: models.Model
    report: interop.CompressionReport | None
    kind: str
    metric: str
    train: dict
    dev: dict
    held_out: dict | None
    evaluate: training.Evaluator
    decide: training.Evaluator


def check_compression(config: ml_collections.ConfigDict) -> None:
    """Checks the fields about compression without weights or data.

    Raises:
      ValueError: rules that are malformed, or fields that clash or have nothing to work on.
    """
    rules = read_rules(config)
    settings = [interop.parse_rule(rule)[1] for rule in rules]
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
    """Compression rules as `interop.compress` takes them; none for a dense model."""
    if config.rules:
        return [(pattern, dict(settings)) for pattern, settings in config.rules]
    return [(pattern, config.settings.to_dict()) for pattern in config.matrices]


def prepare(config: ml_collections.ConfigDict) -> Job:
    """Loads and encodes data, loads the model, gives it a head, compresses it.

    Raises:
      ValueError: task, split, model or rules that do not fit.
    """
    task = data.load_task(config.task, config.data_dir or None)
    source = sources.model_folder(config.model)
    words = data.Tokenizer.from_folder(source)
    train, dev = task[config.train_split], task[config.dev_split or task.dev_split]
    held_out = None
    if config.held_out_examples:
        train, held_out = train.split_off(config.held_out_examples)
    train = train.take(config.train_examples) if config.train_examples else train
    dev = dev.take(config.dev_examples) if config.dev_examples else dev
    model = _with_head(config, task, interop.load_pretrained(config.start_from or source))
    if train.labels is None:
        raise ValueError(f"config.train_split={config.train_split!r} of {task.name} has no labels.")
    encoded = [s and s.encode(words, config.max_length) for s in (train, dev, held_out)]
    evaluate = training.evaluator(task, dev)
    decide = evaluate if held_out is None else training.evaluator(task, held_out)
    calibration = None
    if config.calibration_examples:
        few = train.take(config.calibration_examples).encode(words, config.max_length)
        calibration = _calibrated(config, model, few, task.kind)
    model, report = _compressed(config, model, calibration)
    logging.info("%s: %d examples to train on, %d to report", task.name, len(train), len(dev))
    return Job(model, report, task.kind, task.metrics[0], *encoded, evaluate, decide)


def _with_head(config, task: data.TextTask, model: models.Model) -> models.Model:
    head = "span" if task.kind == "span" else "classifier"
    outputs = 2 if head == "span" else task.num_labels
    has = model.config.num_labels is not None
    pooling = config.pooling or (
        model.config.pooling if model.config.pooling != "none" else "pooler"
    )
    same = has and (model.config.num_labels, model.config.head) == (outputs, head)
    # A model that was tuned on a task before goes on with its head.
    if config.start_from and same:
        if config.pooling not in ("", model.config.pooling):
            raise ValueError(
                f"config.pooling={config.pooling!r}, but the head of {config.start_from} was tuned "
                f"with {model.config.pooling!r}; leave it empty."
            )
    else:
        rngs = nnx.Rngs(config.seed)
        model = models.with_head(model, outputs, pooling=pooling, head=head, rngs=rngs)
    if config.dropout >= 0:
        rates = dict.fromkeys(("dropout", "attention_dropout"), float(config.dropout))
        model = models.reconfigure(model, **rates, classifier_dropout=None)
    return model


def _calibrated(config, model: models.Model, examples: dict, kind: str) -> interop.Calibration:
    if config.allocation == "first_order" and not config.start_from:
        logging.warning(
            "allocation='first_order': gradients go through a head that is not trained yet; "
            "config.start_from with a model tuned on the task says more about it"
        )
    batches = fitting.eval_data(config, examples)
    loss = training.objective(kind) if config.allocation == "first_order" else None
    return interop.calibrate(model, (batches[i] for i in range(len(batches))), loss=loss)


def _compressed(config, model: models.Model, calibration: interop.Calibration | None):
    rules = read_rules(config)
    if not rules:
        return model, None
    return interop.compress(
        model,
        rules,
        budget=config.budget,
        bond=config.bond,
        calibration=calibration,
        allocation=config.allocation,
        keep_dense=config.keep_dense,
    )
