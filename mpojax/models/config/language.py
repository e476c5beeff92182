"""Settings of language models: decoders (GPT-2, LLaMA, ...) and encoder-decoders (T5)."""

import dataclasses
from collections.abc import Mapping

from mpojax import checks
from mpojax.checks import anything, field, flag, integer, null, number, one_of, sequence
from mpojax.models.config.base import (
    ACTIVATION,
    COUNT,
    GROUPS,
    JSON_OBJECT,
    NORM,
    RATE,
    RULES,
    SIZE,
    TOKEN,
    Config,
    StackSpec,
)
from mpojax.models.sampling import GREEDY, Sampling
from mpojax.nn import ROLES, ExpertSettings, RopeScaling
from mpojax.nn.positions import SCALING

_ABOVE_0 = number(above=0.0)
_EOS = TOKEN | sequence(TOKEN) | null()


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(Config):
    """What the settings of pre-norm language models share: decoders and encoder-decoders.

    Attributes:
      gated: down(activation(gate(x)) * up(x)) instead of down(activation(up(x))).
      tied: logits come from the token embedding; False: from a matrix of their own, `head`.
      eos_id: the token that ends a text, or several, the first of which stands for all where one is
        needed; None where there is none.
      sampling: how `generate` chooses tokens where the caller does not say.
      experts: (regular expression over feed-forward paths such as layers/3/feed_forward,
        `mpojax.nn.ExpertSettings`) pairs; the first that matches decides, a block that none matches
        stays plain.
      source_generation_config: JSON text of generation_config.json of the checkpoint the model came
        from, for export.
    """

    gated: bool = field(flag(), False)
    tied: bool = field(flag(), True)
    eos_id: int | tuple[int, ...] | None = field(_EOS, None)
    sampling: Sampling = field(anything(), GREEDY)  # noqa: RUF009
    experts: tuple[tuple[str, ExpertSettings], ...] = field(RULES, ())
    source_generation_config: str = field(JSON_OBJECT, "{}")

    @property
    def generates(self) -> bool:
        """True for a language model, see `models.generate`: one with logits of the next token."""
        return self.head == "lm"

    def __post_init__(self):
        experts = tuple(
            (pattern, s if isinstance(s, ExpertSettings) else ExpertSettings(**s))
            for pattern, s in self.experts
        )
        self._set(experts=experts)
        if isinstance(self.sampling, Mapping):
            self._set(sampling=Sampling(**self.sampling))
        if not isinstance(self.sampling, Sampling):
            found = checks.shortened(self.sampling)
            raise ValueError(f"sampling={found} must be a models.Sampling.")
        if isinstance(self.eos_id, tuple):
            ids = tuple(dict.fromkeys(self.eos_id))
            self._set(eos_id=ids[0] if len(ids) == 1 else ids or None)
        self._check_tokens("eos_id", *self.end_ids)
        self._check_rules("experts", self.feed_forwards(), "feed-forward block")
        super().__post_init__()

    def merged(self) -> "LanguageModelConfig":
        experts = tuple((pattern, settings.merged()) for pattern, settings in self.experts)
        return dataclasses.replace(super().merged(), experts=experts)

    def with_experts(self, changed: Mapping[str, ExpertSettings]) -> "LanguageModelConfig":
        """The settings with other experts in the blocks of these paths, such as
        layers/3/feed_forward.
        """
        paths: dict[ExpertSettings, list[str]] = {}
        for path in self.feed_forwards():
            settings = changed.get(path) or self.experts_of(path)
            if settings is not None:
                paths.setdefault(settings, []).append(path)
        # Paths hold no special characters: such a pattern matches them and nothing else.
        experts = tuple(("|".join(own), settings) for settings, own in paths.items())
        return dataclasses.replace(self, experts=experts)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generated text."""
        if isinstance(self.eos_id, tuple):
            return self.eos_id
        return () if self.eos_id is None else (self.eos_id,)

    def output_sizes(self) -> dict[str, tuple[int, int]]:
        return (
            {} if self.tied or not self.generates else {"head": (self.hidden_size, self.vocab_size)}
        )


DECODER_HEADS = ("lm", "classifier", "tokens", "none")


@checks.settings()
class DecoderConfig(LanguageModelConfig):
    """A causal decoder; the defaults are GPT-2.

    See `Config` and `LanguageModelConfig` for what models share.

    Attributes:
      num_kv_heads: heads of keys and values, which groups of query heads share; divides
        `num_heads`. None: as many (no groups).
      head_size: width of a head; None: hidden_size / num_heads.
      max_positions: longest sequence, generated tokens included.
      positions: "learned" (a table added to the word rows) or "rotary".
      position_offset: rows of the position table before that of the first position.
      rotary_base: of the wave lengths of rotary positions.
      rotary_scaling: a change of the wave lengths, see `nn.RopeScaling`; None for none.
      rotary_fraction: of a head's entries that are rotated, the first ones.
      sliding_window: positions that attention looks back at, the own one included; None for all.
      full_attention_layers: layers without the window.
      local_rotary_base: `rotary_base` of the layers with the window, which have no scaling; None:
        they are as the others.
      no_rope_layers: layers without rotary positions.
      norm: a key of `mpojax.nn.NORMS`: "layer_norm" or "rms_norm".
      pre_norm: attention and feed-forward blocks read norm(x); False needs `output_norm`.
      output_norm: what they add to x is normalised.
      parallel_residual: the feed-forward block reads the same x as attention.
      qk_norm: RMS norms of queries and keys, over each "head" or the "whole" width; None for none.
      attention_scale: multiplies attention scores; None: head_size^-0.5.
      score_softcap, logits_softcap: c of c * tanh(x / c) on attention scores and on logits; None
        for none.
      embedding_scale: multiplies the rows of the token embedding, not the tied output map.
      attention_bias: queries, keys and values have biases.
      attention_out_bias: the output map of attention has one.
      feed_forward_bias: the maps of the feed-forward block have some.
      embedding_dropout, attention_dropout: rates on embeddings and attention probabilities.
      bos_id: token id that begins a text, None where there is none.
      head: "lm" for logits of the next token, "classifier" for labels of the last real token,
        "tokens" for labels of every token, "none" for hidden states alone.
      num_labels: outputs of the classifiers; 1 for a regression.
      classifier_dropout: rate before their head.
      layer_groups, shared_roles: layers that share parts, such as the first cores of their
        matrices; see `EncoderConfig`.
    """

    num_kv_heads: int | None = field(COUNT, None)
    head_size: int | None = field(SIZE, None)
    max_positions: int = field(SIZE, 1024)
    positions: str = field(one_of("learned", "rotary"), "learned")
    position_offset: int = field(integer(0), 0)
    rotary_base: float = field(_ABOVE_0, 10_000.0)
    rotary_scaling: RopeScaling | None = field(SCALING, None)
    rotary_fraction: float = field(number(above=0.0, high=1.0), 1.0)
    sliding_window: int | None = field(SIZE, None)
    full_attention_layers: tuple[int, ...] = field(sequence(integer(0)), ())
    local_rotary_base: float | None = field(_ABOVE_0, None)
    no_rope_layers: tuple[int, ...] = field(sequence(integer(0)), ())
    norm: str = field(NORM, "layer_norm")
    pre_norm: bool = field(flag(), True)
    output_norm: bool = field(flag(), False)
    parallel_residual: bool = field(flag(), False)
    qk_norm: str | None = field(one_of("head", "whole"), None)
    attention_scale: float | None = field(_ABOVE_0, None)
    score_softcap: float | None = field(_ABOVE_0, None)
    logits_softcap: float | None = field(_ABOVE_0, None)
    embedding_scale: float = field(_ABOVE_0, 1.0)
    norm_eps: float = field(number(above=0.0), 1e-5)
    activation: str = field(ACTIVATION, "gelu_tanh")
    attention_bias: bool = field(flag(), True)
    attention_out_bias: bool = field(flag(), True)
    feed_forward_bias: bool = field(flag(), True)
    embedding_dropout: float = field(RATE, 0.1)
    attention_dropout: float = field(RATE, 0.1)
    bos_id: int | None = field(TOKEN, None)
    head: str = field(one_of(*DECODER_HEADS), "lm")
    num_labels: int | None = field(SIZE, None)
    classifier_dropout: float = field(RATE, 0.0)
    layer_groups: int | tuple[int, ...] | None = field(GROUPS, None)
    shared_roles: tuple[str, ...] = field(sequence(one_of(*ROLES)), ROLES)

    kind = "decoder"
    pooling = "last"

    def __post_init__(self):
        if self.num_kv_heads is None:
            self._set(num_kv_heads=self.num_heads)
        if self.head_size is None:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_heads="
                    f"{self.num_heads}; give head_size."
                )
            self._set(head_size=self.hidden_size // self.num_heads)
        takes_labels = self.head in ("classifier", "tokens")
        checks.check_clashes(
            {
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads="
                f"{self.num_kv_heads}: each key head serves equally many query heads": (
                    self.num_heads % self.num_kv_heads
                ),
                f"head={self.head!r} with num_labels={self.num_labels}: head='classifier' and "
                "head='tokens' have labels, the others have none": (
                    (self.num_labels is not None) != takes_labels
                ),
            }
        )
        self._check_rotary()
        self._check_layers()
        self._check_tokens("bos_id", self.bos_id)
        super().__post_init__()

    @property
    def stacks(self) -> tuple[StackSpec, ...]:
        return (StackSpec("", self.num_layers, causal=True),)

    def _check_rotary(self):
        self._set(rotary_scaling=RopeScaling.of(self.rotary_scaling))
        if self.positions == "rotary" and (self.rotary_size % 2 or self.rotary_size == 0):
            fraction = self.rotary_fraction
            part = "" if fraction == 1.0 else f" times rotary_fraction={fraction}"
            raise ValueError(f"head_size={self.head_size}{part} must be even for rotary positions.")

    def _check_layers(self):
        for name in ("full_attention_layers", "no_rope_layers"):
            layers = integer(0, self.num_layers - 1).noted("a layer")
            checks.check_value(name, getattr(self, name), sequence(layers))
        if self.post_norm:
            raise ValueError(
                "pre_norm=False needs output_norm=True: decoders with norm(x + f(x)) are not "
                "supported."
            )

    def embedding_sizes(self) -> dict[str, tuple[int, int]]:
        has_table = self.positions == "learned"
        rows = self.max_positions + self.position_offset
        position = {"position": (rows, self.hidden_size)} if has_table else {}
        return super().embedding_sizes() | position

    def output_sizes(self) -> dict[str, tuple[int, int]]:
        if self.num_labels is not None:
            return {"head": (self.hidden_size, self.num_labels)}
        return super().output_sizes()


@checks.settings()
class EncoderDecoderConfig(LanguageModelConfig):
    """An encoder and a decoder with cross-attention; the defaults are T5 (v1.0).

    Norms are RMS norms, maps have no biases, attention scores are not divided by the root of the
    head size, positions are a learned bias by distance on the scores, one for each stack, dropout
    is on embeddings, attention probabilities, inside and after every block. Paths begin with
    encoder/layers/ or decoder/layers/.

    See `Config` and `LanguageModelConfig` for what models share.

    Attributes:
      num_decoder_layers: layers of the decoder; None: as many as of the encoder. 0: there is none,
        the model gives the hidden states of the encoder.
      head_size: width of a head; num_heads * head_size may differ from `hidden_size`.
      scale_logits: with a tied table, hidden states are multiplied with hidden_size^-0.5 before.
      relative_buckets: rows of each table of distances.
      relative_distance: from which on all distances are one bucket.
      relative_per_layer: each layer has a table of its own (umT5), not each stack.
      decoder_start_id: token id that a target begins with.
    """

    num_decoder_layers: int | None = field(integer(0, 10_000), None)
    head_size: int = field(SIZE, 64)
    relative_buckets: int = field(SIZE, 32)
    relative_distance: int = field(SIZE, 128)
    relative_per_layer: bool = field(flag(), False)
    norm_eps: float = field(number(above=0.0), 1e-6)
    activation: str = field(ACTIVATION, "relu")
    scale_logits: bool = field(flag(), True)
    pad_id: int | None = field(TOKEN | null(), 0)
    eos_id: int | tuple[int, ...] | None = field(_EOS, 1)
    decoder_start_id: int | None = field(TOKEN | null(), 0)

    kind = "encoder_decoder"
    norm = "rms_norm"
    attention_scale = 1.0
    attention_bias = attention_out_bias = feed_forward_bias = False

    def __post_init__(self):
        if self.num_decoder_layers is None:
            self._set(num_decoder_layers=self.num_layers)
        self._check_distances()
        self._check_tokens("decoder_start_id", self.decoder_start_id)
        super().__post_init__()

    @property
    def head(self) -> str:
        """What the model gives: logits, or hidden states of the "encoder" alone."""
        return "lm" if self.num_decoder_layers else "encoder"

    @property
    def stacks(self) -> tuple[StackSpec, ...]:
        encoder = StackSpec("encoder/", self.num_layers, causal=False)
        if not self.num_decoder_layers:
            return (encoder,)
        depth = self.num_decoder_layers
        return (encoder, StackSpec("decoder/", depth, causal=True, cross_attention=True))

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
