"""The model of a run: loaded or fresh, with its tokenizer, head, experts, adapters, compression."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from flax import nnx

from experiments import sources
from mpojax import compression, data, io, models
from mpojax.methods import options as options_lib

FRESH = {"decoder": models.DecoderConfig, "encoder_decoder": models.EncoderDecoderConfig}
# What tells models of one architecture apart, by its name in their configs.
_SIZES = (
    *("vocab_size", "embedding_size", "hidden_size", "intermediate_size"),
    *("num_layers", "num_decoder_layers", "num_heads"),
)
_RATES = ("dropout", "embedding_dropout", "attention_dropout")


def sizes(config: Any) -> dict[str, int]:
    """The sizes by which models of one architecture differ, of a model's config."""
    found = {name: getattr(config, name, None) for name in _SIZES}
    return {name: size for name, size in found.items() if size is not None}


def tokenizer(options: options_lib.Model) -> tuple[data.Tokenizer, str]:
    """The tokenizer of a config, and its folder.

    Raises:
      FileNotFoundError: there is none.
    """
    field = "config.tokenizer" if options.tokenizer else "config.model"
    name = options.tokenizer or options.model
    place = sources.locate(name, field)
    try:
        return sources.load_tokenizer(place)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{field}={name!r}: {error}. Give the folder that has one as config.tokenizer; or as "
            "config.model, and the folder of the weights as config.init_checkpoint."
        ) from error


def headline(result: Mapping[str, Any]) -> str:
    """First line of the summary of a language model's run."""
    form = result["form"] if result["experts"] > 1 else ""
    parts = [result["task"], result["variant"] or form, f"seed {result['seed']}"]
    experts = f", {result['experts']} experts" if result["experts"] > 1 else ""
    counts = f"{result['trained']:,} of {result['total']:,} parameters trained{experts}"
    return f"{', '.join(filter(None, parts))}: {counts}"


def source(options: options_lib.Model) -> str:
    """Where the weights are: of `config.init_checkpoint`, or else of `config.model`."""
    if options.init_checkpoint:
        return sources.locate(options.init_checkpoint, "config.init_checkpoint")
    return sources.locate(options.model)


def load(
    options: options_lib.Model, seed: int, tokenizer: data.Tokenizer, folder: str
) -> models.Model:
    """The model of a config, or a fresh one; `folder` is that of the tokenizer.

    Raises:
      ValueError: too small for the tokenizer, or fewer layers than are to be kept.
    """
    where = "" if options.model_config else source(options)
    model = io.load_pretrained(where) if where else fresh(options, seed, tokenizer)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the token embedding of "
            f"{where} {model.config.vocab_size} rows: they do not belong together."
        )
    if options.num_layers_kept:
        model = first_layers(model, options.num_layers_kept)
    return models.reconfigure(model, dtype=options.dtype, remat=options.remat)


def fresh(options: options_lib.Model, seed: int, tokenizer: data.Tokenizer) -> models.Model:
    """A random model of `model_config`, whose vocabulary is the tokenizer's where it says none.

    Raises:
      ValueError: unknown or impossible settings.
    """
    fields = {"vocab_size": tokenizer.vocab_size} | dict(options.model_config)
    kind = FRESH[fields.pop("kind", "decoder")]
    known = {field.name for field in dataclasses.fields(kind)}
    tokens = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
    tokens["decoder_start_id"] = tokenizer.pad_id
    for name, value in tokens.items():
        if value is not None and name in known:
            fields.setdefault(name, value)
    try:
        settings = kind(**fields)
    except TypeError as error:  # names what is unknown, or missing
        raise ValueError(
            f"config.model_config does not make a {kind.__name__}: {error}."
        ) from error
    return models.build(settings, rngs=nnx.Rngs(seed))


def first_layers(model: models.Model, count: int) -> models.LanguageModel:
    """A decoder of the first `count` layers.

    Raises:
      ValueError: another kind of model, or more layers than there are.
    """
    config = model.config
    if not isinstance(config, models.DecoderConfig) or count > config.num_layers:
        raise ValueError(
            f"config.num_layers_kept={count}: the model must be a decoder of at least that many "
            "layers."
        )
    shapes = {path: s for path, s in model.shapes.items() if _layer(path) < count}
    arrays = {path: a for path, a in models.to_arrays(model).items() if _layer(path) < count}

    def still_there(rules: tuple, paths: list[str]) -> tuple:
        paths = [path for path in paths if _layer(path) < count]
        return tuple(rule for rule in rules if any(re.fullmatch(rule[0], p) for p in paths))

    config = dataclasses.replace(
        config,
        num_layers=count,
        experts=still_there(config.experts, config.feed_forwards()),
        adapters=still_there(config.adapters, config.adaptable()),
        scan_boundaries=tuple(layer for layer in config.scan_boundaries if layer < count),
    )
    return models.from_arrays(config, shapes, arrays)


def _layer(path: str) -> int:
    first, _, rest = path.partition("/")
    # -1 is below every count: embeddings, norms and heads are always kept.
    return int(rest.partition("/")[0]) if first == "layers" else -1


