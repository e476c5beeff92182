"""Language models of transformers: output maps that are the token embedding, and its copies."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from absl import logging

from mpojax import models
from mpojax.io.hf import names
from mpojax.io.hf.family import Family
from mpojax.io.hf.names import Module, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageFamily(Family):
    """A model type of language models; of a class "none" logits come from the token embedding.

    Attributes:
      copies: names of other copies of the token embedding that a file may hold, besides the output
        map.
      tensors_decide: key whose presence says that not `tie_word_embeddings` but the tensors say
        whether there is an output map besides the token embedding.
    """

    config_class: type = models.DecoderConfig
    heads: Mapping[str, Mapping[str, Module]] = dataclasses.field(
        default_factory=lambda: {"lm": {"lm_head": linear("head")}}
    )
    copies: tuple[str, ...] = ()
    tensors_decide: str | None = None

    own_fields: ClassVar[tuple[str, ...]] = (
        *Family.own_fields,
        *("tied", "dropout", "embedding_dropout", "attention_dropout"),
        *("sampling", "source_generation_config"),
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
        return "lm"

    def complete(self, settings, values, tensors, source, pretraining_head):
        """Whether the output map is the token embedding; `tensors` with one copy of that."""
        name = next(iter(values.get("architectures") or ()), None)
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
        """Whether the output map is the token embedding."""
        content.pop(self.tensors_decide, None)
        content["tie_word_embeddings"] = config.tied

    def copies_of(self, config: models.Config, content: Mapping, tensors: Mapping) -> dict:
        """The token embedding as output map, where config.json says that they are two."""
        if config.tied and content["tie_word_embeddings"] is False:
            return {self.output_map: tensors[self.prefix + self.embedding]}
        return {}

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
        if values.get(self.tensors_decide) is not None:
            head, table = tensors.get(self.output_map), tensors.get(self.embedding)
            return head is None or np.array_equal(head, table)
        return values["tie_word_embeddings"]
