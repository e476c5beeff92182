"""Positions inside attention: rotary embedding, and a learned bias by distance (T5)."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks
from mpojax.nn.embed import Embed

# Cosines and sines (batch or 1, length, 1, half of what is rotated) of rotary angles, float32.
Rotary = tuple[jax.Array, jax.Array]

# What each kind of scaling needs besides its factor.
_NEEDS = {
    "linear": (),
    "dynamic": ("original_max_position_embeddings",),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ABOVE_0 = checks.number(above=0.0)
_FACTORS = checks.sequence(_ABOVE_0)


@checks.settings(prefix="rotary_scaling: ")
class RopeScaling:
    """A change of the wave lengths of rotary positions, for texts longer than the first ones.

    Fields have their names in transformers. With f the factor and L the first positions:

    | rope_type | wave lengths                                                                   |
    | linear    | all times f (Chen et al., "Position Interpolation", 2023)                      |
    | dynamic   | the longest times f n / L - (f - 1) for a text of n > L positions, the         |
    |           | shortest kept (NTK-aware)                                                      |
    | llama3    | longer than L / low: times f; shorter than L / high: kept; between: blended    |
    |           | ("The Llama 3 Herd of Models", 2024, section 3.4.2)                            |
    | yarn      | as llama3, between `beta_slow` and `beta_fast` periods in L (Peng et al.,      |
    |           | "YaRN", ICLR 2024)                                                             |
    | longrope  | each times its own: `short_factor` up to L positions, `long_factor` from there |
    |           | (Ding et al., "LongRoPE", ICML 2024)                                           |

    Attributes:
      rope_type: a row of the table.
      factor: f.
      original_max_position_embeddings: L, the positions that the model was first trained with.
      low_freq_factor, high_freq_factor: of llama3.
      beta_fast, beta_slow: of yarn.
      truncate: yarn's borders are whole indices of waves.
      attention_factor: multiplies cosines and sines of yarn and longrope; None: by their papers.
      short_factor, long_factor: of longrope, one for each wave.
    """

    rope_type: str = checks.field(checks.one_of(*_NEEDS))
    factor: float = checks.field(_ABOVE_0)
    original_max_position_embeddings: int | None = checks.field(checks.integer(1), None)
    low_freq_factor: float | None = checks.field(_ABOVE_0, None)
    high_freq_factor: float | None = checks.field(_ABOVE_0, None)
    beta_fast: float = checks.field(_ABOVE_0, 32.0)
    beta_slow: float = checks.field(_ABOVE_0, 1.0)
    truncate: bool = checks.field(checks.flag(), True)
    attention_factor: float | None = checks.field(_ABOVE_0, None)
    short_factor: tuple[float, ...] | None = checks.field(_FACTORS, None)
    long_factor: tuple[float, ...] | None = checks.field(_FACTORS, None)

    def __post_init__(self):
        missing = [name for name in _NEEDS[self.rope_type] if getattr(self, name) is None]
        what = f"rotary_scaling: rope_type={self.rope_type!r} also needs"
        checks.check_none(missing, what, ", ")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rotary_scaling: low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}."
            )

    @classmethod
    def of(cls, value: Any) -> "RopeScaling | None":
        """Settings of a mapping, or of LLaMA 3's four numbers, which older files hold."""
        if isinstance(value, list | tuple):
            checks.check_value("rotary_scaling", value, checks.sequence(_ABOVE_0, 4))
            value = {"rope_type": "llama3", **dict(zip(_LLAMA3, value, strict=True))}
        if isinstance(value, Mapping):
            return checks.from_mapping(cls, value, "rotary_scaling")
        checks.check_value("rotary_scaling", value, SCALING)
        return value

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        if self.rope_type not in ("yarn", "longrope") or self.factor <= 1.0:
            return self.attention_factor or 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.rope_type == "yarn":
            # Scores are divided by t: sqrt(1 / t) = 0.1 ln f + 1 in queries and in keys (YaRN).
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(
            1 + math.log(self.factor) / math.log(self.original_max_position_embeddings)
        )

    def scaled(self, inv_freq: np.ndarray, base: float, length: int) -> np.ndarray:
        """Frequencies (waves,) for texts of `length` positions, from those of the plain waves."""
        first, waves = self.original_max_position_embeddings, np.arange(len(inv_freq))
        if self.rope_type == "linear":
            return inv_freq / self.factor
        if self.rope_type == "dynamic":
            # base grows with the text: base' = base * stretch^(size / (size - 2)).
            stretch = self.factor * max(length / first, 1.0) - (self.factor - 1)
            # base'^(-2 i / size) = inv_freq[i] stretch^(-i / (waves - 1)): wave 0 stays as it is.
            return inv_freq * stretch ** -(waves / max(len(inv_freq) - 1, 1))
        if self.rope_type == "longrope":
            return inv_freq / np.array(self.long_factor if length > first else self.short_factor)
        # Fast waves have seen whole turns in training and stay, slow ones are stretched by factor.
        periods = first * inv_freq / (2 * math.pi)  # of each wave within the first positions
        if self.rope_type == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            # 0 below low periods, 1 above high ones, linear between (LLaMA 3).
            kept = np.clip((periods - low) / (high - low), 0.0, 1.0)
        else:
            kept = self._kept_by_yarn(waves, base)
        # A convex mix of the wave as it is and of the wave stretched by f.
        return inv_freq * (kept + (1 - kept) / self.factor)

    def _kept_by_yarn(self, waves: np.ndarray, base: float) -> np.ndarray:
        """1 for waves that stay as they are, 0 for those that are stretched."""
        size = 2 * len(waves)

        def index(periods: float) -> float:
            """Of the wave that has so many periods within the first positions."""
            # L inv_freq[i] / 2 pi = periods with inv_freq[i] = base^(-2 i / size), solved for i.
            turns = self.original_max_position_embeddings / (periods * 2 * math.pi)
            return size * math.log(turns) / (2 * math.log(base))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        return 1.0 - np.clip((waves - low) / (high - low or 0.001), 0.0, 1.0)