def with_experts(options: options_lib.Model, seed: int, model: models.Model) -> models.Model:
    """The model with its blocks of experts, where the config asks for them."""
    if not options.expert_rules:
        return model
    # Not the stream of a fresh model's parameters, whose seed is the same.
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 1))
    return compression.add_experts(model, options.expert_rules, rngs=rngs)


def with_dropout(options: options_lib.Model, model: models.Model, **more: Any) -> models.Model:
    """The model with the config's dropout, where it gives one, and then `more` settings."""
    if options.dropout < 0:
        return model
    known = {field.name for field in dataclasses.fields(model.config)}
    rates = {name: float(options.dropout) for name in _RATES if name in known}
    return models.reconfigure(model, **rates, **more)


def with_head(
    options: options_lib.Options,
    model: models.Model,
    outputs: int,
    head: str = "classifier",
    *,
    label_names: Sequence[str] = (),
    reuse_head: bool = False,
) -> models.Model:
    """An encoder with a fresh head, or its own; with adapters and dropout.

    Its outputs are named by `label_names`.
    """
    pooling = options.model.pooling
    if reuse_head:
        if pooling not in ("", model.config.pooling):
            raise ValueError(
                f"config.pooling={pooling!r}, but the model's own head was tuned "
                f"with {model.config.pooling!r}; leave it empty."
            )
        renamed = model.config.with_label_names(label_names).source_config
        model = models.reconfigure(model, source_config=renamed)
    else:
        known = model.config.pooling if model.config.pooling != "none" else "pooler"
        of_head = {"pooling": pooling or known, "head": head, "label_names": label_names}
        rngs = nnx.Rngs(options.training.seed)
        model = models.with_head(model, outputs, **of_head, rngs=rngs)
    return with_dropout(options.model, adapted(options, model), classifier_dropout=None)


def adapted(options: options_lib.Options, model: models.Model) -> models.Model:
    """The model with the adapters that the config asks for; fresh ones do nothing at first.

    Raises:
      ValueError: rules that do not fit the model; in the phase "pre_training", or with a tuned
        model that has adapters, others than the config asks for.
    """
    rules, own = options.compression.adapter_rules, options.model
    if not rules:
        return model
    wanted = compression.adapter_settings(model.config, rules)
    present = models.adapter_settings(model.config)
    is_tuned = bool(own.init_checkpoint and present)
    if options.compression.adapter_phase == "fine_tuning" and not is_tuned:
        return compression.add_adapters(model, rules, rngs=nnx.Rngs(options.training.seed))
    if wanted != present:
        path = next(p for p in {**wanted, **present} if wanted.get(p) != present.get(p))
        raise ValueError(
            f"{own.init_checkpoint or own.model} must have the adapters of config.adapters, but at "
            f"{path} there is {present.get(path, 'none')} there and {wanted.get(path, 'none')} in "
            "the config. config.adapter_phase='fine_tuning' adds adapters to a model that has none."
        )
    return model


def compressed(
    options: options_lib.Compression,
    model: models.Model,
    calibration: compression.Calibration | None = None,
) -> tuple[models.Model, compression.CompressionReport | None]:
    """The model by the config's rules, and the report; the model as it is without rules."""
    if not options.compression_rules:
        return model, None
    return compression.compress(
        model,
        options.compression_rules,
        budget=options.budget,
        bond=options.bond,
        calibration=calibration,
        allocation=options.allocation,
        keep_dense=options.keep_dense,
    )


def calibrated(
    options: options_lib.Options, model: models.Model, batches: data.EvalData, loss: Any
) -> compression.Calibration:
    """Statistics of the activations on some batches, and of gradients where these are needed."""
    first_order = options.compression.allocation == "first_order"
    return compression.calibrate(
        model,
        (batches[i] for i in range(len(batches))),
        loss=loss if first_order else None,
    )


def train_data(
    options: options_lib.Options, examples: Mapping[str, Any], seed: int
) -> data.TrainData:
    """Batches of encoded training examples by the config; `seed` is that of their order.

    Raises:
      ValueError: a size that must be a mistake: examples repeat in small batches alone.
    """
    count, size = len(examples["input_ids"]), options.training.batch_size
    if size > max(1024, 10 * count):
        raise ValueError(
            f"config.batch_size={size} is more than ten times the {count} training examples; "
            "lower it."
        )
    return data.TrainData(examples, size, seed=seed, lengths=options.data.lengths)


def eval_data(options: options_lib.Options, examples: Mapping[str, Any]) -> data.EvalData:
    """Batches of encoded examples by the config."""
    size = options.training.eval_batch_size
    return data.EvalData(examples, size, lengths=options.data.lengths)


def log_size(label: str, model: models.Model) -> None:
    """Logs the parameters of a model, by role."""
    counts = models.count_parameters(model)
    logging.info(
        "%s: %s parameters (%s)",
        label,
        f"{sum(counts.values()):,}",
        ", ".join(f"{role} {count:,}" for role, count in counts.items() if count),
    )


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Metrics in a line of a summary."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
