"""Setup of a config of `configs/mpoe`: tokenizer and model, maybe with experts."""

import dataclasses
import re
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from experiments import config_fields, sources, tuning
from mpojax import compression, data, io, models, training
from mpojax.methods.mpoe import gradient_mask
from mpojax.training import state as state_lib

_FORMS = ("dense", *compression.EXPERT_FORMS)
_FRESH = {"decoder": models.DecoderConfig, "encoder_decoder": models.EncoderDecoderConfig}


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without weights or data.

    Raises:
      ValueError: a field that is wrong whatever model and data are.
    """
    config_fields.check(config, can_only_evaluate=True)
    if bool(config.model) == bool(config.model_config.to_dict()):
        raise ValueError(
            "give config.model, a folder with a model, or config.model_config, the sizes of a "
            "fresh one: just one of them."
        )
    if config.model_config.to_dict() and not config.tokenizer:
        raise ValueError(
            "config.model_config needs config.tokenizer, a folder with tokenizer.json."
        )
    if config.model_config.get("kind", "decoder") not in _FRESH:
        raise ValueError(
            f"config.model_config.kind={config.model_config.kind!r} must be one of "
            f"{', '.join(_FRESH)}."
        )
    if config.architecture and config.architecture not in models.LANGUAGE_PRESETS:
        raise ValueError(
            f"config.architecture={config.architecture!r} must be one of "
            f"{', '.join(models.LANGUAGE_PRESETS)}, or empty."
        )
    if config.experts.form not in _FORMS:
        raise ValueError(
            f"config.experts.form={config.experts.form!r} must be one of {', '.join(_FORMS)}."
        )
    for rule in expert_rules(config):
        compression.parse_rule(rule, compression.ExpertRule)
    check_mesh(config)
    check_mask(config)


def check_mesh(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for experts that the mesh cannot divide."""
    mesh = training.make_mesh(config.mesh.to_dict())
    parts, number = mesh.shape["expert"], config.experts.number
    if parts > 1 and config.experts.form == "dense" and not config.model:
        raise ValueError(f"config.mesh.expert={parts} has no experts to split: see config.experts.")
    if parts > 1 and config.experts.form != "dense" and number % parts:
        raise ValueError(
            f"config.experts.number={number} cannot be divided over config.mesh.expert={parts} "
            f"devices; choose a multiple of {parts}, or another mesh."
        )


