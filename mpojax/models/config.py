"""Settings of an encoder, checked once."""

import dataclasses
import json
from collections.abc import Sequence

from mpojax import checks
from mpojax.models import matrices as matrices_lib
from mpojax.models import setting_types
from mpojax.nn import ACTIVATIONS, NORMS, ROLES, AdapterSettings

POOLINGS = ("none", "pooler", "mean", "first")
POOLER_ACTIVATIONS = ("tanh", "relu")
HEADS = ("classifier", "span")
PROJECTIONS = ("sum", "word")
COMPUTE_DTYPES = ("float32", "bfloat16")
# What a checkpoint configuration says of its head alone.
_OF_THE_HEAD = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A post-norm encoder; the defaults are BERT.

    Attributes:
      vocab_size: rows of the token embedding.
      hidden_size: width of the hidden states.
      num_layers: encoder layers.
      num_heads: attention heads; divides `attention_size`.
      intermediate_size: width inside the feed-forward block.
      max_positions: rows of the position table, the longest sequence.
      token_types: rows of the token type table; 0 for no table (DistilBERT).
      activation: a key of `mpojax.nn.ACTIVATIONS`.
      norm: a key of `mpojax.nn.NORMS`: "layer_norm", or MobileBERT's "no_norm".
      norm_eps: epsilon of every layer norm.
      pad_id: token id of padding (for those who make batches; the model reads the mask alone).
      dropout: rate on embeddings and on the output of every block, when a dropout key is given.
      attention_dropout: rate on attention probabilities, when a dropout key is given.
      classifier_dropout: rate before the head; None means `dropout` for a classifier and no dropout
        for a span head and in pre-training.
      pooling: how a sentence vector is made: "pooler" (a dense map of the first token and an
        activation, the only kind with parameters), "first" token, "mean" over the mask, or "none".
      pooler_activation: "tanh" (BERT), or "relu" (what DistilBERT calls pre_classifier).
      num_labels: outputs of the head; None for no head, 1 for a regression.
      head: "classifier" on the sentence vector, or "span" on every token: two outputs, the start
        and the end of an answer.
      embedding_size: width of the tables where a matrix embeddings/projection maps it to
        `hidden_size` (factorised embedding); None for tables of `hidden_size` and no such matrix.
      projection: what that matrix maps: the normalised "sum" of the rows (ALBERT), or the "word"
        rows alone, before those of position and type, of width `hidden_size`, are added
        (MobileBERT).
      trigram_input: the projection sees each word row between its neighbours (MobileBERT).
      layer_groups: None: every layer has parameters of its own. G: the layers form G blocks of
        num_layers / G neighbours, and what `shared_roles` names is stored once for each block,
        under its first layer (ALBERT: 1; MPOBERT: 1, or more in the "+" variant).
      shared_roles: roles (`mpojax.nn.ROLES`) of the parameters that a block shares: all for
        ALBERT, ("central", "other") for MPOBERT, whose auxiliary cores and adapters are per layer.
      adapters: (regular expression, `mpojax.nn.AdapterSettings`) pairs: over whole matrix
        paths, of which a matrix has the first that matches it, or, for the kinds in place, over
        array paths. A number stands for a low rank.
      adapter_scale: what the output of an adapter is multiplied with that has no scale of its own.
      masked_lm: a masked language model head, tied to the token embedding, for pre-training; a
        classifier of two labels next to it is the head for the order of sentences.
      bottleneck_size: width inside a layer, between a map from `hidden_size` and one back to it
        (MobileBERT); None for layers without.
      bottleneck_attention: queries, keys and values all read the narrow residual stream. False:
        queries and keys read a narrow map of their own, values the layer's whole input.
      num_feed_forwards: feed-forward blocks of a layer with a bottleneck, one after the other.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      scan_boundaries: layers at which a new stack begins although its matrices have the shapes of
        the layer before; variables of one stack are trained or frozen together.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32 always.
      source_config: JSON text of the checkpoint configuration the model came from, for export; it
        names the head's classes, as transformers does: see `label_names`.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 512
    token_types: int = 2
    activation: str = "gelu"
    norm: str = "layer_norm"
    norm_eps: float = 1e-12
    pad_id: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    pooling: str = "pooler"
    pooler_activation: str = "tanh"
    num_labels: int | None = None
    head: str = "classifier"
    embedding_size: int | None = None
    projection: str = "sum"
    trigram_input: bool = False
    layer_groups: int | None = None
    shared_roles: tuple[str, ...] = ROLES
    adapters: tuple[tuple[str, AdapterSettings], ...] = ()
    adapter_scale: float = 1.0
    masked_lm: bool = False
    bottleneck_size: int | None = None
    bottleneck_attention: bool = False
    num_feed_forwards: int = 1
    remat: bool = False
    scan_boundaries: tuple[int, ...] = ()
    dtype: str = "float32"
    source_config: str = "{}"

    def __post_init__(self):
        # Of an encoder padding has an id in any case.
        setting_types.check(self, pad_id=checks.integer())
        # JSON has lists alone.
        for name in ("scan_boundaries", "shared_roles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        adapters = tuple((str(p), AdapterSettings.of(s)) for p, s in self.adapters)
        object.__setattr__(self, "adapters", adapters)
        self._check_sizes()
        self._check_choices()
        self._check_head()
        self._check_groups()
        self._check_layers()
        matrices_lib.check_adapters(self)
        for name in ("dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 <= rate < 1.0:
                raise ValueError(f"{name}={rate!r} must lie in [0, 1).")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps={self.norm_eps!r} must be above 0.")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id={self.pad_id} must lie in 0..{self.vocab_size - 1}.")
        if not isinstance(json.loads(self.source_config), dict):
            raise ValueError("source_config must be the JSON text of an object.")

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the head's outputs; empty where they have none of their own."""
        names = json.loads(self.source_config).get("id2label")
        if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
            return ()
        ordered = tuple(str(names[str(i)]) for i in range(len(names)))
        is_generic = ordered == tuple(f"LABEL_{i}" for i in range(len(ordered)))
        return () if is_generic or len(ordered) != self.num_labels else ordered

    def with_label_names(self, names: Sequence[str] = ()) -> "EncoderConfig":
        """The settings with other names of the head's outputs, none of a former head left.

        Raises:
          ValueError: not one name for each output.
        """
        if names and len(names) != self.num_labels:
            raise ValueError(
                f"label_names={tuple(names)} must be num_labels={self.num_labels} names."
            )
        source = json.loads(self.source_config)
        content = {name: value for name, value in source.items() if name not in _OF_THE_HEAD}
        if names:
            content["id2label"] = {str(i): str(name) for i, name in enumerate(names)}
            content["label2id"] = {str(name): i for i, name in enumerate(names)}
        if self.num_labels == 1 and self.head == "classifier":
            content["problem_type"] = "regression"
        return dataclasses.replace(self, source_config=json.dumps(content, sort_keys=True))

    @property
    def attention_size(self) -> int:
        """Width inside a layer: of attention, and of the feed-forward blocks' input."""
        return self.hidden_size if self.bottleneck_size is None else self.bottleneck_size

    @property
    def block_size(self) -> int:
        """Neighbouring layers that share parameters; 1 where nothing is shared."""
        return 1 if self.layer_groups is None else self.num_layers // self.layer_groups

    @property
    def shares_everything(self) -> bool:
        """True if the layers of a block are one layer, run several times."""
        return self.layer_groups is not None and set(self.shared_roles) == set(ROLES)

    @property
    def shares_parts(self) -> bool:
        """True if the layers of a block share some of their parameters and own the others."""
        return self.layer_groups is not None and not self.shares_everything

    @property
    def matrix_layers(self) -> range:
        """Layers that have matrices of their own: the first of each block where all is shared."""
        return range(0, self.num_layers, self.block_size if self.shares_everything else 1)

    def _check_sizes(self):
        if self.attention_size % self.num_heads:
            name = "hidden_size" if self.bottleneck_size is None else "bottleneck_size"
            raise ValueError(
                f"{name}={self.attention_size} is not a multiple of num_heads={self.num_heads}."
            )

    def _check_choices(self):
        for name, allowed in (
            ("activation", sorted(ACTIVATIONS)),
            ("norm", sorted(NORMS)),
            ("pooling", POOLINGS),
            ("pooler_activation", POOLER_ACTIVATIONS),
            ("head", HEADS),
            ("projection", PROJECTIONS),
            ("dtype", COMPUTE_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )

    def _check_head(self):
        if self.masked_lm and self.head == "span":
            raise ValueError("masked_lm=True goes with head='classifier', not with 'span'.")
        if self.num_labels is None:
            return
        if self.head == "span" and self.num_labels != 2:
            raise ValueError(
                f"num_labels={self.num_labels} must be 2 for head='span': the start and the end."
            )
        if self.head == "span" and self.pooling != "none":
            raise ValueError(
                f"pooling={self.pooling!r} must be 'none' for head='span', which reads every token."
            )
        if self.head == "classifier" and self.pooling == "none":
            raise ValueError(
                f"num_labels={self.num_labels} needs a sentence vector; choose pooling= one of "
                "pooler, mean, first."
            )

    def _check_groups(self):
        unknown = sorted(set(self.shared_roles) - set(ROLES))
        if unknown or not self.shared_roles:
            raise ValueError(
                f"shared_roles={self.shared_roles} must be one or more of {', '.join(ROLES)}."
            )
        if self.layer_groups is not None and self.num_layers % self.layer_groups:
            raise ValueError(
                f"num_layers={self.num_layers} cannot be divided into layer_groups="
                f"{self.layer_groups} equal groups; choose a divisor of the depth."
            )

    def _check_layers(self):
        allowed = range(self.block_size, self.num_layers, self.block_size)
        if not all(layer in allowed for layer in self.scan_boundaries):
            shared = "" if self.layer_groups is None else " (first layers of blocks that share)"
            raise ValueError(
                f"scan_boundaries={checks.shortened(self.scan_boundaries)} must be layers among "
                f"{checks.shortened(list(allowed))}{shared}."
            )
        if self.trigram_input and (self.embedding_size is None or self.projection != "word"):
            raise ValueError(
                "trigram_input=True needs embedding_size and projection='word': it is part of how "
                "word rows are projected."
            )
        if self.projection == "word" and self.embedding_size is None:
            raise ValueError("projection='word' needs embedding_size.")
        if self.bottleneck_size is None and (
            self.num_feed_forwards != 1 or self.bottleneck_attention
        ):
            raise ValueError(
                f"num_feed_forwards={self.num_feed_forwards} and bottleneck_attention="
                f"{self.bottleneck_attention} are settings of layers with a bottleneck; give "
                "bottleneck_size, or leave them at 1 and False."
            )
