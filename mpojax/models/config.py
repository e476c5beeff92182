"""Settings of an encoder, checked once, and the table of its matrices."""

import dataclasses
import json
from collections.abc import Mapping

from mpojax import mpo
from mpojax.layers import ACTIVATIONS

POOLINGS = ("none", "pooler", "mean", "first")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A BERT-shaped post-norm encoder.

    Attributes:
      vocab_size: rows of the word table.
      hidden_size: width of the hidden states.
      num_layers: encoder layers.
      num_heads: attention heads; divides `hidden_size`.
      intermediate_size: width inside the feed-forward block.
      max_positions: rows of the position table, the longest sequence.
      token_types: rows of the token type table.
      activation: a key of `mpojax.layers.ACTIVATIONS`.
      norm_eps: epsilon of every layer norm.
      pad_id: token id of padding (for those who make batches; the model reads the mask alone).
      dropout: rate on embeddings and on the output of every block, when a dropout key is given.
      attention_dropout: rate on attention probabilities, when a dropout key is given.
      classifier_dropout: rate before the head; None means `dropout`.
      pooling: how a sentence vector is made: "pooler" (BERT's dense + tanh of the first token, the
        only kind with parameters), "first" token, "mean" over the mask, or "none".
      num_labels: outputs of the classification head; None for no head.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32 always.
      source_config: JSON text of the checkpoint configuration the model came from, for export.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 512
    token_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_id: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    pooling: str = "pooler"
    num_labels: int | None = None
    remat: bool = False
    dtype: str = "float32"
    source_config: str = "{}"

    def __post_init__(self):
        sizes = ["vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"]
        sizes += ["max_positions", "token_types"]
        sizes += [] if self.num_labels is None else ["num_labels"]
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}."
            )
        for name, allowed in (
            ("activation", sorted(ACTIVATIONS)),
            ("pooling", POOLINGS),
            ("dtype", COMPUTE_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        for name in ("dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 <= rate < 1.0:
                raise ValueError(f"{name}={rate!r} must lie in [0, 1).")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps={self.norm_eps!r} must be above 0.")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id={self.pad_id} must lie in 0..{self.vocab_size - 1}.")
        if self.num_labels is not None and self.pooling == "none":
            raise ValueError(
                f"num_labels={self.num_labels} needs a sentence vector; choose pooling= one of "
                "pooler, mean, first."
            )
        if not isinstance(json.loads(self.source_config), dict):
            raise ValueError("source_config must be the JSON text of an object.")


def matrix_sizes(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """Every matrix of the model: {matrix path: (in_features, out_features)}, in model order.

    Each may be dense or MPO. A table counts as (rows, features).
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    sizes = {
        "embeddings/word": (config.vocab_size, hidden),
        "embeddings/position": (config.max_positions, hidden),
        "embeddings/token_type": (config.token_types, hidden),
    }
    for layer in range(config.num_layers):
        for name in ("query", "key", "value", "out"):
            sizes[f"layers/{layer}/attention/{name}"] = (hidden, hidden)
        sizes[f"layers/{layer}/feed_forward/up"] = (hidden, inner)
        sizes[f"layers/{layer}/feed_forward/down"] = (inner, hidden)
    if config.pooling == "pooler":
        sizes["pooler"] = (hidden, hidden)
    if config.num_labels is not None:
        sizes["head"] = (hidden, config.num_labels)
    return sizes


def checked_shapes(
    config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape] | None
) -> dict[str, mpo.MPOShape]:
    """`shapes` as a dict, after checking each against the matrix it is for.

    Raises:
      ValueError: a path that is no matrix of the model, or a shape of another size.
    """
    sizes = matrix_sizes(config)
    problems = []
    for path, shape in (shapes or {}).items():
        if path not in sizes:
            problems.append(f"{path} is no matrix of this model")
        elif (shape.in_features, shape.out_features) != sizes[path]:
            problems.append(
                f"{path} is {sizes[path][0]} x {sizes[path][1]}, its shape is for "
                f"{shape.in_features} x {shape.out_features}"
            )
    if problems:
        raise ValueError(
            f"shapes do not fit the model: {'; '.join(problems)}. Matrix paths look like "
            "embeddings/word, layers/0/attention/query, layers/0/feed_forward/up, pooler, head."
        )
    return dict(shapes or {})


def stack_ranges(config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape]) -> list[range]:
    """Layers grouped into stacks: contiguous layers whose matrices have equal shapes."""
    ranges: list[range] = []
    for layer in range(config.num_layers):
        if ranges and layer_shapes(shapes, layer) == layer_shapes(shapes, ranges[-1].start):
            ranges[-1] = range(ranges[-1].start, layer + 1)
        else:
            ranges.append(range(layer, layer + 1))
    return ranges


def layer_shapes(shapes: Mapping[str, mpo.MPOShape], layer: int) -> dict[str, mpo.MPOShape]:
    """Shapes of one layer, by path inside the layer (such as attention/query)."""
    return under(shapes, f"layers/{layer}/")


def under(shapes: Mapping[str, mpo.MPOShape], prefix: str) -> dict[str, mpo.MPOShape]:
    """Entries whose path starts with `prefix`, with the prefix taken off."""
    return {path[len(prefix) :]: s for path, s in shapes.items() if path.startswith(prefix)}
