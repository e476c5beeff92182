"""Settings of pre-norm language models: decoders (GPT-2, LLaMA) and encoder-decoders (T5)."""

import dataclasses
import json
import re
from collections.abc import Mapping

from mpojax import checks
from mpojax.models import matrices as matrices_lib
from mpojax.models import setting_types
from mpojax.models.sampling import GREEDY, Sampling
from mpojax.nn import ACTIVATIONS, NORMS, AdapterSettings
from mpojax.nn.moe.settings import ExpertSettings

POSITIONS = ("learned", "rotary")
COMPUTE_DTYPES = ("float32", "bfloat16")

Experts = tuple[tuple[str, ExpertSettings], ...]


class LanguageModelConfig:
    """Common part of both kinds of settings: checks, experts and adapters by pattern."""

    # Layers have parameters of their own, see `EncoderConfig`.
    shares_parts = shares_everything = False

    def _normalise(self):
        # What is absent follows from other settings.
        sizes = ("num_kv_heads", "head_size", "num_decoder_layers")
        size = checks.integer(1) | checks.null()
        setting_types.check(self, **dict.fromkeys(sizes, size))
        # JSON has lists and dicts alone.
        object.__setattr__(self, "scan_boundaries", tuple(self.scan_boundaries))
        adapters = tuple((str(p), AdapterSettings.of(s)) for p, s in self.adapters)
        object.__setattr__(self, "adapters", adapters)
        experts = tuple(
            (str(p), s if isinstance(s, ExpertSettings) else ExpertSettings(**s))
            for p, s in self.experts
        )
        object.__setattr__(self, "experts", experts)
        if isinstance(self.sampling, Mapping):
            object.__setattr__(self, "sampling", Sampling(**self.sampling))
        if isinstance(self.eos_id, (tuple, list)):
            ids = tuple(dict.fromkeys(self.eos_id))
            one = len(ids) == 1
            object.__setattr__(self, "eos_id", ids[0] if one else ids or None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generated text."""
        if isinstance(self.eos_id, tuple):
            return self.eos_id
        return () if self.eos_id is None else (self.eos_id,)

    def _check_common(self, rates: tuple[str, ...]):
        for name, allowed in (("activation", sorted(ACTIVATIONS)), ("dtype", COMPUTE_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        for name in rates:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie in [0, 1).")
        if not self.norm_eps > 0.0:
            raise ValueError(f"norm_eps={self.norm_eps!r} must be above 0.")
        for name in ("source_config", "source_generation_config"):
            if not isinstance(json.loads(getattr(self, name)), dict):
                raise ValueError(f"{name} must be the JSON text of an object.")
        if not isinstance(self.sampling, Sampling):
            found = checks.shortened(self.sampling)
            raise ValueError(f"sampling={found} must be a models.Sampling.")
        ids = {name: (getattr(self, name, None),) for name in ("pad_id", "bos_id")}
        ids |= {"eos_id": self.end_ids, "decoder_start_id": (getattr(self, "decoder_start_id", 0),)}
        for name, values in ids.items():
            for value in values:
                if value is not None and not 0 <= value < self.vocab_size:
                    raise ValueError(
                        f"{name}={value} must lie in 0..{self.vocab_size - 1}, or be None."
                    )
        blocks = matrices_lib.feed_forwards(self)
        for pattern, _ in self.experts:
            if not any(re.fullmatch(pattern, path) for path in blocks):
                raise ValueError(
                    f"experts: {pattern!r} matches no feed-forward block; it must match a whole "
                    f"path such as {blocks[0]}."
                )
        matrices_lib.check_adapters(self)

    def experts_of(self, path: str) -> ExpertSettings | None:
        """Experts of a feed-forward block, such as layers/3/feed_forward; None for a plain one."""
        found = (s for pattern, s in self.experts if re.fullmatch(pattern, path))
        return next(found, None)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(LanguageModelConfig):
    """A causal pre-norm decoder; the defaults are GPT-2.

    Attributes:
      vocab_size: rows of the token embedding.
      hidden_size: width of the hidden states.
      num_layers: layers.
      num_heads: attention heads of the queries.
      intermediate_size: width inside the feed-forward block.
      num_kv_heads: heads of keys and values, which groups of query heads share; divides
        `num_heads`. None: as many (no groups).
      head_size: width of a head; None: hidden_size / num_heads.
      max_positions: longest sequence, generated tokens included.
      positions: "learned" (a table added to the word rows) or "rotary".
      rotary_base: of the wave lengths of rotary positions.
      rotary_scaling: LLaMA 3's change of the wave lengths as (factor, low frequency factor, high
        frequency factor, positions the model was first trained with); None for none.
      norm: "layer_norm" or "rms_norm".
      norm_eps: epsilon of every norm.
      activation: a key of `mpojax.nn.ACTIVATIONS`.
      gated: down(activation(gate(x)) * up(x)) instead of down(activation(up(x))).
      attention_bias: queries, keys and values have biases.
      attention_out_bias: the output map of attention has one.
      feed_forward_bias: the maps of the feed-forward block have some.
      tied: logits come from the token embedding; False: from a matrix of their own, `head`.
      dropout: rate on the outputs of every block, when a dropout key is given.
      embedding_dropout, attention_dropout: the same on embeddings and attention probabilities.
      pad_id, bos_id: token ids, None where there is none.
      eos_id: the token that ends a text, or several, the first of which stands for all where one is
        needed; None where there is none.
      sampling: how `generate` chooses tokens where the caller does not say.
      experts: (regular expression over feed-forward paths such as layers/3/feed_forward, settings)
        pairs; the first that matches decides, a block that none matches stays plain.
      adapters, adapter_scale: as in `EncoderConfig`.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      scan_boundaries: layers at which a new stack begins although it need not.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32 always.
      source_config, source_generation_config: JSON texts of config.json and generation_config.json
        of the checkpoint the model came from, for export.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_kv_heads: int | None = None
    head_size: int | None = None
    max_positions: int = 1024
    positions: str = "learned"
    rotary_base: float = 10_000.0
    rotary_scaling: tuple[float, ...] | None = None
    norm: str = "layer_norm"
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    attention_bias: bool = True
    attention_out_bias: bool = True
    feed_forward_bias: bool = True
    tied: bool = True
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    sampling: Sampling = GREEDY
    experts: Experts = ()
    adapters: tuple[tuple[str, AdapterSettings], ...] = ()
    adapter_scale: float = 1.0
    remat: bool = False
    scan_boundaries: tuple[int, ...] = ()
    dtype: str = "float32"
    source_config: str = "{}"
    source_generation_config: str = "{}"

    def __post_init__(self):
        self._normalise()
        if self.rotary_scaling is not None:
            object.__setattr__(self, "rotary_scaling", tuple(self.rotary_scaling))
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_size is None:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_heads="
                    f"{self.num_heads}; give head_size."
                )
            object.__setattr__(self, "head_size", self.hidden_size // self.num_heads)
        self._check_common(("dropout", "embedding_dropout", "attention_dropout"))
        for name, allowed in (("positions", POSITIONS), ("norm", sorted(NORMS))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads="
                f"{self.num_kv_heads}: each key head serves equally many query heads."
            )
        self._check_rotary()
        if not all(0 < layer < self.num_layers for layer in self.scan_boundaries):
            raise ValueError(
                f"scan_boundaries={checks.shortened(self.scan_boundaries)} must be layers in "
                f"1..{self.num_layers - 1}."
            )

    def _check_rotary(self):
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"head_size={self.head_size} must be even for rotary positions.")
        if not self.rotary_base > 0:
            raise ValueError(f"rotary_base={self.rotary_base!r} must be above 0, such as 10000.0.")
        if self.rotary_scaling is None:
            return
        is_right = len(self.rotary_scaling) == 4 and all(x > 0 for x in self.rotary_scaling)
        if not is_right or self.rotary_scaling[1] >= self.rotary_scaling[2]:
            raise ValueError(
                f"rotary_scaling={checks.shortened(self.rotary_scaling)} must be (factor, low "
                "frequency factor, high frequency factor, first positions), all above 0 and low "
                "below high, or None."
            )

    # What T5 has otherwise.
    attention_scale = None
    inner_dropout = 0.0


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(LanguageModelConfig):
    """An encoder and a decoder with cross-attention; the defaults are T5 (v1.0).

    Norms are RMS norms, maps have no biases, attention scores are not divided by the root of the
    head size, positions are a learned bias by distance on the scores, one for each tower.

    Attributes:
      vocab_size, hidden_size, num_heads, intermediate_size, activation, gated, norm_eps, tied,
        experts, adapters, adapter_scale, remat, scan_boundaries, dtype, source_config,
        source_generation_config, eos_id, sampling: as in `DecoderConfig`; paths begin with
        encoder/layers/ or decoder/layers/, and `scan_boundaries` holds for both towers.
      num_layers, num_decoder_layers: layers of the encoder and the decoder; None: as many.
      head_size: width of a head; num_heads * head_size may differ from `hidden_size`.
      scale_logits: with a tied table, hidden states are multiplied with hidden_size^-0.5 before.
      relative_buckets: rows of each table of distances.
      relative_distance: from which on all distances are one bucket.
      dropout: rate on embeddings, attention probabilities, inside and after every block.
      pad_id, decoder_start_id: token ids.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_decoder_layers: int | None = None
    head_size: int = 64
    relative_buckets: int = 32
    relative_distance: int = 128
    norm_eps: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    scale_logits: bool = True
    dropout: float = 0.1
    pad_id: int = 0
    eos_id: int | tuple[int, ...] | None = 1
    sampling: Sampling = GREEDY
    decoder_start_id: int = 0
    experts: Experts = ()
    adapters: tuple[tuple[str, AdapterSettings], ...] = ()
    adapter_scale: float = 1.0
    remat: bool = False
    scan_boundaries: tuple[int, ...] = ()
    dtype: str = "float32"
    source_config: str = "{}"
    source_generation_config: str = "{}"

    def __post_init__(self):
        self._normalise()
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        self._check_common(("dropout",))
        if self.relative_buckets % 4 or self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_buckets={self.relative_buckets} must be a multiple of 4, and "
                f"relative_distance={self.relative_distance} above half of it."
            )
        deepest = max(self.num_layers, self.num_decoder_layers)
        if not all(0 < layer < deepest for layer in self.scan_boundaries):
            raise ValueError(
                f"scan_boundaries={checks.shortened(self.scan_boundaries)} must be layers in "
                f"1..{deepest - 1}."
            )

    # What `DecoderConfig` lets choose and T5 fixes.
    norm = "rms_norm"
    attention_scale = 1.0
    attention_bias = attention_out_bias = feed_forward_bias = False

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: no groups."""
        return self.num_heads

    @property
    def attention_dropout(self) -> float:
        """Rate on attention probabilities."""
        return self.dropout

    @property
    def inner_dropout(self) -> float:
        """Rate inside a feed-forward block."""
        return self.dropout
