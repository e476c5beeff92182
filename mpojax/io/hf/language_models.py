"""Language models of transformers: output maps that are the token embedding, and its copies."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from absl import logging

from mpojax import models
from mpojax.io.hf import names
from mpojax.io.hf.family import Family, num_labels, write_labels
from mpojax.io.hf.names import Module, linear

_CLASSES = {
    "lm": "ForCausalLM",
    "none": "Model",
    "classifier": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
}


def classes(name: str, *heads: str) -> dict[str, str]:
    """Classes of transformers that begin with `name`, by head: those of decoders, or of some."""
    return {head: name + _CLASSES[head] for head in heads or _CLASSES}


def heads(lm: str = "lm_head", tokens: str = "score") -> dict[str, dict[str, Module]]:
    """Names of the output maps by head; those of `lm` and of labels of tokens differ."""
    found = {"lm": lm, "classifier": "score", "tokens": tokens}
    return {head: {name: linear("head")} for head, name in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageFamily(Family):
    """A model type of language models; of a class "none" logits come from the token embedding.

    Attributes:
      copies: names of other copies of the token embedding that a file may hold, besides the output
        map.
      tensors_decide: key whose presence says that not `tie_word_embeddings` but the tensors say
        whether there is an output map besides the token embedding.
      untold: they always say it.
    """

    config_class: type = models.DecoderConfig
    heads: Mapping[str, Mapping[str, Module]] = dataclasses.field(default_factory=heads)
    copies: tuple[str, ...] = ()
    tensors_decide: str | None = None
    untold: bool = False

    own_fields: ClassVar[tuple[str, ...]] = (
        *Family.own_fields,
        *("tied", "dropout", "embedding_dropout", "attention_dropout"),
        *("sampling", "source_generation_config", "head", "num_labels", "classifier_dropout"),
    )

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the token embedding in the bare model."""
        return (self.embedding, *self.copies)

    @property
    def output_map(self) -> str:
        """Name of the output map."""
        return f"{next(iter(self.heads['lm']))}.weight"

    def head_of(self, config: models.Config) -> str:
        """A key of `classes`."""
        return config.head

    def misfits_of(self, config: models.Config) -> list[str]:
        """Also a head that the type does not have."""
        wrong = super().misfits_of(config)
        return wrong if config.head in self.classes else [*wrong, f"head={config.head!r}"]

    def complete(self, settings, values, tensors, source, pretraining_head):
        """Which head there is, and whether the output map is the token embedding; `tensors` with
        one copy of that.
        """
        name = next(iter(values.get("architectures") or ()), None)
        head = {name: head for head, name in self.classes.items()}.get(name, "lm")
        if head in ("classifier", "tokens"):
            tensors = names.without_copies(tensors, self.embedding, self.copies, source)
            labels = {"head": head, "num_labels": num_labels(values)}
            return settings | labels | {"tied": bool(values["tie_word_embeddings"])}, tensors
        if head == "encoder":
            tensors = names.without_copies(tensors, self.embedding, self.copies, source)
            return settings | {"num_decoder_layers": 0, "tied": True}, tensors
        if self._is_bare(head, values, tensors):
            logging.warning(
                "%s has no output map (tie_word_embeddings=False): the model gives hidden states "
                "and no logits; for those load a %s",
                *(source, self.classes["lm"]),
            )
            return settings | {"head": "none", "tied": False}, tensors
        tied = self._is_tied(name, values, tensors, source)
        if settings.get("scale_logits") and not tied:
            raise ValueError(
                f"{source} scales its logits although it has an output map of its own "
                f"({self.tensors_decide}), which is not supported."
            )
        copies = [*self.copies, self.output_map] if tied else self.copies
        tensors = names.without_copies(tensors, self.embedding, copies, source)
        return settings | {"tied": tied}, tensors

    def write_head(self, config: models.Config, content: dict) -> None:
        """Whether the output map is the token embedding, and names of labels."""
        content.pop(self.tensors_decide, None)
        content["tie_word_embeddings"] = config.tied
        if config.num_labels is not None:
            write_labels(config, content)

    def copies_of(self, config: models.Config, content: Mapping, tensors: Mapping) -> dict:
        """The token embedding as output map, where config.json says that they are two."""
        if config.generates and config.tied and content["tie_word_embeddings"] is False:
            return {self.output_map: tensors[self.prefix + self.embedding]}
        return {}

    def _is_bare(self, head: str, values: Mapping, tensors: Mapping) -> bool:
        """True for a decoder alone, without a map to logits and without being tied."""
        has_map = self.output_map in tensors or values["tie_word_embeddings"]
        named = head == "none" or not values.get("architectures")
        return named and not has_map and self.config_class is models.DecoderConfig

    def _is_tied(self, name: str | None, values: Mapping, tensors: Mapping, source: str) -> bool:
        """True if logits come from the token embedding."""
        if name is not None and name == self.classes.get("none"):
            if values["tie_word_embeddings"] is False:
                raise ValueError(
                    f"{source} is a {name} with tie_word_embeddings=False: it has no output map, "
                    f"so it gives no logits. Give a {self.classes['lm']}."
                )
            logging.info("%s is a %s; logits come from its token embedding", source, name)
            return True
        if self.untold or values.get(self.tensors_decide) is not None:
            head, table = tensors.get(self.output_map), tensors.get(self.embedding)
            return head is None or np.array_equal(head, table)
        return values["tie_word_embeddings"]