def check_mask(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a gradient mask that cannot be, or without central cores to mask."""
    gradient_mask.read(config.optimizer.central_mask, {"any": "central"}, config.seed)
    rate = config.optimizer.central_mask.rate
    if (
        rate is not None
        and config.experts.form in ("dense", "switch")
        and config.model_config.to_dict()
    ):
        raise ValueError(
            f"config.optimizer.central_mask.rate={rate} has no central cores to mask: experts of "
            f"form {config.experts.form!r} have none."
        )


def expert_rules(config: ml_collections.ConfigDict) -> list[tuple[str, dict]]:
    """Rules as `compression.add_experts` takes them; none for a dense model."""
    fields = config.experts.to_dict()
    blocks = fields.pop("blocks")
    return [] if fields["form"] == "dense" else [(blocks, fields)]


def load(config: ml_collections.ConfigDict) -> tuple[models.Model, data.Tokenizer, str]:
    """(the model with its experts, its tokenizer, the folder of that).

    Raises:
      ValueError, FileNotFoundError, ImportError: model, tokenizer or settings that do not fit.
    """
    words, folder = tokenizer(config)
    source = config.model and sources.locate(config.model)
    model = io.load_pretrained(source) if source else fresh(config, words)
    _check_vocabulary(config, model, words, folder)
    if config.num_layers_kept:
        model = first_layers(model, config.num_layers_kept)
    model = models.reconfigure(model, **_changes(config, model.config))
    rules = expert_rules(config)
    if rules:
        rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(config.seed), 1))
        model = compression.add_experts(model, rules, rngs=rngs)
    counts = models.count_parameters(model)
    logging.info(
        "%s: %s parameters (%s)",
        config.variant or config.architecture or config.model or "a fresh model",
        f"{sum(counts.values()):,}",
        ", ".join(f"{role} {count:,}" for role, count in counts.items() if count),
    )
    return model, words, folder


def tokenizer(config: ml_collections.ConfigDict) -> tuple[data.Tokenizer, str]:
    """The tokenizer of a config, and its folder.

    Raises:
      FileNotFoundError: there is none.
    """
    field = "config.tokenizer" if config.tokenizer else "config.model"
    source = sources.locate(config.tokenizer or config.model, field)
    try:
        return sources.load_tokenizer(source)
    except FileNotFoundError as error:
        if config.tokenizer:
            raise
        raise FileNotFoundError(
            f"{error}. Give the folder that has it as config.tokenizer."
        ) from error


def documents(tokens: np.ndarray, words: data.Tokenizer) -> list[str]:
    """The texts of tokens, which ends of text part."""
    if words.eos_id is None:
        return [words.decode(tokens)]
    parts = np.split(tokens, np.flatnonzero(tokens == words.eos_id))
    return [words.decode(part[part != words.eos_id]) for part in parts]


def fresh(config: ml_collections.ConfigDict, words: data.Tokenizer) -> models.Model:
    """A random model of `config.model_config`, whose vocabulary is the tokenizer's by default.

    Raises:
      ValueError: unknown or impossible settings.
    """
    fields = {"vocab_size": words.vocab_size} | config.model_config.to_dict()
    kind = _FRESH[fields.pop("kind", "decoder")]
    known = {field.name for field in dataclasses.fields(kind)}
    tokens = {name: getattr(words, name) for name in ("pad_id", "bos_id", "eos_id")}
    tokens["decoder_start_id"] = words.pad_id
    for name, value in tokens.items():
        if value is not None and name in known:
            fields.setdefault(name, value)
    try:
        settings = kind(**fields)
    except TypeError as error:  # names what is unknown, or missing
        raise ValueError(
            f"config.model_config does not make a {kind.__name__}: {error}."
        ) from error
    return models.build(settings, rngs=nnx.Rngs(config.seed))


def first_layers(model: models.LanguageModel, count: int) -> models.LanguageModel:
    """A decoder of the first `count` layers.

    Raises:
      ValueError: an encoder-decoder, or more layers than there are.
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
        experts=still_there(config.experts, models.feed_forwards(config)),
        adapters=still_there(config.adapters, models.adaptable(config)),
        scan_boundaries=tuple(layer for layer in config.scan_boundaries if layer < count),
    )
    return models.from_arrays(config, shapes, arrays)


def _layer(path: str) -> int:
    first, _, rest = path.partition("/")
    return int(rest.partition("/")[0]) if first == "layers" else -1


def _changes(config: ml_collections.ConfigDict, settings: models.Config) -> dict:
    changes = {"dtype": config.dtype, "remat": config.remat}
    if config.dropout >= 0:
        rates = ("dropout", "embedding_dropout", "attention_dropout")
        names = {field.name for field in dataclasses.fields(settings)}
        changes |= {name: config.dropout for name in rates if name in names}
    return changes


def _check_vocabulary(config, model, words: data.Tokenizer, folder: str) -> None:
    if words.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {words.vocab_size} tokens, the token embedding of "
            f"{config.model} {model.config.vocab_size} rows: they do not belong together."
        )


def experts_of(model: models.Model) -> tuple[str, int]:
    """(form, number) of a model's experts, the most where blocks differ; ("dense", 1) without."""
    forms, number = set(), 1
    for path in models.feed_forwards(model.config):
        settings = model.config.experts_of(path)
        if settings is not None:
            has_chain = any(matrix.startswith(f"{path}/") for matrix in model.shapes)
            shared = "mpoe" if settings.share_central else "unshared"
            forms.add(shared if has_chain else "switch")
            number = max(number, settings.number)
    return "+".join(sorted(forms)) or "dense", number


def facts(config: ml_collections.ConfigDict, outcome: tuning.Outcome) -> dict[str, Any]:
    """Entries of the result that all runs of language models have."""

    def size(tree) -> int:
        return sum(array.nbytes for array in state_lib.flatten(tree).values())

    state = outcome.state
    form, number = experts_of(state.model())
    return {
        "form": form,
        "experts": number,
        "mask": config.optimizer.central_mask.rate,
        "parameter_bytes": size(state.trainable) + size(state.frozen),
        "optimizer_bytes": size(state.optimizer),
        **outcome.facts,
    }
