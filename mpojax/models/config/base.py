"""What the settings of all models share, and the matrices that follow from them."""

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from mpojax import checks
from mpojax.checks import anything, field, flag, integer, null, number, one_of, sequence, text
from mpojax.nn import ACTIVATIONS, NORMS, ROLES, AdapterSettings, ExpertSettings, RopeScaling

COMPUTE_DTYPES = ("float32", "bfloat16")
# Matrices that are looked up by row; all others are multiplied with.
TABLES = ("embeddings/word", "embeddings/position", "embeddings/token_type")

# What a checkpoint configuration says of its head alone.
_OF_THE_HEAD = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
# More than any model has, and little enough to enumerate layers and to multiply sizes.
SIZE, COUNT = integer(1, 2**31 - 1), integer(1, 10_000)
GROUPS = SIZE | sequence(COUNT) | null()
RATE = number(0.0, below=1.0)
TOKEN = integer()
RULES = sequence(checks.pair(text(), anything()))
ACTIVATION, NORM = one_of(*sorted(ACTIVATIONS)), one_of(*sorted(NORMS))


def _is_json_object(value: Any) -> bool:
    try:
        return len(value) < 2**24 and isinstance(json.loads(value), dict)
    except (TypeError, ValueError, RecursionError):
        return False


JSON_OBJECT = checks.Allowed("the JSON text of an object", _is_json_object)


class StackSpec(NamedTuple):
    """One transformer stack of a model.

    Attributes:
      prefix: of its matrix paths: "", "encoder/" or "decoder/".
      num_layers: its depth.
      causal: a position attends to itself and to earlier ones alone.
      cross_attention: its layers attend to the output of another stack, too.
    """

    prefix: str
    num_layers: int
    causal: bool
    cross_attention: bool = False


class LayerKind(NamedTuple):
    """What layers of one stack may differ in without being scanned apart.

    Attributes:
      window: positions that attention looks back at, the own one included; None for all.
      rotary_base, rotary_scaling: see `DecoderConfig`; a base of None for no rotary positions.
    """

    window: int | None
    rotary_base: float | None
    rotary_scaling: RopeScaling | None


