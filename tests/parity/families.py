"""Small random checkpoints of every architecture, made by transformers."""

import dataclasses
from typing import Any

import numpy as np

from tests.parity import reference

VOCABULARY, POSITIONS = 60, 20


@dataclasses.dataclass(frozen=True)
class Family:
    """One configuration.

    Attributes:
      prefix: of its classes in transformers.
      settings: besides the vocabulary and the positions.
      token_types: whether the model reads them.
      scale: standard deviation of random weights; small where no norm keeps hidden states near 1.
    """

    prefix: str
    settings: dict[str, Any]
    token_types: bool = True
    scale: float = 0.3

    def config(self, **changes):
        """The transformers configuration."""
        kind = getattr(reference.transformers, f"{self.prefix}Config")
        return kind(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            **{**self.settings, **changes},
        )

    def model(self, kind: str, seed: int, **changes):
        """A random model of the class `<prefix><kind>`."""
        model = getattr(reference.transformers, f"{self.prefix}{kind}")(self.config(**changes))
        return reference.randomize(model, seed, self.scale)

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Ids and mask with padding, and token types where the model has them."""
        rng, pad = np.random.default_rng(seed), self.settings.get("pad_token_id", 0)
        ids = rng.integers(1 + pad, VOCABULARY, (3, 9))
        mask = np.ones((3, 9), int)
        mask[1, 5:] = 0
        mask[2, 1:] = 0
        types = (rng.integers(0, 2, (3, 9)),) if self.token_types else ()
        return (np.where(mask == 1, ids, pad), mask, *types)


_BERT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_PADDED = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_MOBILE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "embedding_size": 10,
    "intra_bottleneck_size": 12,
    "num_feedforward_networks": 3,
}
_DISTIL = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
FAMILIES = {
    "bert": Family("Bert", _BERT),
    "albert": Family("Albert", {**_BERT, "embedding_size": 10}),
    "albert wide embedding": Family(
        "Albert", {**_BERT, "embedding_size": 24, "hidden_act": "relu", "type_vocab_size": 3}
    ),
    "albert groups": Family(
        "Albert",
        {**_BERT, "embedding_size": 10, "num_hidden_layers": 4, "num_hidden_groups": 2},
    ),
    "distilbert": Family("DistilBert", _DISTIL, token_types=False),
    "distilbert sinusoidal": Family(
        "DistilBert",
        {**_DISTIL, "activation": "relu", "sinusoidal_pos_embds": True},
        token_types=False,
    ),
    "electra": Family("Electra", {**_BERT, "embedding_size": 10}),
    "electra wide embedding": Family("Electra", {**_BERT, "embedding_size": 24}),
    "roberta": Family("Roberta", {**_BERT, "type_vocab_size": 1, **_PADDED}, token_types=False),
    "xlm-roberta": Family("XLMRoberta", {**_BERT, **_PADDED}),
    "camembert": Family("Camembert", {**_BERT, **_PADDED}),
    "mpnet": Family("MPNet", {**_BERT, **_PADDED}, token_types=False),
    "deberta": Family(
        "DebertaV2",
        {
            **_BERT,
            "relative_attention": True,
            "position_biased_input": False,
            "position_buckets": 4,
            "pos_att_type": "p2c|c2p",
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "type_vocab_size": 0,
        },
        token_types=False,
        scale=0.2,
    ),
    "modernbert": Family(
        "ModernBert",
        {
            **_BERT,
            "num_hidden_layers": 4,
            "local_attention": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        token_types=False,
        scale=0.2,
    ),
    "mobilebert": Family("MobileBert", _MOBILE, scale=0.15),
    "mobilebert bottleneck attention": Family(
        "MobileBert",
        {
            **_MOBILE,
            "use_bottleneck_attention": True,
            "key_query_shared_bottleneck": False,
            "trigram_input": False,
            "num_feedforward_networks": 1,
            "classifier_activation": False,
        },
        scale=0.15,
    ),
    "mobilebert layer norm": Family(
        "MobileBert", {**_MOBILE, "normalization_type": "layer_norm", "layer_norm_eps": 1e-5}
    ),
}
