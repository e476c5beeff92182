"""Settings of encoders: BERT and its descendants, MPOBERT."""

import dataclasses

from mpojax import checks
from mpojax.checks import field, flag, integer, null, number, one_of, sequence
from mpojax.models.config.base import (
    COUNT,
    GROUPS,
    NORM,
    RATE,
    SIZE,
    TOKEN,
    Config,
    StackSpec,
)
from mpojax.nn import ROLES

POOLINGS = ("none", "pooler", "mean", "first")
HEADS = ("classifier", "span", "tokens")


@checks.settings()
class EncoderConfig(Config):
    """An encoder; the defaults are BERT. See `Config` for what all models share.

    Attributes:
      max_positions: the longest sequence.
      position_offset: rows of the position table before that of the first token; RoBERTa has
        pad_id + 1, and positions that are counted over the ids other than `pad_id`.
      positions: "learned" (a table added to the word rows), "rotary" (ModernBERT) or "none".
      disentangled: scores have parts between queries and keys of tokens and of distances, rows of
        one table (DeBERTa), of which there are `relative_buckets` for each direction.
      rotary_base: of the wave lengths of rotary positions.
      sliding_window: positions that attention reaches to either side; None for all.
      full_attention_layers: layers without the window.
      local_rotary_base: `rotary_base` of the layers with the window; None: they are as the others.
      pre_norm: x + f(norm(x)) instead of norm(x + f(x)).
      gated: down(activation(gate(x)) * up(x)) instead of down(activation(up(x))).
      attention_bias, attention_out_bias, feed_forward_bias: which maps have biases.
      relative_buckets: rows of a table of biases by distance, which are added to the scores of all
        layers (MPNet); None for none.
      relative_distance: from which on all distances are one bucket.
      token_types: rows of the token type table; 0 for no table (DistilBERT).
      norm: a key of `mpojax.nn.NORMS`: "layer_norm", or MobileBERT's "no_norm".
      attention_dropout: rate on attention probabilities, when a dropout key is given.
      classifier_dropout: rate before the head; None means `dropout` for a classifier and no dropout
        for a span head and in pre-training.
      pooling: how a sentence vector is made: "pooler" (a dense map of the first token and an
        activation, the only kind with parameters), "first" token, "mean" over the mask, or "none".
      pooler_activation: "tanh" (BERT), "relu" (DistilBERT, which calls the pooler
        pre_classifier), or "gelu" (ELECTRA, as a part of the classifier).
      num_labels: outputs of the head; None for no head, 1 for a regression. `source_config` names
        them, as transformers does: see `label_names`.
      head: "classifier" on the sentence vector, or one on every token: "tokens", a classifier, or
        "span", two outputs, the start and the end of an answer.
      embedding_size: width of the tables where a matrix embeddings/projection maps it to
        `hidden_size` (factorised embedding); None for tables of `hidden_size` and no such matrix.
      projection: what that matrix maps: the normalised "sum" of the rows (ALBERT), or the "word"
        rows alone, before those of position and type, of width `hidden_size`, are added
        (MobileBERT).
      trigram_input: the projection sees each word row between its neighbours (MobileBERT).
      layer_groups: None: every layer has parameters of its own. G: the layers form G blocks of
        num_layers / G neighbours, and what `shared_roles` names is stored once for each block,
        under its first layer (ALBERT: 1; MPOBERT: 1, or more in the "+" variant). Or the sizes
        of the blocks one by one, of layers that share parts.
      shared_roles: roles (`mpojax.nn.ROLES`) of the parameters that a block shares: all for
        ALBERT, ("central", "other") for MPOBERT, whose auxiliary cores and adapters are per layer.
      masked_lm: a masked language model head, tied to the token embedding, for pre-training; a
        classifier of two labels next to it is the head for the order of sentences.
      bottleneck_size: width inside a layer, between a map from `hidden_size` and one back to it
        (MobileBERT); None for layers without.
      bottleneck_attention: queries, keys and values all read the narrow residual stream. False:
        queries and keys read a narrow map of their own, values the layer's whole input.
      num_feed_forwards: feed-forward blocks of a layer with a bottleneck, one after the other.
    """

    max_positions: int = field(SIZE, 512)
    position_offset: int = field(TOKEN, 0)
    positions: str = field(one_of("learned", "rotary", "none"), "learned")
    disentangled: bool = field(flag(), False)
    rotary_base: float = field(number(above=0.0), 10_000.0)
    sliding_window: int | None = field(SIZE, None)
    full_attention_layers: tuple[int, ...] = field(sequence(integer(0)), ())
    local_rotary_base: float | None = field(number(above=0.0), None)
    pre_norm: bool = field(flag(), False)
    gated: bool = field(flag(), False)
    attention_bias: bool = field(flag(), True)
    attention_out_bias: bool = field(flag(), True)
    feed_forward_bias: bool = field(flag(), True)
    relative_buckets: int | None = field(SIZE | null(), None)
    relative_distance: int = field(SIZE, 128)
    token_types: int = field(integer(0, 2**31 - 1), 2)
    norm: str = field(NORM, "layer_norm")
    pad_id: int = field(TOKEN, 0)
    attention_dropout: float = field(RATE, 0.1)
    classifier_dropout: float | None = field(RATE, None)
    pooling: str = field(one_of(*POOLINGS), "pooler")
    pooler_activation: str = field(one_of("tanh", "relu", "gelu"), "tanh")
    num_labels: int | None = field(SIZE, None)
    head: str = field(one_of(*HEADS), "classifier")
    embedding_size: int | None = field(SIZE, None)
    projection: str = field(one_of("sum", "word"), "sum")
    trigram_input: bool = field(flag(), False)
    layer_groups: int | tuple[int, ...] | None = field(GROUPS, None)
    shared_roles: tuple[str, ...] = field(sequence(one_of(*ROLES)), ROLES)
    masked_lm: bool = field(flag(), False)
    bottleneck_size: int | None = field(SIZE, None)
    bottleneck_attention: bool = field(flag(), False)
    num_feed_forwards: int = field(COUNT, 1)

    kind = "encoder"
    embedding_norm = True

    def __post_init__(self):
        if self.attention_size % self.num_heads:
            name = "hidden_size" if self.bottleneck_size is None else "bottleneck_size"
            raise ValueError(
                f"{name}={self.attention_size} is not a multiple of num_heads={self.num_heads}."
            )
        if self.relative_buckets is not None:
            self._check_distances()
        elif self.disentangled:
            raise ValueError("disentangled=True needs relative_buckets.")
        self._check_head()
        self._check_bottleneck()
        self._check_embeddings()
        super().__post_init__()

    @property
    def stacks(self) -> tuple[StackSpec, ...]:
        return (StackSpec("", self.num_layers, causal=False),)

    @property
    def attention_size(self) -> int:
        return self.hidden_size if self.bottleneck_size is None else self.bottleneck_size

    @property
    def attention_scale(self) -> float | None:
        """Of the scores; None for head_size^-0.5. Disentangled ones are a sum of three."""
        return (3 * self.head_size) ** -0.5 if self.disentangled else None

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.attention_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: no groups."""
        return self.num_heads

    def merged(self) -> "EncoderConfig":
        """Settings of the dense model: rebuilt matrices are each layer's own."""
        groups = self.layer_groups if self.shares_everything else None
        return dataclasses.replace(self, adapters=(), layer_groups=groups, shared_roles=ROLES)

    def embedding_sizes(self) -> dict[str, tuple[int, int]]:
        hidden, width = self.hidden_size, self.embedding_size or self.hidden_size
        other_width = hidden if self.projection == "word" else width
        positions = self.position_offset + self.max_positions
        sizes = {"word": (self.vocab_size, width)}
        if self.positions == "learned":
            sizes["position"] = (positions, other_width)
        if self.token_types:
            sizes["token_type"] = (self.token_types, other_width)
        if self.embedding_size is not None:
            sizes["projection"] = (width * (3 if self.trigram_input else 1), hidden)
        return sizes

    def layer_sizes(self, cross_attention: bool = False) -> dict[str, tuple[int, int]]:
        if self.bottleneck_size is None:
            return super().layer_sizes(cross_attention)
        hidden, width = self.hidden_size, self.attention_size
        sizes = {"bottleneck/input": (hidden, width)}
        if self.bottleneck_attention:
            sizes |= self._attention_sizes("attention")
        else:
            sizes["bottleneck/attention"] = (hidden, width)
            sizes |= self._attention_sizes("attention") | {"attention/value": (hidden, width)}
        for i in range(self.num_feed_forwards):
            sizes |= self._feed_forward_sizes(f"feed_forwards/{i}")
        return sizes | {"bottleneck/output": (width, hidden)}

    def output_sizes(self) -> dict[str, tuple[int, int]]:
        hidden, sizes = self.hidden_size, {}
        if self.pooling == "pooler":
            sizes["pooler"] = (hidden, hidden)
        if self.num_labels is not None:
            sizes["head"] = (hidden, self.num_labels)
        if self.masked_lm:
            sizes["masked_lm/transform"] = (hidden, self.embedding_size or hidden)
        return sizes

    def _check_head(self):
        has_head, is_classifier = self.num_labels is not None, self.head == "classifier"
        checks.check_clashes(
            {
                f"masked_lm=True goes with head='classifier', not {self.head!r}": (
                    self.masked_lm and not is_classifier
                ),
                f"num_labels={self.num_labels} must be 2 for head='span': the start and the end": (
                    has_head and self.head == "span" and self.num_labels != 2
                ),
                f"pooling={self.pooling!r} must be 'none' for head={self.head!r}, which reads "
                "every token": has_head and not is_classifier and self.pooling != "none",
                f"num_labels={self.num_labels} needs a sentence vector; choose pooling= one of "
                "pooler, mean, first": has_head and is_classifier and self.pooling == "none",
            }
        )

    def _check_bottleneck(self):
        if self.bottleneck_size is None:
            names = ("num_feed_forwards", "bottleneck_attention")
            checks.check_unread(self, dict.fromkeys(names, "bottleneck_size=None"))

    def _check_embeddings(self):
        is_small, by_word = self.embedding_size is not None, self.projection == "word"
        checks.check_clashes(
            {
                "trigram_input=True needs embedding_size and projection='word': it is part of how "
                "word rows are projected": self.trigram_input and not (is_small and by_word),
                "projection='word' needs embedding_size": by_word and not is_small,
            }
        )