@dataclasses.dataclass(frozen=True)
class Config:
    """What the settings of all models share.

    A block reads its settings by these names; what a kind of model does not let choose is a plain
    class attribute or a property of it.

    Attributes:
      vocab_size: rows of the token embedding.
      hidden_size: width of the hidden states.
      num_layers: layers (of an encoder-decoder: of the encoder).
      num_heads: attention heads of the queries.
      intermediate_size: width inside the feed-forward block.
      activation: a key of `mpojax.nn.ACTIVATIONS`.
      norm_eps: epsilon of every norm.
      dropout: rate on embeddings and on the output of every block, when a dropout key is given.
      pad_id: token id of padding (for those who make batches; the model reads the mask alone).
      adapters: (regular expression, `mpojax.nn.AdapterSettings`) pairs: over whole matrix
        paths, of which a matrix has the first that matches it, or, for the kinds in place, over
        array paths. A number stands for a low rank.
      adapter_scale: what the output of an adapter is multiplied with that has no scale of its own.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      scan_boundaries: layers at which a new stack begins although its matrices have the shapes of
        the layer before; variables of one stack are trained or frozen together. They hold for every
        stack of an encoder-decoder.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32 always.
      source_config: JSON text of the checkpoint configuration the model came from, for export.
    """

    vocab_size: int = field(SIZE)
    hidden_size: int = field(SIZE)
    num_layers: int = field(COUNT)
    num_heads: int = field(COUNT)
    intermediate_size: int = field(SIZE)
    activation: str = field(ACTIVATION, "gelu")
    norm_eps: float = field(number(above=0.0), 1e-12)
    dropout: float = field(RATE, 0.1)
    pad_id: int | None = field(TOKEN, None)
    adapters: tuple[tuple[str, AdapterSettings], ...] = field(RULES, ())
    adapter_scale: float = field(number(), 1.0)
    remat: bool = field(flag(), False)
    scan_boundaries: tuple[int, ...] = field(sequence(integer()), ())
    dtype: str = field(one_of(*COMPUTE_DTYPES), "float32")
    source_config: str = field(JSON_OBJECT, "{}")

    kind: ClassVar[str]  # name in files
    generates = False  # a language model, see `models.generate`
    pre_norm, output_norm = True, False  # see `post_norm`
    parallel_residual = False
    qk_norm = None  # of queries and keys
    norm = "layer_norm"
    gated = False
    attention_bias = attention_out_bias = feed_forward_bias = True
    attention_scale = None  # of the scores: head_size^-0.5
    score_softcap = logits_softcap = None
    embedding_scale, position_offset = 1.0, 0
    projection, trigram_input = "sum", False  # of embeddings, see `EncoderConfig`
    inner_dropout = 0.0  # between the two maps of a feed-forward block
    experts = ()
    masked_lm = False
    bottleneck_size, num_feed_forwards = None, 1
    relative_buckets, relative_per_layer, disentangled = None, False, False
    # Positions and windows of attention, see `DecoderConfig`.
    positions, rotary_base, rotary_scaling, rotary_fraction = "learned", 10_000.0, None, 1.0
    sliding_window = local_rotary_base = None
    full_attention_layers = no_rope_layers = ()
    # Layers have parameters of their own, and no head is on them, see `EncoderConfig`.
    layer_groups = None
    shared_roles = ROLES
    head, num_labels = "lm", None

    def __post_init__(self):
        adapters = tuple((pattern, AdapterSettings.of(s)) for pattern, s in self.adapters)
        self._set(adapters=adapters)
        self._check_tokens("pad_id", self.pad_id)
        self._check_groups()
        depth = max(stack.num_layers for stack in self.stacks)
        allowed = [block.start for block in self.blocks(depth)[1:]]
        if not all(layer in allowed for layer in self.scan_boundaries):
            shared = "" if self.layer_groups is None else " (first layers of blocks that share)"
            raise ValueError(
                f"scan_boundaries={checks.shortened(self.scan_boundaries)} must be layers among "
                f"{checks.shortened(allowed)}{shared}."
            )
        note = " (tables, heads and experts have no adapters)"
        self._check_rules("adapters", self.adaptable(), "matrix", note)

    def _check_groups(self):
        """Of layers that share parameters, see `EncoderConfig`."""
        if not self.shared_roles:
            raise ValueError(f"shared_roles=() must be one or more of {', '.join(ROLES)}.")
        groups = self.layer_groups
        if isinstance(groups, tuple):
            if sum(groups) != self.num_layers or self.shares_everything:
                raise ValueError(
                    f"layer_groups={checks.shortened(groups)}: sizes of groups must add up to "
                    f"num_layers={self.num_layers}, of layers that share some of their roles."
                )
        elif groups is not None and self.num_layers % groups:
            raise ValueError(
                f"num_layers={self.num_layers} cannot be divided into layer_groups={groups} equal "
                "groups; choose a divisor of the depth."
            )

    def _check_distances(self):
        """Of relative positions: buckets for both directions, half of them for single distances."""
        if self.relative_buckets % 4 or self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_buckets={self.relative_buckets} must be a multiple of 4, and "
                f"relative_distance={self.relative_distance} above half of it."
            )

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_tokens(self, name: str, *ids: int | None):
        allowed = integer(0, self.vocab_size - 1)
        for token in ids:
            if token is not None:
                checks.check_value(name, token, allowed.noted("a row of the token embedding"))

    def _check_rules(self, name: str, paths: Sequence[str], what: str, note: str = ""):
        for pattern, settings in getattr(self, name):
            # What is tuned in place names arrays, which settings alone do not know.
            if getattr(settings, "in_place", False):
                continue
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise ValueError(
                    f"{name}: {pattern!r} matches no {what}; it must match a whole path such as "
                    f"{paths[0]}{note}."
                )

    @property
    def stacks(self) -> tuple[StackSpec, ...]:
        """The transformer stacks of the model."""
        raise NotImplementedError

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the head's outputs; empty where they have none of their own."""
        names = json.loads(self.source_config).get("id2label")
        if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
            return ()
        ordered = tuple(str(names[str(i)]) for i in range(len(names)))
        is_generic = ordered == tuple(f"LABEL_{i}" for i in range(len(ordered)))
        return () if is_generic or len(ordered) != self.num_labels else ordered

    def with_label_names(self, names: Sequence[str] = ()) -> "Config":
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
        return self.hidden_size

    @property
    def post_norm(self) -> bool:
        """True if a part f of a layer is norm(x + f(x)).

        Otherwise it is x + b(f(a(x))), with norms a for `pre_norm` and b for `output_norm`, and a
        norm is at the end of the stack.
        """
        return not (self.pre_norm or self.output_norm)

    @property
    def rotary_size(self) -> int:
        """Entries of a head that are rotated."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each layer sees of a text."""
        return tuple(self._layer_kind(layer) for layer in range(self.num_layers))

    def _layer_kind(self, layer: int) -> LayerKind:
        has_window = self.sliding_window is not None and layer not in self.full_attention_layers
        window = self.sliding_window if has_window else None
        if self.positions != "rotary" or layer in self.no_rope_layers:
            return LayerKind(window, None, None)
        if has_window and self.local_rotary_base is not None:
            return LayerKind(window, self.local_rotary_base, None)
        return LayerKind(window, self.rotary_base, self.rotary_scaling)

    @property
    def embedding_norm(self) -> bool:
        """True if embeddings are normalised."""
        return self.post_norm

    @property
    def embedding_dropout(self) -> float:
        """Rate on embeddings."""
        return self.dropout

    @property
    def first_reads_embeddings(self) -> bool:
        """True if attention of the first layer reads embeddings that are normalised already."""
        return self.pre_norm and self.embedding_norm

    @property
    def block_size(self) -> int:
        """Neighbouring layers that share parameters, of blocks of equal size; else 1."""
        groups = self.layer_groups
        return self.num_layers // groups if isinstance(groups, int) else 1

    def blocks(self, depth: int | None = None) -> list[range]:
        """The layers of each block that shares parameters, of a stack of `depth` layers."""
        depth = self.num_layers if depth is None else depth
        if isinstance(self.layer_groups, tuple):
            ends = itertools.accumulate(self.layer_groups)
            return [range(end - n, end) for end, n in zip(ends, self.layer_groups, strict=True)]
        size = self.block_size
        return [range(first, first + size) for first in range(0, depth, size)]

    def block_of(self, layer: int) -> range:
        """The layers that share parameters with one."""
        if isinstance(self.layer_groups, tuple):
            return next(block for block in self.blocks() if layer in block)
        first = layer - layer % self.block_size
        return range(first, first + self.block_size)

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

    @property
    def num_stored_layers(self) -> int:
        """Layers of all stacks that have matrices of their own."""
        depth = sum(stack.num_layers for stack in self.stacks)
        return depth // (self.block_size if self.shares_everything else 1)

    def experts_of(self, path: str) -> ExpertSettings | None:
        """Experts of a feed-forward block, such as layers/3/feed_forward; None for a plain one."""
        return next((s for pattern, s in self.experts if re.fullmatch(pattern, path)), None)

    def merged(self) -> "Config":
        """Settings of the model whose adapters and chains are folded into its matrices."""
        return dataclasses.replace(self, adapters=())

    def matrix_sizes(self) -> dict[str, tuple[int, int]]:
        """Every matrix of the model: {matrix path: (in_features, out_features)}, in model order.

        Each may be dense or MPO. A table counts as (rows, features). The matrices of all experts of
        a block have one path and one size.
        """
        sizes = {f"embeddings/{name}": size for name, size in self.embedding_sizes().items()}
        step = self.block_size if self.shares_everything else 1
        for stack in self.stacks:
            in_layer = self.layer_sizes(stack.cross_attention)
            for layer in range(0, stack.num_layers, step):
                start = f"{stack.prefix}layers/{layer}"
                own = in_layer | self._expert_sizes(f"{start}/feed_forward")
                sizes.update({f"{start}/{name}": size for name, size in own.items()})
        return sizes | self.output_sizes()

    def embedding_sizes(self) -> dict[str, tuple[int, int]]:
        """{name: size} of the embeddings, and of a map of their rows."""
        return {"word": (self.vocab_size, self.hidden_size)}

    def layer_sizes(self, cross_attention: bool = False) -> dict[str, tuple[int, int]]:
        """{path inside a layer: size} of its matrices."""
        sizes = {}
        for name in ("attention", "cross_attention")[: 1 + cross_attention]:
            sizes |= self._attention_sizes(name)
        return sizes | self._feed_forward_sizes("feed_forward")

    def output_sizes(self) -> dict[str, tuple[int, int]]:
        """{path: size} of the matrices behind the last layer."""
        return {}

    def _attention_sizes(self, name: str) -> dict[str, tuple[int, int]]:
        width = self.attention_size
        wide, narrow = (heads * self.head_size for heads in (self.num_heads, self.num_kv_heads))
        return {
            f"{name}/query": (width, wide),
            f"{name}/key": (width, narrow),
            f"{name}/value": (width, narrow),
            f"{name}/out": (wide, width),
        }

    def _expert_sizes(self, block: str) -> dict[str, tuple[int, int]]:
        """Sizes of a block's matrices that are its experts' own."""
        experts = self.experts_of(block)
        sizes = {}
        if experts is not None and experts.intermediate_size:
            sizes |= self._feed_forward_sizes("feed_forward", experts.intermediate_size)
        if experts is not None and experts.shared_size:
            sizes |= self._feed_forward_sizes("feed_forward/shared_expert", experts.shared_size)
        return sizes

    def _feed_forward_sizes(self, name: str, inner: int | None = None) -> dict:
        width, inner = self.attention_size, inner or self.intermediate_size
        gate = {f"{name}/gate": (width, inner)} if self.gated else {}
        return {f"{name}/up": (width, inner), **gate, f"{name}/down": (inner, width)}

    def feed_forwards(self) -> list[str]:
        """Paths of the feed-forward blocks, such as layers/0/feed_forward."""
        blocks = [p.removesuffix("/up") for p in self.matrix_sizes() if p.endswith("/up")]
        return [path for path in blocks if not path.endswith("/shared_expert")]

    def adaptable(self) -> list[str]:
        """Paths of the matrices that may have an adapter: all but tables, heads and experts."""
        without = (*TABLES, "head", "masked_lm/transform")
        paths = [path for path in self.matrix_sizes() if path not in without]
        return [path for path in paths if not self.experts_of(path.rpartition("/")[0])]
