"""Encoders of transformers: poolers, heads of tasks and of pre-training, classes by the tensors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from absl import logging

from mpojax import checks, models
from mpojax.io.hf import names
from mpojax.io.hf.family import Family, num_labels, write_labels
from mpojax.io.hf.names import linear

_PRETRAINING = ("pretraining", "masked_lm")
HEADS = {
    "classifier": {"classifier": linear("head")},
    "span": {"qa_outputs": linear("head")},
    "tokens": {"classifier": linear("head")},
}
_CLASSES = {
    "none": "Model",
    "classifier": "ForSequenceClassification",
    "span": "ForQuestionAnswering",
    "tokens": "ForTokenClassification",
    "pretraining": "ForPreTraining",
    "masked_lm": "ForMaskedLM",
}


def classes(name: str, *pretraining: str) -> dict[str, str]:
    """Classes of transformers that begin with `name`: the tasks, and those of pre-training."""
    return {head: name + _CLASSES[head] for head in ("none", *models.HEADS, *pretraining)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFamily(Family):
    """A model type of encoders.

    Attributes:
      pretraining: classes whose heads are dropped unless they are asked for.
      pretraining_tensors: regular expression for the names in those heads.
      head_dropout: key of the dropout before the head, by kind of head, where there is one.
      output_map: last part of the name of pre-training's output map. Its weight is the token
        embedding, its bias that of its parent; files may hold both a second time.
      pooler_flag: key that says whether the pooler has weights (else it is the first token as it
        is); None where a pooler always has.
    """

    config_class: type = models.EncoderConfig
    heads: Mapping[str, Mapping] = dataclasses.field(default_factory=lambda: HEADS)
    embedding: str = "embeddings.word_embeddings.weight"
    # Saved by older versions of transformers.
    ignored_buffers: str = r"embeddings\.(position_ids|token_type_ids)"
    pretraining: tuple[str, ...]
    pretraining_tensors: str
    head_dropout: Mapping[str, str]
    output_map: str = "predictions.decoder"
    pooler_flag: str | None = None

    own_fields: ClassVar[tuple[str, ...]] = (
        *(name for name in Family.own_fields if name != "adapters"),
        *("classifier_dropout", "pooling", "pooler_activation", "num_labels", "head", "masked_lm"),
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class whose checkpoints are read."""
        return tuple(dict.fromkeys((*self.classes.values(), *self.pretraining)))

    def marks(self, config: models.EncoderConfig) -> dict:
        """`{i}`: layers. `{group}`: groups of layers, in paths the first layer of each. `{j}`:
        feed-forward blocks before the last of a layer, `{last}` that.
        """
        last = config.num_feed_forwards - 1
        return {
            "i": [(layer, layer) for layer in config.matrix_layers],
            "group": list(enumerate(config.matrix_layers)),
            "j": [(j, j) for j in range(last)],
            "last": [(last, last)],
        }

    @property
    def has_pooler(self) -> bool:
        """True if the bare model may have a pooler."""
        return any(module.paths == ("pooler",) for module in self.tensors.values())

    @property
    def classifier_pools(self) -> bool:
        """True if the classifier has a pooler of its own, instead of that of the bare model."""
        return any(module.paths == ("pooler",) for module in self.heads["classifier"].values())

    def head_of(self, config: models.EncoderConfig) -> str:
        """A key of `classes`."""
        if config.masked_lm:
            return "masked_lm" if config.num_labels is None else "pretraining"
        return "none" if config.num_labels is None else config.head

    def misfits_of(self, config: models.EncoderConfig) -> list[str]:
        """Also a head that the type does not have, and another activation of the pooler."""
        wrong = super().misfits_of(config)
        if self.head_of(config) not in self.classes:
            wrong.append(f"masked_lm={config.masked_lm}" if config.masked_lm else f"{config.head=}")
        activation = self.fixed.get("pooler_activation", "tanh")
        if config.pooling == "pooler" and config.pooler_activation != activation:
            wrong.append(f"pooler_activation={config.pooler_activation!r}")
        return wrong

    def complete(self, settings, values, tensors, source, pretraining_head):
        """Pooling and head, by the class and by the tensors; logs what is left out."""
        name = (values.get("architectures") or [self._class_of(tensors)])[0]
        head = {name: head for head, name in self.classes.items()}.get(name, "none")
        if head in _PRETRAINING and pretraining_head:
            head, tensors = self._with_pretraining_head(tensors, source)
        elif name in self.pretraining:
            head, what = "none", "the pre-training head"
            tensors = _without(self.pretraining_tensors, what, tensors, source)
        pooling, tensors = self._pooling(head, values, tensors, source)
        chosen = {
            "classifier_dropout": values.get(self.head_dropout.get(head)),
            "pooling": pooling,
            "num_labels": _num_labels(values, head),
            "head": head if head in models.HEADS else "classifier",
            "masked_lm": head in _PRETRAINING,
        }
        return settings | chosen, tensors

    def _pooling(self, head: str, values, tensors, source: str) -> tuple[str, Mapping]:
        """(pooling, the tensors that it needs)."""
        has_weights = self.pooler_flag is None or values[self.pooler_flag]
        of_tokens = head in ("span", "tokens")
        has_own = self.classifier_pools and "pooler.dense" not in self.heads["classifier"]
        if of_tokens or not has_weights or (head == "classifier" and has_own):
            what = "the pooler, which the model does not use"
            tensors = _without(r"pooler\..+", what, tensors, source)
        if of_tokens or not has_weights:
            return "none" if of_tokens else "first", tensors
        if head in ("classifier", "pretraining") or _has_pooler(tensors):
            return "pooler", tensors
        if head == "none":
            logging.info("%s has no pooler; the model is built without one", source)
        return "none", tensors

    def write_head(self, config: models.EncoderConfig, content: dict) -> None:
        """Dropout of the head, pooler and names of labels.

        Raises:
          ValueError: a classifier on another sentence vector.
        """
        head = self.head_of(config)
        poolings = ("pooler",) if self.pooler_flag is None else ("pooler", "first")
        if head == "classifier" and config.pooling not in poolings:
            raise ValueError(
                f"a classifier with pooling={config.pooling!r} has no counterpart in transformers: "
                f"{self.classes[head]} always has pooling={' or '.join(map(repr, poolings))}."
            )
        self._write_head_dropout(config, head, content)
        if self.pooler_flag is not None:
            content[self.pooler_flag] = config.pooling == "pooler"
        if head in models.HEADS:
            write_labels(config, content)

    def _write_head_dropout(self, config, head: str, content: dict) -> None:
        name, rate = self.head_dropout.get(head), config.classifier_dropout
        if name is None:
            return
        if rate is None and not self.keys[name].allowed.accepts(None):
            # There null does not stand for the general rate.
            rate = config.dropout if head in ("none", "classifier", "tokens") else 0.0
        if rate is not None or name in content:
            content[name] = rate

    def _class_of(self, tensors: Mapping) -> str:
        """The class whose head is among the tensors, for configurations that name none."""
        if any(re.fullmatch(self.pretraining_tensors, name) for name in tensors):
            return self.pretraining[0]
        for head in models.HEADS:
            if any(f"{module}.weight" in tensors for module in self.heads[head]):
                return self.classes[head]
        return self.classes["none"]

    def _with_pretraining_head(self, tensors: Mapping, source: str) -> tuple[str, dict]:
        """The kind of head that the tensors are of, and the tensors that it needs.

        Not the class decides: published files of BertForMaskedLM and AlbertForMaskedLM also have
        the head for the succession or order of sentences, with or without the pooler it reads.
        """
        maps = [name for name in tensors if name.endswith(f"{self.output_map}.weight")]
        tensors = names.without_copies(tensors, self.embedding, maps, source)
        for name in [name for name in tensors if name.endswith(f"{self.output_map}.bias")]:
            # transformers adds this one where the two biases differ.
            parent = name.removesuffix(".bias").rpartition(".")[0]
            tensors[f"{parent}.bias"] = tensors.pop(name)
        modules = self.heads.get("pretraining", {}).items()
        order = [re.escape(name) for name, module in modules if module.paths == ("head",)]
        pattern = rf"({'|'.join(order)})\..+"
        if _has_pooler(tensors) and any(re.fullmatch(pattern, name) for name in tensors):
            logging.info("%s: kept the heads for masked words and for pairs of sentences", source)
            return "pretraining", tensors
        what = "the head for pairs, as there is no pooler"
        return "masked_lm", _without(pattern, what, tensors, source)


def _num_labels(values: Mapping, head: str) -> int | None:
    if head in models.HEADS:
        return num_labels(values)
    return 2 if head == "pretraining" else None


def _has_pooler(tensors: Mapping) -> bool:
    return any(name.startswith("pooler.") for name in tensors)


def _without(pattern: str, what: str, tensors: Mapping, source: str) -> dict:
    """Drops tensors that are no part of the model, and says so."""
    dropped = [name for name in tensors if re.fullmatch(pattern, name)]
    if dropped:
        logging.info("%s: left out %s (%s)", source, what, checks.listed(dropped))
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}