SCALING = checks.Allowed(
    "a nn.RopeScaling, its fields, or None",
    lambda value: value is None or isinstance(value, RopeScaling | Mapping | list | tuple),
)


def inverse_frequencies(
    size: int, base: float, scaling: RopeScaling | None = None, length: int = 0
) -> np.ndarray:
    """inv_freq[i] = base^(-2 i / size), the angle per position: (size / 2,) float32.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

    Args:
      size: entries of a head that are rotated, an even number.
      base: wave lengths lie between 2 pi and about 2 pi * base.
      scaling: a change of the wave lengths.
      length: positions of the text, which some scalings go by.
    """
    inv_freq = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling is not None:
        inv_freq = scaling.scaled(inv_freq, base, length)
    return inv_freq.astype(np.float32)


def rotary_embedding(positions: jax.Array, inv_freq: np.ndarray, amplitude: float = 1.0) -> Rotary:
    """amplitude * (cos, sin) of the angles of positions (batch or 1, length)."""
    # (B, S, 1, waves): one axis for the heads, which share the angles.
    angles = positions.astype(jnp.float32)[..., None, None] * inv_freq.reshape(1, 1, 1, -1)
    return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def apply_rope(x_BxSxNxD: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotates entry i of each head together with entry i + R / 2, for its first R entries.

    R is twice the number of angles; later entries stay as they are.
    """
    cos, sin = rotary
    half = cos.shape[-1]
    first, second, rest = jnp.split(x_BxSxNxD.astype(jnp.float32), (half, 2 * half), axis=-1)
    # (x_1 + i x_2) e^(i angle)
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x_BxSxNxD.dtype)


def relative_buckets(
    distances: jax.Array, num: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """Bucket indices of distances (key position minus query position), any shape, int32.

    Small distances have a bucket each, larger ones share them by logarithm, all from `max_distance`
    on are in the last. With `bidirectional` half of the buckets are for later keys; else later keys
    count as distance 0. Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020),
    section 2.1.
    """
    start = jnp.zeros_like(distances)
    if bidirectional:
        # Half of the buckets for keys before, half for keys after the query.
        num //= 2
        start = jnp.where(distances > 0, num, 0).astype(distances.dtype)
        distances = jnp.abs(distances)
    else:
        distances = jnp.maximum(-distances, 0)
    exact = num // 2
    # log(0) is never chosen, but must not be infinite.
    share = jnp.log(jnp.maximum(distances, 1).astype(jnp.float32) / exact)
    # exact + (num - exact) log(d / exact) / log(max_distance / exact)
    share = share / math.log(max_distance / exact) * (num - exact)
    far = jnp.minimum(exact + share.astype(distances.dtype), num - 1)
    return start + jnp.where(distances < exact, distances, far)


def log_distances(length: int, num: int, max_distance: int) -> np.ndarray:
    """Rows of distances i - j (query minus key), (length, length) int32 in 0..2 num - 1.

    Row num is distance 0. Up to num / 2 each distance has a row, beyond they share them by
    logarithm (He et al., "DeBERTaV3", 2021).
    """
    distances = np.arange(length)[:, None] - np.arange(length)[None]
    middle = num // 2
    far = np.maximum(np.abs(distances), middle).astype(np.float32)
    rate = np.log(np.float32((max_distance - 1) / middle))
    shared = middle + np.ceil(np.log(far / middle) / rate * (middle - 1))
    # sign(d) (m + ceil(log(|d| / m) / log((max - 1) / m) (m - 1))) with m = num / 2
    rows = np.where(np.abs(distances) <= middle, distances, shared * np.sign(distances))
    return np.clip(rows + num, 0, 2 * num - 1).astype(np.int32)


class RelativeBias(nnx.Module):
    """A table (buckets, heads) of what is added to scores."""

    def __init__(
        self,
        num_buckets: int,
        num_heads: int,
        max_distance: int,
        bidirectional: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """Arguments as in `relative_buckets`: an encoder looks both ways."""
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.table = Embed(num_buckets, num_heads, rngs=rngs).table

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Biases (1, heads, queries, keys), float32, of positions (queries,) and (keys,)."""
        distances = key_positions[None, :] - query_positions[:, None]
        rows = relative_buckets(distances, self.num_buckets, self.max_distance, self.bidirectional)
        return jnp.transpose(self.table[...][rows], (2, 0, 1))[None]
